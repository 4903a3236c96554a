"""Rows on their way to DuckDB: streams that it may open again, and how much of them it read."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from millpond.engine.duckdb import Engine
from millpond.engine.offsets import from_zero
from millpond.engine.rows_hash import rows_hash
from millpond.errors import MillpondError
from millpond.shuffle.index import PartsUnreadable

if TYPE_CHECKING:
    import pyarrow as pa

_HASHED_BYTES = 8 << 20

Failed = Callable[[MillpondError | PartsUnreadable], None]


class Stream:
    """Rows that `rows()` gives anew each time, for DuckDB by Arrow's C stream interface.

    DuckDB tells only that a stream failed: `failed` gets the error itself.
    """

    def __init__(
        self, schema: pa.Schema, rows: Callable[[], Iterator[pa.RecordBatch]], failed: Failed
    ) -> None:
        self.schema, self._rows, self._failed = schema, rows, failed

    def numbered(self, name: str, first: int) -> Stream:
        """The same rows with their numbers, from `first` on, as a last column."""
        import numpy as np
        import pyarrow as pa

        from millpond.engine.kernels import row_numbers

        def rows() -> Iterator[pa.RecordBatch]:
            after = first
            for batch in self._rows():
                numbers = row_numbers(np.arange(after, after + batch.num_rows))
                after += batch.num_rows
                yield pa.RecordBatch.from_arrays([*batch.columns, numbers], schema=schema)

        schema = self.schema.append(pa.field(name, pa.int64()))
        return Stream(schema, rows, self._failed)

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        import pyarrow as pa

        stream = pa.RecordBatchReader.from_batches(self.schema, self._kept())
        return stream.__arrow_c_stream__(requested_schema)

    def _kept(self) -> Iterator[pa.RecordBatch]:
        try:
            for batch in self._rows():
                yield from_zero(batch)
        except (MillpondError, PartsUnreadable) as error:
            self._failed(error)
            raise


class CountedRows:
    """Rows of parts, counted (and hashed, if asked) as they are read; a second pass is not.

    `finish` reads what the query left: every segment that the plan gave to a task is
    read once and verified, whatever DuckDB found that it could do without.
    """

    def __init__(
        self, open_rows: Callable[[], Iterator[pa.RecordBatch]], hashed_by: Engine | None
    ) -> None:
        self._open, self._engine = open_rows, hashed_by
        self._first = open_rows()
        self._taken = False
        self._lock = threading.Lock()  # DuckDB reads from any of its threads.
        self._held: list[pa.RecordBatch] = []
        self._held_bytes = 0
        self.rows = 0
        self.hash = 0

    def __call__(self) -> Iterator[pa.RecordBatch]:
        with self._lock:
            again, self._taken = self._taken, True
        return self._open() if again else self._counted()

    def finish(self) -> None:
        for _ in self._counted():
            pass
        self._add_hash()

    def _counted(self) -> Iterator[pa.RecordBatch]:
        while True:
            with self._lock:
                batch = next(self._first, None)
                if batch is None:
                    return
                self.rows += batch.num_rows
                if self._engine is not None:
                    self._held.append(batch)
                    self._held_bytes += batch.nbytes
                    if self._held_bytes > _HASHED_BYTES:
                        self._add_hash()
            yield batch

    def _add_hash(self) -> None:
        import pyarrow as pa

        if self._engine is not None and self._held:
            found = rows_hash(self._engine, pa.Table.from_batches(self._held))
            self.hash = (self.hash + found) % 2**64
        self._held, self._held_bytes = [], 0
