"""Bounds cut a sample into equal shares, also inside a key that fills several of them."""

from bisect import bisect_right
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from millpond.shuffle.bounds import Bound, choose_bounds, heavy_keys

keys = st.lists(st.sampled_from([b"", b"a", b"b", b"c", b"dd"]), max_size=60)


@given(keys=keys, n=st.integers(1, 9))
def test_there_is_one_bound_less_than_partitions_and_they_are_in_order(
    keys: list[bytes], n: int
) -> None:
    bounds = choose_bounds(keys, n, range(len(keys)))
    assert len(bounds) == n - 1
    assert list(bounds) == sorted(bounds)


def test_a_uniform_sample_is_cut_evenly() -> None:
    sample = [n.to_bytes(2, "big") for n in range(1000)]
    bounds = choose_bounds(sample[::-1], 4)
    assert bounds == tuple(Bound(n.to_bytes(2, "big")) for n in (250, 500, 750))


def test_no_partition_gets_more_than_one_and_a_half_shares_with_ordinals() -> None:
    sample = [b"heavy"] * 330 + [b"half"] * 60 + [n.to_bytes(2, "big") for n in range(610)]
    rows = list(zip(sample, range(1000), strict=True))
    bounds = list(choose_bounds(sample, 8, range(1000)))

    sizes = Counter(bisect_right(bounds, row) for row in rows)
    assert max(sizes.values()) <= 1.5 * 125
    assert len(sizes) == 8


def test_a_light_key_is_never_cut() -> None:
    sample = [n.to_bytes(2, "big") for n in range(100) for _ in range(3)]
    assert {bound.ordinal for bound in choose_bounds(sample, 7, range(300))} == {0}


def test_without_ordinals_a_heavy_key_stays_whole() -> None:
    bounds = choose_bounds([b"a"] * 10 + [b"k"] * 80 + [b"z"] * 10, 4)
    assert bounds == (Bound(b"k"), Bound(b"k"), Bound(b"k"))


def test_without_a_sample_there_are_still_bounds() -> None:
    assert choose_bounds([], 3) == (Bound(b""), Bound(b""))


def test_heavy_keys_are_named_with_their_part() -> None:
    assert heavy_keys([b"k"] * 30 + [bytes([n]) for n in range(70)], 4) == {b"k": 0.3}
    assert heavy_keys([b"a", b"b"], 100) == {}
