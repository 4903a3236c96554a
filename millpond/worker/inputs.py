"""What a task reads, put within the reach of SQL: its splits, its parts, the step before."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from millpond.engine.duckdb import Cursor
from millpond.engine.rows_hash import rows_hash
from millpond.errors import MillpondError
from millpond.formats.rows import FORMATS, read_rows, schema_of
from millpond.formats.scan import Scan, Split, scan_sql
from millpond.physical.stages import PartRows, SplitRows, Task, ToPart
from millpond.schema import Schema
from millpond.shuffle.read import read_part_rows
from millpond.worker.worker import Worker

if TYPE_CHECKING:
    import pyarrow as pa


class Inputs:
    """The inputs of one task; counts the rows of parts that it reads."""

    def __init__(self, task: Task, worker: Worker) -> None:
        self._task, self._worker = task, worker
        self.rows_in = 0
        self.hash_in = 0 if worker.options.verify == "rows" else None
        # What a stream raised while DuckDB read it: DuckDB only tells that something did.
        self.failure: MillpondError | None = None
        self.bounds: pa.Array | None = None

    def fail(self, error: MillpondError) -> None:
        self.failure = self.failure or error

    def bind(self, sql: str, cursor: Cursor) -> str:
        """The query with the task's inputs in reach of `cursor`."""
        views = []
        for i, item in enumerate(self._task.inputs):
            name = f"__s{i}"
            match item:
                case SplitRows(scan, splits):
                    views.append(self._splits(name, scan, splits, sql, cursor))
                case PartRows():
                    table = self._part_rows(item)
                    if self._is_bounds(i):
                        self.bounds = table.column(0).combine_chunks()
                    else:
                        cursor.register(name, table)
        return f"WITH {', '.join(views)}\n{_nested(sql)}" if views else sql

    def stream(self, rows: Iterable[pa.RecordBatch], schema: Schema) -> pa.RecordBatchReader:
        """Rows of a step for DuckDB or for Arrow; an error of theirs is kept."""
        return self._reader(rows, self._worker.engine.arrow_schema(schema))

    def _splits(
        self, name: str, scan: Scan, splits: tuple[Split, ...], sql: str, cursor: Cursor
    ) -> str:
        for path in {s.path for split in splits for s in split.slices}:
            self._worker.storage(path)  # From now on the engine can read there.
        table = ""
        held = [s.rows.table for s in splits if s.rows is not None]
        if held:
            table = f"__rows{name}"
            cursor.register(table, held[0] if len(held) == 1 else _together(held))
        how = "NOT MATERIALIZED"
        if scan.format in FORMATS and not table:
            table = f"__rows{name}"
            cursor.register(table, self._file_rows(scan, splits))
            # A stream is read once, however often the query names it; but what
            # is materialized loses its order, so only where it must be.
            how = how if _names_once(sql, name) else "MATERIALIZED"
        return f"{name} AS {how} ({scan_sql(scan, splits, table)})"

    def _file_rows(self, scan: Scan, splits: Sequence[Split]) -> pa.RecordBatchReader:
        """Rows of a format that DuckDB does not read by itself."""
        import pyarrow as pa

        storage = self._worker.storage
        slices = [piece for split in splits for piece in split.slices]
        schema = self._worker.engine.arrow_schema(scan.schema)
        if scan.format == "arrow" and slices:  # Its own types; the query casts.
            own = schema_of(storage(slices[0].path), slices[0].path)
            schema = pa.schema([own.field(name) for name in scan.schema.names])

        def batches() -> Iterator[pa.RecordBatch]:
            for piece in slices:
                for batch in read_rows(scan, [piece], storage(piece.path)):
                    yield batch if batch.schema == schema else batch.cast(schema)

        return self._reader(batches(), schema)

    def _reader(self, rows: Iterable[pa.RecordBatch], schema: pa.Schema) -> pa.RecordBatchReader:
        import pyarrow as pa

        def kept() -> Iterator[pa.RecordBatch]:
            try:
                yield from rows
            except MillpondError as error:
                self.fail(error)
                raise

        return pa.RecordBatchReader.from_batches(schema, kept())

    def _is_bounds(self, i: int) -> bool:
        output = self._task.output
        ranged = isinstance(output, ToPart) and output.how == "range"
        return ranged and i + 1 == len(self._task.inputs)

    def _part_rows(self, rows: PartRows) -> pa.Table:
        import pyarrow as pa

        worker = self._worker
        schema = worker.engine.arrow_schema(rows.schema)
        table = pa.Table.from_batches(read_part_rows(rows, schema, worker.ranges), schema)
        self.rows_in += table.num_rows
        if self.hash_in is not None:
            self.hash_in = (self.hash_in + rows_hash(worker.engine, table)) % 2**64
        return table


def _together(tables: Sequence[pa.Table]) -> pa.Table:
    import pyarrow as pa

    return pa.concat_tables(tables)


def _names_once(sql: str, name: str) -> bool:
    """Whether a query reads `name` once, by sight: below a WITH it may be read again."""
    return sql.count(name) == 1 and "WITH" not in sql.upper()


def _nested(sql: str) -> str:
    """SQL that may begin with its own WITH, below ours."""
    return f"SELECT * FROM (\n{sql}\n)" if sql.lstrip()[:4].upper() == "WITH" else sql
