"""The tasks of a sort of fixed-width records: bounds of ranges, records to them, a range sorted.

What `records.py` does within one task on one machine, as tasks of which each reads a split
or a range, from any storage. A record's ordinal is its split's number and its place there.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from millpond.engine.kernels import range_partition
from millpond.engine.record_sort import GATHER_BYTES, Rows, gather, sort_order
from millpond.errors import FileUnreadable
from millpond.formats.fixed import FixedWriter, Layout, as_rows, count, read_bytes, values
from millpond.formats.scan import FileSlice, Split
from millpond.shuffle.bounds import choose_bounds
from millpond.storage import Range, Storage

Open = Callable[[str], Storage]

# Reads of a sample, and rows of each: enough to fill ranges within 10 %, for 100 of them.
SAMPLES, SAMPLE_ROWS = 1024, 32
# A read of a store is a request, which costs milliseconds whatever it brings.
REMOTE_SAMPLES, REMOTE_SAMPLE_ROWS = 128, 256
_ORDINAL_BITS = 40  # Of the place within a split.
_BATCH_BYTES = 16 << 20


class Piece(NamedTuple):
    """Records of a file; `ordinal` is that of the first."""

    path: str
    first: int
    n: int
    ordinal: int


def pieces_of(splits: Sequence[Split], number: int, layout: Layout, open_: Open) -> list[Piece]:
    """The records of splits, of which the first is split `number` of its source."""
    found = []
    for i, split in enumerate(splits, number):
        ordinal = i << _ORDINAL_BITS
        for piece in split.slices:
            n = _n_rows(piece, layout, open_)
            found.append(Piece(piece.path, piece.first_row, n, ordinal))
            ordinal += n
    return found


def _n_rows(piece: FileSlice, layout: Layout, open_: Open) -> int:
    if piece.n_rows is not None:
        return piece.n_rows
    info = open_(piece.path).stat(piece.path)
    return count(info, layout) - piece.first_row if info else 0


def bounds(
    pieces: Sequence[Piece], layout: Layout, key: slice, n_ranges: int, open_: Open
) -> pa.RecordBatch:
    """The (key, ordinal) that cut the records into `n_ranges` even ranges, from a sample."""
    total, width = sum(piece.n for piece in pieces), layout.record_bytes
    keys: list[bytes] = []
    ordinals: list[int] = []
    for piece in pieces:
        near = open_(piece.path).local_path(piece.path) is not None
        reads, each = (SAMPLES, SAMPLE_ROWS) if near else (REMOTE_SAMPLES, REMOTE_SAMPLE_ROWS)
        n_reads = max(1, reads * piece.n // total) if piece.n else 0
        firsts = [piece.n * i // n_reads for i in range(n_reads)]
        sizes = [min(each, piece.n - first) for first in firsts]
        wanted = [
            Range(piece.path, (piece.first + first) * width, n * width)
            for first, n in zip(firsts, sizes, strict=True)
        ]
        for first, n, data in zip(firsts, sizes, open_(piece.path).read_many(wanted), strict=True):
            if len(data) < n * width:
                raise FileUnreadable(f"{piece.path}: became shorter since the plan was made.")
            rows = as_rows(data, layout)
            keys += (row[key].tobytes() for row in rows)
            ordinals += range(piece.ordinal + first, piece.ordinal + first + len(rows))
    chosen = choose_bounds(keys, n_ranges, ordinals)
    return pa.record_batch(
        [
            pa.array([bound.key for bound in chosen], pa.binary()),
            pa.array([bound.ordinal for bound in chosen], pa.uint64()),
        ],
        names=["key", "ordinal"],
    )


def records(
    pieces: Iterable[Piece], layout: Layout, key: slice, bounds: pa.Table, open_: Open
) -> Iterator[pa.RecordBatch]:
    """The records, and the number of the range of each."""
    edges = bounds.column("key").combine_chunks()
    edge_ordinals = np.asarray(bounds.column("ordinal").combine_chunks())
    for piece in pieces:
        ordinal = piece.ordinal
        some = FileSlice(piece.path, piece.first, piece.n)
        for data in read_bytes(open_(piece.path), some, layout, _BATCH_BYTES):
            rows = as_rows(data, layout)
            n = len(rows)
            ordinals = np.arange(ordinal, ordinal + n, dtype=np.uint64)
            keys = _column(np.ascontiguousarray(rows[:, key]))
            numbers = range_partition(keys, edges, ordinals, edge_ordinals)
            yield pa.record_batch(
                [_column(rows), pa.array(numbers.astype(np.uint32))], names=["record", "range"]
            )
            ordinal += n


def _column(rows: Rows) -> pa.BinaryArray:
    """Rows of bytes as a column. A view of them."""
    n, width = rows.shape
    places = np.arange(n + 1, dtype=np.int32) * np.int32(width)
    return pa.BinaryArray.from_buffers(
        pa.binary(), n, [None, pa.py_buffer(places), pa.py_buffer(rows)]
    )


def sort_range(
    batches: Iterable[pa.RecordBatch],
    layout: Layout,
    key: slice,
    path: str,
    check: Callable[[], None],
    *,
    direct_after: int | None = 0,
) -> None:
    """Records that came in input order to one sorted file; see `BlockFile` for `direct_after`."""
    width = layout.record_bytes
    held = [values(batch.column(0), "record", width) for batch in batches]
    rows = np.concatenate(held) if held else np.empty((0, width), np.uint8)
    held.clear()
    writer = FixedWriter(path, layout, direct_after=direct_after)
    memory = np.empty((max(1, GATHER_BYTES // 2 // width), width), np.uint8)
    try:
        for piece in gather(rows, sort_order(rows, key), memory):
            check()
            writer.add_bytes(piece)
        writer.close()
    except BaseException:
        writer.abort()
        raise
