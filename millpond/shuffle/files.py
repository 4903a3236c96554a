"""Rows to Parquet files, one per partition, in one pass: no part and no second read.

Rows wait, in partition order, until their budget is full; then each file gets a row group
of what waits for it. Several threads take batches, and later files, from each other: all
of it releases the interpreter's lock. Arrow's encoder takes half the time of DuckDB's; see
benchmarks/partition.py.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from millpond.engine.kernels import partition_numbers, reused_memory, row_numbers
from millpond.errors import MillpondError
from millpond.shuffle.write import checked, ordered
from millpond.storage.direct import BlockFile

_GROUP_BYTES = 32 << 20  # Of Arrow rows: more waits only where most rows are of few partitions.
_BLOCK_BYTES = 1 << 20  # There is one a file. Direct writes of 1 MiB are within 10 % of the best.
_SAMPLE_ROWS = 4096


def write_files(
    batches: Iterator[pa.RecordBatch],
    paths: Sequence[str],
    schema: pa.Schema,
    *,
    codec: str,
    budget_bytes: int,
    threads: int,
    check: Callable[[], None] = lambda: None,
) -> list[int]:
    """Write each row to the file whose number is its last column; the rows of each file.

    Takes `budget_bytes` for rows that wait, and a row group for each thread. Every path
    becomes a file, if only of a schema. `check` is called often; it raises to make an end.
    """
    files = _Files(paths, schema, codec, budget_bytes)
    lock = threading.Lock()

    def next_batch() -> pa.RecordBatch | None:
        with lock:
            return next(batches, None)

    def fill(_: int) -> bool:
        """Take batches until the budget is full; whether there may be more of them."""
        while not files.full:
            check()
            batch = next_batch()
            if batch is None:
                return False
            files.add(batch)
        return True

    def write(number: int) -> None:
        check()
        files.write(number)

    try:
        with ThreadPoolExecutor(threads, thread_name_prefix="write-files") as pool:
            more = True
            while more:
                more = all(list(pool.map(fill, range(threads))))
                list(pool.map(write, files.due(everything=not more)))
            list(pool.map(files.close, range(len(paths))))
        return files.counts()
    except BaseException:
        files.abort()
        raise


class _Files:
    """The files, and the rows that wait for each. Threads may add, or write different ones."""

    def __init__(
        self, paths: Sequence[str], schema: pa.Schema, codec: str, budget_bytes: int
    ) -> None:
        self._n, self._schema, self._codec, self._budget = len(paths), schema, codec, budget_bytes
        self._lock = threading.Lock()
        self._waiting: list[list[pa.RecordBatch]] = [[] for _ in paths]
        self._rows = np.zeros(len(paths), np.int64)  # Of those that wait.
        self._held_bytes = self._n_added = 0
        self._written = [0] * len(paths)
        self._coded: list[str] | None = None  # The columns with a dictionary.
        self._blocks: list[BlockFile] = []
        self._writers: list[pq.ParquetWriter | None] = [None] * len(paths)
        try:
            for path in paths:
                block = BlockFile(path, block_bytes=_BLOCK_BYTES, apart=False)
                self._blocks.append(block)
        except BaseException:
            self.abort()
            raise

    @property
    def full(self) -> bool:
        return self._held_bytes >= self._budget

    def add(self, batch: pa.RecordBatch) -> None:
        last = batch.num_columns - 1
        numbers = partition_numbers(batch.column(last), f"{self._n} files")
        numbers = checked(numbers, batch.num_rows, self._n)
        rows, offsets = ordered(batch.select(range(last)), numbers, self._n)
        edges = offsets.tolist()
        with self._lock:
            self._n_added += batch.num_rows
            self._held_bytes += rows.nbytes
            self._rows += np.diff(offsets)
            for number in np.flatnonzero(np.diff(offsets)).tolist():
                first, end = edges[number], edges[number + 1]
                self._waiting[number].append(rows.slice(first, end - first))

    def due(self, *, everything: bool) -> list[int]:
        """The files to write now, those with most rows first.

        One with less than half of its share waits on: rows of few partitions must not cut
        all other files into small row groups. Its rows are copied out of their batches.
        """
        if self._coded is None:
            self._coded = self._repetitive()
        total = int(self._rows.sum())
        due = np.flatnonzero(self._rows * 2 * self._n >= (1 if everything else max(total, 1)))
        kept = np.setdiff1d(np.flatnonzero(self._rows), due)
        self._held_bytes = 0
        for number in kept.tolist():
            (batch,) = self._taken(number).combine_chunks().to_batches()
            self._waiting[number] = [batch]
            self._held_bytes += batch.nbytes
        return [int(i) for i in due[np.argsort(-self._rows[due])]]

    def write(self, number: int) -> None:
        """A row group, or several, of what waits for a file."""
        table = self._taken(number)
        rows, self._rows[number] = table.num_rows, 0
        per_group = max(1, rows * _GROUP_BYTES // max(table.nbytes, 1))
        self._writer(number).write_table(table, row_group_size=min(max(rows, 1), per_group))
        self._written[number] += rows

    def close(self, number: int) -> None:
        self._writer(number).close()
        self._blocks[number].close()

    def counts(self) -> list[int]:
        if sum(self._written) != self._n_added:
            raise MillpondError(
                f"{self._n_added} rows were to be written, and {sum(self._written)} were. This "
                "is a fault of Millpond: please report it."
            )
        return self._written

    def abort(self) -> None:
        self._writers = []
        for block in self._blocks:
            block.abort()

    def _taken(self, number: int) -> pa.Table:
        batches, self._waiting[number] = self._waiting[number], []
        return pa.Table.from_batches(batches, self._schema)

    def _writer(self, number: int) -> pq.ParquetWriter:
        writer = self._writers[number]
        if writer is None:
            coded = self._coded or []
            ranged = [field.name for field in self._schema if not _is_long(field.type)]
            writer = self._writers[number] = pq.ParquetWriter(
                _Sink(self._blocks[number]), self._schema, compression=self._codec,
                use_dictionary=coded or False, write_statistics=ranged or False,
                store_decimal_as_integer=True, store_schema=False, memory_pool=reused_memory(),
            )  # fmt: skip
        return writer

    def _repetitive(self) -> list[str]:
        """Columns worth a dictionary, judged by the first rows that wait for some file.

        By values far apart: rows that lie side by side often share values that others do not.
        """
        most = int(self._rows.argmax())
        rows = pa.Table.from_batches(self._waiting[most], self._schema)
        n = min(_SAMPLE_ROWS, rows.num_rows)
        if not n:
            return []
        # A take of chunked columns is slow; the few rows of one file are copied first.
        places = np.linspace(0, rows.num_rows - 1, n).astype(np.int64)
        some = rows.combine_chunks().take(row_numbers(places))
        return [
            name for name in self._schema.names
            if pc.count_distinct(some.column(name), mode="all").as_py() * 2 <= n
        ]  # fmt: skip


def _is_long(kind: pa.DataType) -> bool:
    """Of a type whose smallest and largest values tell little, and cost most to find."""
    return bool(pa.types.is_string(kind) or pa.types.is_binary(kind))


class _Sink:
    """A `BlockFile` as Arrow's writers want it."""

    closed = False

    def __init__(self, block: BlockFile) -> None:
        self._block = block

    def write(self, data: pa.Buffer) -> int:
        self._block.append(memoryview(data))
        return len(memoryview(data))

    def flush(self) -> None:
        """Blocks are written when they are full."""
