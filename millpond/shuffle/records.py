"""Files of fixed-width records to sorted files, in bounded memory and without SQL.

What fits in memory is read once, sorted and written. What does not takes the way of
every exchange: a sample gives bounds, each split becomes a part with a segment per
range, and each range is then read, sorted and written: two reads and two writes per
byte. Rows with equal keys keep their input order, and a key that fills more than a
range is cut by row number, so skew costs neither time nor memory.
"""

import math
import mmap
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import accumulate
from queue import SimpleQueue
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from millpond.engine.kernels import range_partition
from millpond.engine.record_sort import Ints, Rows, gather, sort_order
from millpond.formats.fixed import FixedWriter, Layout, as_rows, count, values, whole
from millpond.physical.stages import PartRef, PartRows
from millpond.schema import Schema
from millpond.shuffle.bounds import Bound, choose_bounds
from millpond.shuffle.read import read_part_rows
from millpond.shuffle.write import Ordered, PartWriter, Written, checked, edges
from millpond.storage import FileInfo
from millpond.storage.direct import GRID, is_cached, page_aligned, read_direct, read_into

_READ_BYTES = 8 << 20
_SPLIT_BYTES = 512 << 20
_LEAST_RANGE_BYTES = _LEAST_RUN_BYTES = 1 << 20
# Reads of a sample, and rows of each: enough to fill ranges within 10 %, for 100 of them.
_SAMPLES, _SAMPLE_ROWS = 1024, 32


@dataclass(frozen=True, slots=True)
class RecordSort:
    """How to sort: by the bytes of one field, within so much memory, with so many threads.

    `check` is called again and again; it raises to make an end.
    """

    layout: Layout
    key: slice
    memory_bytes: int
    threads: int
    check: Callable[[], None] = lambda: None


@dataclass(frozen=True, slots=True)
class SortedFiles:
    """The files in order, and how many bytes were moved for them."""

    paths: tuple[str, ...]
    rows: int
    read_bytes: int
    written_bytes: int


@dataclass(frozen=True, slots=True)
class _Span:
    """Records of a file; `ordinal` numbers the first of them among all."""

    path: str
    first: int
    n: int
    ordinal: int


def sort_files(
    files: Sequence[FileInfo], name: Callable[[int], str], scratch: str, how: RecordSort
) -> SortedFiles:
    """Sort local files into `name(0)`, `name(1)`, …; temporary parts lie in `scratch`.

    Threads for which memory is too small (64 MB each) are left out.
    """
    counts = [count(file, how.layout) for file in files]
    starts = accumulate(counts, initial=0)
    spans = [
        _Span(file.path, 0, n, start) for file, n, start in zip(files, counts, starts, strict=False)
    ]
    # Besides the records: 8 bytes to sort and 16 for the order while ties are sought.
    needed = sum(counts) * (how.layout.record_bytes + 24) + how.threads * _READ_BYTES * 4
    in_memory = needed <= how.memory_bytes
    # By parts the disk is waited for: one thread more than cores keeps both at work.
    most = how.threads if in_memory else how.threads + 1
    how = replace(how, threads=max(1, min(most, how.memory_bytes // (64 << 20))))
    with ThreadPoolExecutor(how.threads, thread_name_prefix="record-sort") as pool:
        if in_memory:
            return _sort_in_memory(spans, name, how, pool)
        return _sort_by_parts(spans, name, scratch, how, pool)


# ---- in memory -----------------------------------------------------------------------


def _sort_in_memory(
    spans: Sequence[_Span], name: Callable[[int], str], how: RecordSort, pool: ThreadPoolExecutor
) -> SortedFiles:
    n, width = sum(span.n for span in spans), how.layout.record_bytes
    # Private memory without advice: huge pages, numpy's choice for large arrays, cost up to
    # ten times as much where the page cache has filled and fragmented the machine.
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    held = mmap.mmap(-1, max(n * width, 1), flags=flags)
    rows = np.frombuffer(held, np.uint8, n * width).reshape(n, width)
    pieces = [piece for span in spans for piece in _cut(span, max(1, _READ_BYTES // width))]

    def fill(piece: _Span) -> None:
        memory = rows[piece.ordinal : piece.ordinal + piece.n].reshape(-1).data
        _read(piece, memory, how, direct=False)

    list(pool.map(fill, pieces))
    order = sort_order(rows, how.key, pool.map)
    outputs = np.array_split(order, max(1, min(2 * how.threads, n)))

    def write(number: int) -> str:
        _write(rows, outputs[number], name(number), how)
        return name(number)

    paths = tuple(pool.map(write, range(len(outputs))))
    return SortedFiles(paths, n, n * width, n * width)


def _read(piece: _Span, memory: memoryview, how: RecordSort, *, direct: bool) -> None:
    """Fill `memory` with the records of `piece`, and what is after them if it is longer."""
    how.check()
    fd = os.open(piece.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        width = how.layout.record_bytes
        if read_into(fd, piece.first * width, memory, direct=direct) < piece.n * width:
            raise OSError(f"{piece.path}: became shorter while it was read")
    finally:
        os.close(fd)


def _write(rows: Rows, order: Ints, path: str, how: RecordSort) -> None:
    writer = FixedWriter(path, how.layout, direct_after=0)
    try:
        for piece in gather(rows, order, _memory(_READ_BYTES, how.layout.record_bytes)):
            how.check()
            writer.add_bytes(piece)
        writer.close()
    except BaseException:
        writer.abort()
        raise


def _memory(size_bytes: int, width: int) -> Rows:
    n = max(1, size_bytes // width)
    return np.frombuffer(page_aligned(n * width), np.uint8).reshape(n, width)


# ---- by parts ------------------------------------------------------------------------


def _sort_by_parts(
    spans: Sequence[_Span],
    name: Callable[[int], str],
    scratch: str,
    how: RecordSort,
    pool: ThreadPoolExecutor,
) -> SortedFiles:
    n, width = sum(span.n for span in spans), how.layout.record_bytes
    # A thread holds a run twice; or a range, its order, and some reads and writes under way.
    # Both as large as can be: each run has a segment of each range, so their number, and
    # with it the time per byte, grows with the data.
    range_bytes = max(how.memory_bytes // how.threads // 3, _LEAST_RANGE_BYTES)
    bounds = _bounds(_sample(spans, how), -(-n * width // range_bytes))
    step = _step(min(_SPLIT_BYTES, n * width // (2 * how.threads)), width)
    splits = [piece for span in spans for piece in _cut(span, step)]
    tasks = [_PartTask(i, split, f"{scratch}/{i:05d}.part") for i, split in enumerate(splits)]
    try:
        written = _write_parts(tasks, bounds, how, pool)
        rows = np.sum([np.frombuffer(each.partition_rows, "<i8") for each in written], axis=0)
        parts = tuple(map(_ref, tasks, written))
        paths = tuple(
            pool.map(lambda i: _sort_range(parts, i, int(rows[i]), name(i), how), range(len(rows)))
        )
    finally:
        for task in tasks:
            with suppress(FileNotFoundError):
                os.unlink(task.path)
    moved = sum(part.size_bytes for part in parts) + n * width
    return SortedFiles(paths, n, moved, moved)


class _Bounds(NamedTuple):
    keys: pa.Array
    ordinals: npt.NDArray[np.uint64]


class _PartTask(NamedTuple):
    number: int
    split: _Span
    path: str


def _sample(spans: Sequence[_Span], how: RecordSort) -> list[Bound]:
    """Some (key, ordinal) from all over the input."""
    total, width = sum(span.n for span in spans), how.layout.record_bytes
    found: list[Bound] = []
    for span in spans:
        n_reads = max(1, _SAMPLES * span.n // max(total, 1)) if span.n else 0
        with open(span.path, "rb", buffering=0) as file:
            for i in range(n_reads):
                first = span.n * i // n_reads
                file.seek(first * width)
                rows = as_rows(file.read(min(_SAMPLE_ROWS, span.n - first) * width), how.layout)
                found += (
                    Bound(row[how.key].tobytes(), span.ordinal + first + j)
                    for j, row in enumerate(rows)
                )
    return found


def _bounds(sample: Sequence[Bound], n_ranges: int) -> _Bounds:
    chosen = choose_bounds([b.key for b in sample], n_ranges, [b.ordinal for b in sample])
    return _Bounds(
        pa.array([b.key for b in chosen], pa.binary()),
        np.array([b.ordinal for b in chosen], np.uint64),
    )


class _RunMemory:
    """Room for a run as it is read and as it is written; overwritten by the next one.

    Fresh memory for each run would cost a page fault per 4 KiB: more than its sorting.
    """

    def __init__(self, run_bytes: int, width: int) -> None:
        self.n = _step(run_bytes, width)
        # Whole pages, and pages as they are: see `_sort_in_memory`.
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self.read = memoryview(mmap.mmap(-1, -(-self.n * width // GRID) * GRID, flags=flags))
        held = mmap.mmap(-1, self.n * width, flags=flags)
        self.moved = np.frombuffer(held, np.uint8).reshape(self.n, width)


def _write_parts(
    tasks: Sequence[_PartTask], bounds: _Bounds, how: RecordSort, pool: ThreadPoolExecutor
) -> list[Written]:
    run_bytes = max(how.memory_bytes // how.threads // 3, _LEAST_RUN_BYTES)
    spare: SimpleQueue[_RunMemory] = SimpleQueue()
    for _ in range(how.threads):
        spare.put(_RunMemory(run_bytes, how.layout.record_bytes))

    def write(task: _PartTask) -> Written:
        memory = spare.get()
        try:
            return _write_part(task, bounds, memory, how)
        finally:
            spare.put(memory)

    return list(pool.map(write, tasks))


def _write_part(task: _PartTask, bounds: _Bounds, memory: _RunMemory, how: RecordSort) -> Written:
    """The records of a split, by range."""
    width, n_ranges = how.layout.record_bytes, len(bounds.keys) + 1
    schema = pa.schema({"record": pa.binary(width)})
    writer = PartWriter(task.path, n_ranges, schema)
    try:
        for run in _cut(task.split, memory.n):
            numbers = [
                _numbered(piece, memory.read[(piece.first - run.first) * width :], bounds, how)
                for piece in _cut(run, _step(_READ_BYTES, width))
            ]
            of = checked(np.concatenate(numbers), run.n, n_ranges)
            read = as_rows(memory.read[: run.n * width], how.layout)
            # Stable on 8 or 16 bits is a radix sort: 100 M rows a second.
            (rows,) = gather(read, np.argsort(of, kind="stable"), memory.moved)
            batch = pa.record_batch([whole(rows.reshape(-1).data, how.layout)], schema)
            writer.add_run(Ordered(batch, edges(of, n_ranges)))
        return writer.close()
    except BaseException:
        writer.abort()
        raise


def _step(size_bytes: int, width: int) -> int:
    """Records of about so many bytes; of whole pages, if so many are."""
    pages = GRID // math.gcd(GRID, width)
    n = max(1, size_bytes // width)
    return n - n % pages or n


def _numbered(
    piece: _Span, memory: memoryview, bounds: _Bounds, how: RecordSort
) -> npt.NDArray[np.int64]:
    """Read some records into `memory`; the range of each.

    From the page cache if they seem to be there, else past it: to fill the cache with
    what is read once costs ten times the CPU of the read.
    """
    n_bytes = piece.n * how.layout.record_bytes
    direct = not is_cached(piece.path, piece.first * how.layout.record_bytes)
    _read(piece, memory[: -(-n_bytes // GRID) * GRID], how, direct=direct)
    return _numbers(as_rows(memory[:n_bytes], how.layout), piece, bounds, how)


def _numbers(rows: Rows, piece: _Span, bounds: _Bounds, how: RecordSort) -> npt.NDArray[np.int64]:
    keys = np.ascontiguousarray(rows[:, how.key])
    n, width = keys.shape
    column = pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), n, [None, pa.py_buffer(keys)])
    ordinals = np.arange(piece.ordinal, piece.ordinal + n, dtype=np.uint64)
    return range_partition(column, bounds.keys, ordinals, bounds.ordinals)


def _ref(task: _PartTask, written: Written) -> PartRef:
    return PartRef(
        stage=0, task=task.number, attempt=0, node="", path=task.path,
        size_bytes=written.size_bytes, n_partitions=len(written.partition_rows) // 8,
        n_runs=written.n_runs, index_offset=written.index_offset,
        index_checksum=written.index_checksum, rows=written.rows,
    )  # fmt: skip


def _sort_range(parts: tuple[PartRef, ...], number: int, n: int, path: str, how: RecordSort) -> str:
    """Read one range of all parts, sort it and write it."""
    width = how.layout.record_bytes
    rows, at = _memory(n * width, width)[:n], 0
    wanted = PartRows(0, Schema(()), first_partition=number, parts=parts)
    schema = pa.schema({"record": pa.binary(width)})
    for batch in read_part_rows(wanted, schema, _ranges, ahead_bytes=2 * _READ_BYTES, threads=1):
        how.check()
        rows[at : at + batch.num_rows] = values(batch.column(0), "record", width)
        at += batch.num_rows
    assert at == n, f"{at} of {n} records of range {number} were read"
    _write(rows, sort_order(rows, how.key), path, how)
    return path


def _ranges(ref: PartRef, ranges: Sequence[tuple[int, int]]) -> list[memoryview]:
    return read_direct(ref.path, ranges)


def _cut(span: _Span, step: int) -> list[_Span]:
    return [
        _Span(span.path, span.first + at, min(step, span.n - at), span.ordinal + at)
        for at in range(0, span.n, step)
    ]
