"""Rows to a part: batches and their partition numbers in, one file with an index out.

Batches are ordered by partition as they come and held until a run is full, so memory
is bounded by the budget whatever the number of partitions or rows. Within a partition
rows keep the order in which they were added.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from millpond.engine.kernels import row_numbers
from millpond.errors import MillpondError, SchemaMismatch
from millpond.shuffle import part
from millpond.storage.direct import BlockFile, reused_memory

# 64 MiB: larger runs gain nothing and cost fresh memory; see benchmarks/exchange.py.
RUN_BYTES = 64 << 20

# Of one partition, segments need not become large: they are written while more rows come, and given
# to a reader as soon as they are read and verified.
_ALONE_BYTES = 8 << 20

# A message costs about 9 µs whatever it holds: small slices are merged before they are
# written, where the number of partitions makes them small.
_ROWS_PER_MESSAGE = 400

Partitions = npt.NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True, slots=True)
class Written:
    """What became of a part: all that a `PartRef` and a `TaskResult` say of it."""

    size_bytes: int
    n_runs: int
    index_offset: int
    index_checksum: int
    rows: int
    partition_rows: bytes
    partition_bytes: bytes


class Ordered(NamedTuple):
    """Rows in partition order; partition p is at `offsets[p] : offsets[p + 1]`."""

    batch: pa.RecordBatch
    offsets: npt.NDArray[np.int64]


class PartWriter:
    """Writes one part. It ends with `close`, with `abort`, or with an error, which aborts.

    Memory: about twice `budget_bytes`, and two more copies of the largest batch. `hold` may
    take over a small part (see `BlockFile`). `cached_bytes` go through the page cache first.
    """

    def __init__(
        self,
        path: str,
        n_partitions: int,
        schema: pa.Schema,
        *,
        budget_bytes: int = RUN_BYTES,
        hold: Callable[[str, memoryview], bool] | None = None,
        cached_bytes: int = 0,
    ) -> None:
        assert n_partitions > 0
        for field in schema:
            if _has_dictionary(field.type):
                # The dictionary would be a message of its own, outside every segment.
                raise SchemaMismatch(
                    f"column {field.name!r} is {field.type}; a part takes plain types only."
                )
        self._n, self._schema = n_partitions, schema
        self._budget = budget_bytes if n_partitions > 1 else min(budget_bytes, _ALONE_BYTES)
        self._loose: list[tuple[pa.RecordBatch, Partitions]] = []
        self._ordered: list[Ordered] = []
        self._loose_rows = self._held_bytes = self._rows = 0
        self._runs: list[part.Entries] = []
        self._file = BlockFile(path, hold=hold, direct_after=cached_bytes)
        self._file.append(part.header(n_partitions))

    def add(self, batch: pa.RecordBatch, partition: npt.NDArray[Any] | None = None) -> None:
        """Add rows and the partition of each (None: all go to partition 0)."""
        with self._no_file_after_an_error():
            if batch.schema.types != self._schema.types:
                raise SchemaMismatch(
                    f"a batch has the columns ({_columns(batch.schema)}) where the stage "
                    f"writes ({_columns(self._schema)})."
                )
            numbers = checked(partition, batch.num_rows, self._n)
            for piece, some in _pieces(batch, numbers, self._budget):
                self._hold(piece, some)

    def add_run(self, rows: Ordered) -> None:
        """Write rows that are in order already as a run, at once: nothing of them is kept."""
        with self._no_file_after_an_error():
            self._flush()
            self._ordered = [rows]
            self._flush()

    def add_ordered(self, rows: Ordered) -> None:
        """Add rows that are in partition order already; they are kept until a run is full."""
        with self._no_file_after_an_error():
            self._order()
            self._ordered.append(rows)
            self._held_bytes += rows.batch.nbytes
            if self._held_bytes >= self._budget:
                self._flush()

    def close(self) -> Written:
        """Write what is held and the index. The file is complete."""
        with self._no_file_after_an_error():
            self._flush()
            index_offset = self._file.position
            index = part.index_bytes(self._runs, self._n)
            self._file.append(index)
            self._file.close()
        rows, size = part.counts(part.entries_of(index, self._n, len(self._runs)))
        return Written(
            size_bytes=self._file.position,
            n_runs=len(self._runs),
            index_offset=index_offset,
            index_checksum=part.index_checksum(index),
            rows=self._rows,
            partition_rows=rows,
            partition_bytes=size,
        )

    def abort(self) -> None:
        """Give up: no file is left."""
        self._file.abort()

    @contextmanager
    def _no_file_after_an_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.abort()
            raise

    def _hold(self, batch: pa.RecordBatch, numbers: Partitions) -> None:
        if not batch.num_rows:
            return
        self._loose.append((batch, numbers))
        self._loose_rows += batch.num_rows
        self._held_bytes += batch.nbytes
        if self._loose_rows >= self._n * _ROWS_PER_MESSAGE:
            self._order()
        if self._held_bytes >= self._budget:
            self._flush()

    def _order(self) -> None:
        """Turn what is loose into one batch in partition order."""
        if not self._loose:
            return
        batches, numbers = zip(*self._loose, strict=True)
        self._loose, self._loose_rows = [], 0
        one = batches[0]
        if len(batches) > 1:
            one = pa.concat_batches(batches, memory_pool=reused_memory())
        self._ordered.append(ordered(one, np.concatenate(numbers), self._n))

    def _flush(self) -> None:
        """Write what is held as one run."""
        self._order()
        if not self._ordered:
            return
        run, entries = len(self._runs), np.empty(self._n, part.ENTRY)
        for partition in range(self._n):
            entries[partition] = self._write_segment(partition, run)
        self._runs.append(entries)
        self._ordered, self._held_bytes = [], 0

    def _write_segment(self, partition: int, run: int) -> tuple[int, int, int, int]:
        offset, length, rows, pieces = self._file.position, 0, 0, []
        for batch, offsets in self._ordered:
            first, end = int(offsets[partition]), int(offsets[partition + 1])
            if first < end:
                pieces.append(part.encode_rows(batch.slice(first, end - first)))
                length, rows = length + len(pieces[-1]), rows + end - first
        if fill := part.padding(length):
            pieces.append(fill)
            length += len(fill)
        for piece in pieces:
            self._file.append(piece)
        self._rows += rows
        return offset, length, rows, part.checksum(pieces, (partition, run, offset, length, rows))


def checked(partition: npt.NDArray[Any] | None, n_rows: int, n: int) -> Partitions:
    """One number a row from 0 to `n` - 1, in the smallest type that holds them all."""
    number = np.min_scalar_type(n - 1)
    if partition is None:
        return np.zeros(n_rows, number)
    if len(partition) != n_rows:
        raise MillpondError(f"{n_rows} rows came with {len(partition)} partition numbers.")
    if len(partition):
        for extreme in (partition.max(), partition.min()):
            if not 0 <= extreme < n:
                raise MillpondError(
                    f"partition number {extreme} is out of range: there are {n} "
                    f"partitions, numbered from 0 to {n - 1}."
                )
    return partition.astype(number, copy=False)


def ordered(batch: pa.RecordBatch, numbers: Partitions, n: int) -> Ordered:
    if np.all(numbers[1:] >= numbers[:-1]):  # One partition, or in order already.
        return Ordered(batch, edges(numbers, n))
    # Stable on 8 or 16 bits is a radix sort: 100 M rows a second.
    places = row_numbers(np.argsort(numbers, kind="stable"))
    rows = pc.take(batch, places, boundscheck=False, memory_pool=reused_memory())
    return Ordered(rows, edges(numbers, n))


def edges(numbers: Partitions, n: int) -> npt.NDArray[np.int64]:
    """Where each partition begins among rows in partition order, and where the last ends."""
    offsets = np.zeros(n + 1, np.int64)
    np.cumsum(np.bincount(numbers, minlength=n), out=offsets[1:])
    return offsets


def _pieces(
    batch: pa.RecordBatch, numbers: Partitions, budget_bytes: int
) -> Iterator[tuple[pa.RecordBatch, Partitions]]:
    """The batch in slices of about the budget: usually itself."""
    n_pieces = min(batch.num_rows, -(-batch.nbytes // budget_bytes))
    if n_pieces <= 1:
        yield batch, numbers
        return
    step = -(-batch.num_rows // n_pieces)
    for first in range(0, batch.num_rows, step):
        yield batch.slice(first, step), numbers[first : first + step]


def _columns(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema)


def _has_dictionary(kind: pa.DataType) -> bool:
    inner = (kind.field(i).type for i in range(kind.num_fields))
    return pa.types.is_dictionary(kind) or any(_has_dictionary(k) for k in inner)
