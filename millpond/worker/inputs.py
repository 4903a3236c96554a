"""What a task reads, put within the reach of SQL: its splits, its parts, the step before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from millpond.engine.cursor import BATCH_ROWS, Cursor
from millpond.errors import MillpondError
from millpond.formats.rows import FORMATS, read_rows, schema_of
from millpond.formats.scan import Scan, Split, scan_sql
from millpond.physical.fragment import ORDINAL_NAME as NUMBER
from millpond.physical.fragment import TASK, reads_once
from millpond.physical.stages import PartRows, SplitRows, Task, ToPart
from millpond.schema import Schema
from millpond.shuffle.index import PartsUnreadable
from millpond.shuffle.read import read_part_rows
from millpond.storage import expect
from millpond.worker.streams import CountedRows, Stream
from millpond.worker.worker import Worker

if TYPE_CHECKING:
    import pyarrow as pa

# Batches of 8,000 to 120,000 rows cost DuckDB the same; see benchmarks/exchange.py.
_BATCH_BYTES, _ROWS_OF_ANY_WIDTH, _ROWS_AFTER_THAT = 16 << 20, 16_384, 256


class Inputs:
    """The inputs of one task; counts the rows of parts that it reads."""

    def __init__(self, task: Task, worker: Worker) -> None:
        self._task, self._worker = task, worker
        self._hashes = worker.options.verify == "rows"
        self._read: list[CountedRows] = []
        # What a stream raised while DuckDB read it: DuckDB only tells that something did.
        self.failure: MillpondError | PartsUnreadable | None = None
        self.bounds: pa.Table | None = None  # Keys and ordinals.

    @property
    def rows_in(self) -> int:
        return sum(rows.rows for rows in self._read)

    @property
    def hash_in(self) -> int | None:
        return sum(rows.hash for rows in self._read) % 2**64 if self._hashes else None

    def batch_rows(self, schema: Schema) -> int:
        """Rows of `schema` that make a batch of some megabytes, as far as the inputs tell."""
        wide = 0
        for item in self._task.inputs:
            if isinstance(item, PartRows) and (rows := sum(part.rows for part in item.parts)):
                wide = max(wide, sum(part.size_bytes for part in item.parts) // rows)
            elif isinstance(item, SplitRows):
                wide = max(wide, item.row_bytes)
        if wide:
            return max(1, min(BATCH_ROWS, _BATCH_BYTES // wide))
        known = all(map(_has_width, self._worker.engine.arrow_schema(schema).types))
        if known:
            return BATCH_ROWS
        # After it ran out of memory, rows may be wider than anybody knew.
        return _ROWS_OF_ANY_WIDTH if self._task.rows_at_once is None else _ROWS_AFTER_THAT

    def fail(self, error: MillpondError | PartsUnreadable) -> None:
        self.failure = self.failure or error

    def finish(self) -> None:
        """Read, and so verify and count, what the query left."""
        for rows in self._read:
            rows.finish()

    def bind(self, sql: str, cursor: Cursor) -> str:
        """The query with the task's inputs in reach of `cursor`."""
        sql, views = sql.replace(TASK, str(self._task.id.partition)), []
        for i, item in enumerate(self._task.inputs):
            name = f"__s{i}"
            match item:
                case SplitRows(scan, splits, first_row):
                    query = self._splits(name, scan, splits, sql, cursor)
                    if first_row is not None:
                        number = f"row_number() OVER () + {first_row - 1} AS {NUMBER}"
                        query = f"SELECT *, {number} FROM ({query})"
                    views.append(f"{name} AS NOT MATERIALIZED ({query})")
                case PartRows():
                    schema = self._worker.engine.arrow_schema(item.schema)
                    rows = self._part_rows(item, schema)
                    if self._is_bounds(i):
                        self.bounds = _table(rows(), schema).combine_chunks()
                    else:
                        stream = Stream(schema, rows, self.fail)
                        if item.first_row is not None:
                            stream = stream.numbered(NUMBER, item.first_row)
                        cursor.register_stream(name, stream, once=reads_once(sql, name))
        return f"WITH {', '.join(views)}\n{_nested(sql)}" if views else sql

    def part_batches(self, i: int) -> Iterator[pa.RecordBatch]:
        """The rows of parts that are input `i`, as they were written."""
        item = self._task.inputs[i]
        assert isinstance(item, PartRows)
        return self._part_rows(item, self._worker.engine.arrow_schema(item.schema))()

    def part_table(self, i: int) -> pa.Table:
        """The same, all of them: for inputs that are small."""
        item = self._task.inputs[i]
        assert isinstance(item, PartRows)
        return _table(self.part_batches(i), self._worker.engine.arrow_schema(item.schema))

    def bind_rows(
        self, sql: str, rows: Iterator[pa.RecordBatch], schema: Schema, cursor: Cursor
    ) -> None:
        """The rows of a step, which are there once, in reach of `cursor` as `__s0`."""
        stream = Stream(self._worker.engine.arrow_schema(schema), lambda: rows, self.fail)
        cursor.register_stream("__s0", stream, once=reads_once(sql, "__s0"), opens_again=False)

    def _splits(
        self, name: str, scan: Scan, splits: tuple[Split, ...], sql: str, cursor: Cursor
    ) -> str:
        paths = dict.fromkeys(s.path for split in splits for s in split.slices)
        # From now on the engine can read there, too.
        expect(self._worker.storage, list(paths), ends=scan.format == "parquet")
        table = ""
        held = [s.rows.table for s in splits if s.rows is not None]
        if held:
            table = f"__rows{name}"
            cursor.register(table, held[0] if len(held) == 1 else _together(held))
        elif scan.format in FORMATS:
            table = f"__rows{name}"
            stream = self._file_rows(scan, splits)
            cursor.register_stream(table, stream, once=reads_once(sql, name))
        return scan_sql(scan, splits, table)

    def _file_rows(self, scan: Scan, splits: Sequence[Split]) -> Stream:
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

        return Stream(schema, batches, self.fail)

    def _is_bounds(self, i: int) -> bool:
        output = self._task.output
        ranged = isinstance(output, ToPart) and output.how == "range"
        return ranged and i + 1 == len(self._task.inputs)

    def _part_rows(self, rows: PartRows, schema: pa.Schema) -> CountedRows:
        worker = self._worker

        def batches() -> Iterator[pa.RecordBatch]:
            ahead_bytes = worker.options.buffer_bytes
            return read_part_rows(
                rows,
                schema,
                worker.ranges,
                elsewhere=worker.elsewhere,
                ahead_bytes=ahead_bytes,
            )

        counted = CountedRows(batches, worker.engine if self._hashes else None)
        self._read.append(counted)
        return counted


def _has_width(kind: pa.DataType) -> bool:
    try:
        return bool(kind.bit_width)
    except ValueError:  # Text, lists: as wide as they are.
        return False


def _table(rows: Iterator[pa.RecordBatch], schema: pa.Schema) -> pa.Table:
    import pyarrow as pa

    return pa.Table.from_batches(list(rows), schema)


def _together(tables: Sequence[pa.Table]) -> pa.Table:
    import pyarrow as pa

    return pa.concat_tables(tables)


def _nested(sql: str) -> str:
    """SQL that may begin with its own WITH, below ours."""
    return f"SELECT * FROM (\n{sql}\n)" if sql.lstrip()[:4].upper() == "WITH" else sql
