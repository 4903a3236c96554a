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

from millpond.engine.encodings import Encodings, encodings
from millpond.engine.kernels import partition_numbers
from millpond.engine.parquet import Made, ParquetFile
from millpond.errors import MillpondError
from millpond.shuffle.range_files import memory_kept
from millpond.shuffle.write import checked, ordered

_BLOCK_BYTES = 1 << 20  # There is one a file. Direct writes of 1 MiB are within 10 % of the best.


def write_files(
    batches: Iterator[pa.RecordBatch],
    paths: Sequence[str],
    schema: pa.Schema,
    texts: Callable[[pa.Table], pa.Table] = lambda rows: rows,
    *,
    codec: str,
    budget_bytes: int,
    threads: int,
    check: Callable[[], None] = lambda: None,
) -> list[Made]:
    """Write each row to the file whose number is its last column, as `texts` makes it.

    Takes `budget_bytes` for rows that wait, and a row group for each thread. Every path
    becomes a file, if only of a schema. `check` is called often; it raises to make an end.
    """
    files = _Files(paths, schema, texts, codec, budget_bytes)
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
        with (
            memory_kept(budget_bytes),
            ThreadPoolExecutor(threads, thread_name_prefix="write-files") as pool,
        ):
            more = True
            while more:
                more = all(list(pool.map(fill, range(threads))))
                list(pool.map(write, files.due(everything=not more)))
            made = list(pool.map(files.close, range(len(paths))))
        files.check(made)
        return made
    except BaseException:
        files.abort()
        raise


class _Files:
    """The files, and the rows that wait for each. Threads may add, or write different ones."""

    def __init__(
        self, paths: Sequence[str], schema: pa.Schema,
        texts: Callable[[pa.Table], pa.Table], codec: str, budget_bytes: int,
    ) -> None:  # fmt: skip
        self._texts = texts
        self._n, self._schema, self._budget = len(paths), schema, budget_bytes
        self._lock = threading.Lock()
        self._waiting: list[list[pa.RecordBatch]] = [[] for _ in paths]
        self._rows = np.zeros(len(paths), np.int64)  # Of those that wait.
        self._held_bytes = self._n_added = 0
        self._how: Encodings | None = None
        self._files: list[ParquetFile] = []
        try:
            for path in paths:
                file = ParquetFile(path, schema, codec, block_bytes=_BLOCK_BYTES, apart=False)
                self._files.append(file)
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
        if self._how is None:
            most = self._waiting[int(self._rows.argmax())]
            some = self._texts(pa.Table.from_batches(most)).to_batches() if most else []
            self._how = encodings(some, self._schema)
        total = int(self._rows.sum())
        due = np.flatnonzero(self._rows * 2 * self._n >= (1 if everything else max(total, 1)))
        kept = np.setdiff1d(np.flatnonzero(self._rows), due)
        self._held_bytes = 0
        for number in kept.tolist():
            (batch,) = pa.Table.from_batches(self._taken(number)).combine_chunks().to_batches()
            self._waiting[number] = [batch]
            self._held_bytes += batch.nbytes
        return [int(i) for i in due[np.argsort(-self._rows[due])]]

    def write(self, number: int) -> None:
        """A row group, or several, of what waits for a file."""
        self._rows[number] = 0
        rows = self._texts(pa.Table.from_batches(self._taken(number)))
        self._files[number].write(rows, self._how or Encodings())

    def close(self, number: int) -> Made:
        return self._files[number].close()

    def check(self, made: Sequence[Made]) -> None:
        if (rows := sum(file.rows for file in made)) != self._n_added:
            raise MillpondError(
                f"{self._n_added} rows were to be written, and {rows} were. This is a fault of "
                "Millpond: please report it."
            )

    def abort(self) -> None:
        for file in self._files:
            file.abort()

    def _taken(self, number: int) -> list[pa.RecordBatch]:
        batches, self._waiting[number] = self._waiting[number], []
        return batches
