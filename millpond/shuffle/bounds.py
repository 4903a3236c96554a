"""A sample of sort keys to the bounds between partitions. Pure.

Keys are binary and compare byte by byte, as DuckDB's `create_sort_key` makes them. A
bound is a pair of key and ordinal, as a row is: the ordinal is the row's place in the
input. So a key that fills more than a partition can be cut inside, and rows that share
it still come out in input order.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple


class Bound(NamedTuple):
    """The first (key, ordinal) of a partition. Rows from it on belong to it or a later one."""

    key: bytes
    ordinal: int = 0


def choose_bounds(
    keys: Sequence[bytes], n_partitions: int, ordinals: Sequence[int] | None = None
) -> tuple[Bound, ...]:
    """`n_partitions - 1` bounds, in order, that cut the sample into equal shares.

    With the ordinals of the sampled rows, a heavy key is cut inside; all other keys stay
    whole, so that no partition expects more than one and a half shares. Without them
    every key stays whole: a heavy key fills one partition and leaves others empty.
    """
    assert n_partitions > 0
    if not keys:
        return (Bound(b""),) * (n_partitions - 1)
    heavy = heavy_keys(keys, n_partitions) if ordinals is not None else {}
    rows = sorted(zip(keys, ordinals or (0,) * len(keys), strict=True))
    bounds = []
    for partition in range(1, n_partitions):
        key, ordinal = rows[partition * len(rows) // n_partitions]
        bounds.append(Bound(key, ordinal if key in heavy else 0))
    return tuple(bounds)


def heavy_keys(keys: Sequence[bytes], n_partitions: int) -> dict[bytes, float]:
    """Keys that hold more than half a partition of the sample, with their part of all rows."""
    least = len(keys) / n_partitions / 2
    # One row of the sample says nothing, however small the sample is.
    return {key: n / len(keys) for key, n in Counter(keys).items() if n > max(least, 1)}
