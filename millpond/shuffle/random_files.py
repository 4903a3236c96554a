"""Rows to Parquet files in a random order, in one pass: in memory as far as that goes.

Rows wait by the file they belong to. What comes when the budget is full is written to one
part, and read back file by file: bytes go to the disk and back only if they must.
"""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from millpond.engine.kernels import partition_numbers
from millpond.engine.parquet import Made
from millpond.errors import MillpondError, Transient
from millpond.physical.stages import PartRef, PartRows
from millpond.schema import Schema
from millpond.shuffle.index import PartsUnreadable
from millpond.shuffle.read import read_part_rows
from millpond.shuffle.write import Partitions, PartWriter, checked, ordered
from millpond.storage.direct import read_direct


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


def write_shuffled(
    batches: Iterator[pa.RecordBatch],
    paths: Sequence[str],
    how: Callable[[Iterator[pa.RecordBatch], str], Made],
    room: Room,
    check: Callable[[], None] = lambda: None,
) -> list[Made]:
    """Write each row to the file whose number is its last column, with `how`.

    `how` gets all rows of a file in any order, and makes it. `check` is called often; it
    raises to make an end.
    """
    rows, reading, large = _Rows(len(paths), room), threading.Lock(), threading.Lock()

    def next_batch() -> pa.RecordBatch | None:
        with reading:
            return next(batches, None)

    def fill(_: int) -> None:
        while (batch := next_batch()) is not None:
            check()
            rows.add(batch)

    def write(number: int) -> Made:
        check()
        if rows.size_bytes(number) <= room.large_bytes:
            return how(rows.of(number), paths[number])
        with large:
            return how(rows.of(number), paths[number])

    try:
        with ThreadPoolExecutor(room.threads, thread_name_prefix="write-files") as pool:
            list(pool.map(fill, range(room.threads)))
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


class _Rows:
    """The rows that wait for each file; threads may add, and then take those of different ones."""

    def __init__(self, n_files: int, room: Room) -> None:
        self._n, self._room = n_files, room
        self._lock, self._spilling = threading.Lock(), threading.Lock()
        self._waiting: list[list[pa.RecordBatch]] = [[] for _ in range(n_files)]
        self._held_bytes = self.n_rows = 0
        self._sizes = np.zeros(n_files)
        self._schema: pa.Schema | None = None
        self._writer: PartWriter | None = None
        self._part: PartRef | None = None

    def add(self, batch: pa.RecordBatch) -> None:
        last = batch.num_columns - 1
        numbers = partition_numbers(batch.column(last), f"{self._n} files")
        numbers = checked(numbers, batch.num_rows, self._n)
        kept = batch.select(range(last))
        counts = np.bincount(numbers, minlength=self._n)
        with self._lock:
            self._schema = kept.schema
            self.n_rows += kept.num_rows
            self._sizes += counts * (kept.nbytes / max(kept.num_rows, 1))
            fits = self._held_bytes + kept.nbytes <= self._room.held_bytes
            self._held_bytes += kept.nbytes if fits else 0
        if not fits:
            self._spill(kept, numbers)
            return
        rows, offsets = ordered(kept, numbers, self._n)
        edges = offsets.tolist()
        with self._lock:
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

    def _spill(self, batch: pa.RecordBatch, numbers: Partitions) -> None:
        with self._spilling:
            if self._writer is None:
                self._writer = PartWriter(
                    self._room.part, self._n, batch.schema, budget_bytes=self._room.buffer_bytes
                )
            self._writer.add(batch, numbers)


def _ranges(ref: PartRef, ranges: Sequence[tuple[int, int]]) -> list[memoryview]:
    return read_direct(ref.path, ranges)
