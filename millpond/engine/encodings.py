"""How the values of each column are written to a Parquet file, judged by some of them.

A dictionary where values come again; differences where integers, dates and small decimals lie
in a narrow range, so that a few bits hold each. Both are smaller than plain values and cost
less than to compress those. See benchmarks/partition.py.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from millpond.engine.kernels import Ints, row_numbers

_SAMPLE_ROWS, _SAMPLE_BYTES = 4096, 8 << 20
_RUN, _RUNS = 128, 32  # Rows side by side, as the encoder writes differences: blocks of them.
_MINI = 32  # Values of a block that take equally many bits.
# Differences are written in half the time of a dictionary, so they may take a little more.
_MORE_THAN_CODES = 1.2
# Of the bits of plain values: what is left of noise is not worth it.
_OF_PLAIN = 0.9


class Encodings(NamedTuple):
    """Columns with a dictionary, and those written as differences. All others are plain."""

    coded: Sequence[str] = ()
    deltas: Sequence[str] = ()


def encodings(batches: Sequence[pa.RecordBatch], schema: pa.Schema) -> Encodings:
    """What suits rows like these, written in the order in which they are here."""
    distinct, coded, deltas = _distinct(batches, schema), list[str](), list[str]()
    for i, field in enumerate(schema):
        plain_bits = _bits(field.type)
        bits = _delta_bits([b.column(i) for b in batches]) if plain_bits else None
        found = distinct.get(field.name)
        if bits is not None and bits <= (
            plain_bits * _OF_PLAIN
            if found is None
            else np.ceil(np.log2(max(found, 2))) * _MORE_THAN_CODES
        ):
            deltas.append(field.name)
        elif found is not None:
            coded.append(field.name)
    return Encodings(coded, deltas)


def _distinct(batches: Sequence[pa.RecordBatch], schema: pa.Schema) -> dict[str, int]:
    """Columns worth a dictionary and how many values they have, judged by values far apart.

    Rows that lie side by side often share values that others do not.
    """
    total = sum(batch.num_rows for batch in batches)
    size = sum(batch.nbytes for batch in batches)
    n = min(_SAMPLE_ROWS, _SAMPLE_BYTES * total // max(size, 1), total)
    if n < 2:
        return {field.name: 1 for field in schema if pa.types.is_dictionary(field.type)}
    places, some, start = np.linspace(0, total - 1, n).astype(np.int64), [], 0
    for batch in batches:
        first, end = np.searchsorted(places, [start, start + batch.num_rows])
        some.append(batch.take(row_numbers(places[first:end] - start)))
        start += batch.num_rows
    rows, found = pa.concat_batches(some), dict[str, int]()
    for name, column in zip(schema.names, rows.columns, strict=True):
        is_coded = pa.types.is_dictionary(column.type)
        count = 1 if is_coded else pc.count_distinct(column, mode="all").as_py()
        if is_coded or count * 2 <= n:
            found[name] = count
    return found


def _bits(kind: pa.DataType) -> int:
    """Of a value that a file holds as an integer; 0 of all others."""
    if pa.types.is_decimal(kind):
        return 0 if kind.precision > 18 else 64 if kind.precision > 9 else 32
    if pa.types.is_integer(kind):
        return 64 if kind.bit_width == 64 else 32
    return kind.bit_width if pa.types.is_date32(kind) or pa.types.is_timestamp(kind) else 0


def _delta_bits(column: Sequence[pa.Array]) -> float | None:
    """Bits a value takes as a difference to the one before, on average; None if there are few."""
    total, found = sum(map(len, column)), list[float]()
    starts = np.linspace(0, max(total - _RUN - 1, 0), _RUNS).astype(np.int64)
    edges = np.cumsum([0, *map(len, column)])
    for start, at in zip(starts, np.searchsorted(edges, starts, "right") - 1, strict=True):
        if start >= total:
            break
        run = column[at].slice(start - edges[at], _RUN + 1).drop_null()
        if len(run) > _RUN // 2:
            found.append(_bits_of_run(_integers(run)))
    return float(np.mean(found)) if found else None


def _bits_of_run(values: Ints) -> float:
    steps = np.diff(values)  # Wraps around, as the encoder's do.
    minis = [steps[i : i + _MINI] for i in range(0, len(steps), _MINI)]
    least = int(steps.min())
    head = 8 * len(minis) + 24  # The width of each, and the least difference.
    bits = sum(len(mini) * (int(mini.max()) - least).bit_length() for mini in minis)
    return (bits + head) / len(steps)


def _integers(column: pa.Array) -> Ints:
    """Values without NULLs as the integers that a file holds."""
    kind, (_, values) = column.type, column.buffers()
    if pa.types.is_decimal(kind):
        width = kind.byte_width // 8
        end = column.offset + len(column)
        return np.frombuffer(values, np.int64)[column.offset * width : end * width : width]
    letter = "u" if pa.types.is_unsigned_integer(kind) else "i"
    held = np.dtype(f"{letter}{kind.bit_width // 8}")
    return np.frombuffer(values, held, len(column), column.offset * held.itemsize).astype(np.int64)
