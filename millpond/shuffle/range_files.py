"""Rows to Parquet files, each a range of their order, in one pass: in memory as far as that goes.

Rows wait by the file they belong to. What comes when the budget is full is written to one
part, and read back file by file: bytes go to the disk and back only if they must.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import Lock
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from millpond.engine.freed_memory import freed_memory_kept
from millpond.engine.parquet import Made
from millpond.errors import MillpondError, Transient
from millpond.physical.stages import PartRef, PartRows
from millpond.schema import Schema
from millpond.shuffle.index import PartsUnreadable
from millpond.shuffle.read import read_part_rows
from millpond.shuffle.write import Ordered, PartWriter, checked, ordered
from millpond.storage.direct import read_direct, reused_memory_kept

# Of a limit of 2 GB, a peak of 1.9 instead of 1.6 GB; of 512 MB it would be 0.7 instead of 0.5.
# A quarter of 2 GB, what a partitioned write within 2 GB has for rows that wait, is above it.
_KEPT_BYTES = 450 << 20

T = TypeVar("T")
R = TypeVar("R")
Numbered: TypeAlias = tuple[pa.RecordBatch, npt.NDArray[Any]]  # Rows, and the file of each.


@dataclass(frozen=True, slots=True)
class Room:
    """What may be taken: bytes of rows that wait, buffers and threads; and where a part may be.

    Of files with more than `large_bytes` of rows, one is put in order at a time.
    """

    held_bytes: int
    buffer_bytes: int
    large_bytes: int
    threads: int
    part: str


def write_ranges(
    batches: Iterator[pa.RecordBatch],
    paths: Sequence[str],
    numbered: Callable[[pa.RecordBatch], Numbered],
    how: Callable[[Iterator[pa.RecordBatch], float, str], Made],
    room: Room,
    check: Callable[[], None] = lambda: None,
) -> list[Made]:
    """Write each row to the file whose number `numbered` gives, with `how`.

    `how` gets all rows of a file as they came, and about how many bytes they take, and makes
    it. `check` is called often; it raises to make an end.
    """
    rows, large = _Rows(len(paths), room), Lock()

    def by_file(batch: pa.RecordBatch) -> Ordered:
        kept, numbers = numbered(batch)
        return ordered(kept, checked(numbers, kept.num_rows, len(paths)), len(paths))

    def write(number: int) -> Made:
        check()
        size = rows.size_bytes(number)
        if size <= room.large_bytes:
            return how(rows.of(number), size, paths[number])
        with large:
            return how(rows.of(number), size, paths[number])

    try:
        with (
            memory_kept(room.held_bytes),
            ThreadPoolExecutor(room.threads, thread_name_prefix="write-files") as pool,
        ):
            for some in in_turn(pool, by_file, batches, room.threads + 1):
                check()
                rows.add(some)
            rows.complete()
            made = list(pool.map(write, range(len(paths))))
        if rows.n_rows != (n := sum(file.rows for file in made)):
            raise MillpondError(
                f"{rows.n_rows} rows were to be written, and {n} were. This is a fault of "
                "Millpond: please report it."
            )
        return made
    except PartsUnreadable as error:
        raise Transient(f"rows that waited on the disk cannot be read: {error.reason}") from error
    finally:
        rows.forget()


@contextmanager
def memory_kept(size_bytes: int) -> Iterator[None]:
    """Memory that is freed meanwhile is used again, and not given back to the system, where so
    much is for rows that wait. Where memory is short, it is wanted elsewhere at once."""
    if size_bytes < _KEPT_BYTES:
        yield
        return
    with freed_memory_kept(), reused_memory_kept():
        yield


def in_turn(
    pool: ThreadPoolExecutor, call: Callable[[T], R], items: Iterator[T], ahead: int
) -> Iterator[R]:
    """What `call` makes of each item, in their order; of so many at once."""
    under_way: deque[Future[R]] = deque()
    for item in items:
        under_way.append(pool.submit(call, item))
        if len(under_way) == ahead:
            yield under_way.popleft().result()
    while under_way:
        yield under_way.popleft().result()


class _Rows:
    """The rows that wait for each file, in the order they came in."""

    def __init__(self, n_files: int, room: Room) -> None:
        self._n, self._room = n_files, room
        self._waiting: list[list[pa.RecordBatch]] = [[] for _ in range(n_files)]
        self._held_bytes = self.n_rows = 0
        self._sizes = np.zeros(n_files)
        self._schema: pa.Schema | None = None
        self._writer: PartWriter | None = None
        self._part: PartRef | None = None

    def add(self, some: Ordered) -> None:
        rows, offsets = some
        if not rows.num_rows:
            return
        counts = np.diff(offsets)
        self._schema = rows.schema
        self.n_rows += rows.num_rows
        self._sizes += counts * (rows.nbytes / rows.num_rows)
        if self._writer is not None or self._held_bytes + rows.nbytes > self._room.held_bytes:
            self._spill(some)  # And all that come later: their order is kept.
            return
        self._held_bytes += rows.nbytes
        edges = offsets.tolist()
        for number in np.flatnonzero(counts).tolist():
            first, end = edges[number], edges[number + 1]
            self._waiting[number].append(rows.slice(first, end - first))

    def complete(self) -> None:
        """All rows were added."""
        if self._writer is None:
            return
        written = self._writer.close()
        self._part = PartRef(
            0, 0, 0, "", self._room.part, written.size_bytes, self._n, written.n_runs,
            written.index_offset, written.index_checksum, written.rows,
        )  # fmt: skip

    def size_bytes(self, number: int) -> float:
        return float(self._sizes[number])

    def of(self, number: int) -> Iterator[pa.RecordBatch]:
        """The rows of a file; they are forgotten."""
        waiting, self._waiting[number] = self._waiting[number], []
        yield from waiting
        del waiting
        if self._part is not None:
            assert self._schema is not None
            wanted = PartRows(0, Schema(()), first_partition=number, parts=(self._part,))
            yield from read_part_rows(
                wanted, self._schema, _ranges, ahead_bytes=self._room.buffer_bytes
            )

    def forget(self) -> None:
        """No part is left."""
        if self._writer is not None and self._part is None:
            self._writer.abort()
        with suppress(FileNotFoundError):
            os.unlink(self._room.part)

    def _spill(self, some: Ordered) -> None:
        if self._writer is None:
            self._writer = PartWriter(
                self._room.part, self._n, some.batch.schema, budget_bytes=self._room.buffer_bytes
            )
        self._writer.add_ordered(some)


def _ranges(ref: PartRef, ranges: Sequence[tuple[int, int]]) -> list[memoryview]:
    return read_direct(ref.path, ranges)
