"""One connection of DuckDB, and what is registered with it: tables, streams, functions.

What a task leaves behind where it did no more than ask a query of streams is kept: to register
streams and to bind the query take DuckDB longer than to run it on a few rows, so the next task
of a stage puts its own streams in their place.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from millpond.engine.offsets import from_zero
from millpond.errors import MillpondError
from millpond.expr import quote

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_ROWS = 122_880  # DuckDB's row group; see benchmarks/exchange.py.

Errors = Callable[[], AbstractContextManager[None]]


class ArrowStream(Protocol):
    """Rows that DuckDB may ask for more than once."""

    @property
    def schema(self) -> pa.Schema: ...

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any: ...


class _Slot:
    """What is registered in a stream's place."""

    def __init__(self, stream: ArrowStream) -> None:
        self.schema = stream.schema
        self.stream: ArrowStream | None = stream

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        if (
            self.stream is None
        ):  # Nobody wants rows; DuckDB may want the columns of all that it has.
            import pyarrow as pa

            return pa.Table.from_batches([], self.schema).__arrow_c_stream__(requested_schema)
        return self.stream.__arrow_c_stream__(requested_schema)


@dataclass(slots=True)
class Connection:
    """DuckDB's own, the streams it knows, and the query of them that it was last asked."""

    raw: Any
    root: object  # The instance.
    slots: dict[str, _Slot] = field(default_factory=dict)
    sql: str = ""
    relation: Any = None


class Cursor:
    """A connection for one piece of work, and the tables registered with it.

    `errors` turns what DuckDB raises into ours. Where `reopens`, DuckDB opens a stream for each
    scan, and not when it is registered.
    """

    def __init__(self, connection: Connection, errors: Errors, *, reopens: bool) -> None:
        self._connection, self._errors, self._reopens = connection, errors, reopens
        self._raw = connection.raw
        self._functions: list[str] = []
        self._registered: list[str] = []
        self._tables: set[str] = set()
        self._stream: pa.RecordBatchReader | None = None
        self._only_streams = True  # Nothing but queries of streams, and those to their ends.
        self._lock = threading.Lock()

    def register(self, name: str, rows: pa.Table | pa.RecordBatchReader) -> None:
        """Let SQL read an Arrow table (any number of times) or reader (once) as `name`."""
        self._only_streams = False
        self._clear(name)
        # An Arrow table; a reader, and what else gives a stream, sees to its own batches.
        self._raw.register(name, from_zero(rows) if hasattr(rows, "set_column") else rows)
        self._registered.append(name)

    def register_stream(
        self, name: str, rows: ArrowStream, *, once: bool, opens_again: bool = True
    ) -> None:
        """Let SQL read an Arrow stream as `name`, any number of times if not `once`.

        DuckDB 2 opens a stream for each scan, DuckDB 1.4 opens it here. Where that is too
        seldom, its rows go into a table, which spills.
        """
        if not once and not (opens_again and self._reopens):
            self._raw.register("__stream", rows)
            try:
                self.keep(name, "FROM __stream")
            finally:
                self._raw.unregister("__stream")
        elif self._reopens:
            self._put(name, rows)
        else:
            self.register(name, rows)

    def _put(self, name: str, rows: ArrowStream) -> None:
        known = self._connection
        slot = known.slots.get(name)
        if slot is not None and slot.schema.equals(rows.schema):
            slot.stream = rows
            return
        self._clear(name)
        known.slots[name], known.sql = _Slot(rows), ""
        self._raw.register(name, known.slots[name])

    def _clear(self, name: str) -> None:
        """Let a name be another's that was the place of a stream."""
        if self._connection.slots.pop(name, None) is not None:
            self._raw.unregister(name)

    def keep(self, name: str, sql: str) -> None:
        """Let SQL read the result as `name`, any number of times: a table, which spills."""
        self._clear(name)
        self.run(f"CREATE OR REPLACE TEMP TABLE {quote.name(name)} AS {sql}")
        self._tables.add(name)

    def forget(self) -> None:
        """Let go of everything that was registered, and of a stream left in the middle."""
        if self._stream is not None:
            self._stream.close()
        for name in (*self._registered, *self._connection.slots):
            self._raw.unregister(name)
        self._registered.clear()
        self._connection.slots.clear()
        for name in self._tables:
            self.run(f"DROP TABLE {quote.name(name)}")
        self._tables.clear()

    def function(
        self, name: str, call: Callable[..., Any], parameters: Sequence[str], returns: str
    ) -> None:
        """Let SQL call `call`, with Arrow arrays, as `name`, until this cursor is closed.

        A macro has the name, since it may be that of a function of DuckDB's own.
        """
        self._only_streams = False
        inner, given = f"__udf_{name}", ", ".join(f"a{i}" for i in range(len(parameters)))
        with self._errors():
            self._raw.create_function(
                inner, call, list(parameters), returns, type="arrow", null_handling="special",
                side_effects=True,
            )  # fmt: skip
        self._functions.append(inner)
        self.run(f"CREATE TEMP MACRO {quote.name(name)}({given}) AS {quote.name(inner)}({given})")

    def close(self) -> None:
        for name in self._functions:
            self._raw.remove_function(name)
        self._raw.close()

    def release(self) -> Connection | None:
        """Give the connection back for other streams; None if it is closed instead."""
        with self._lock:  # An interrupt that comes later is not for whoever has it then.
            if not self._only_streams or self._connection.relation is None:
                self.close()
                return None
            self._raw = None
        for slot in self._connection.slots.values():
            slot.stream = None
        return self._connection

    def run(self, sql: str) -> None:
        self._only_streams = False
        with self._errors():
            self._raw.execute(sql).fetchall()

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        self._only_streams = False
        with self._errors():
            found: list[tuple[Any, ...]] = self._raw.execute(sql).fetchall()
        return found

    def record(self, sql: str) -> dict[str, Any]:
        """The only row, by column."""
        self._only_streams = False
        with self._errors():
            result = self._raw.execute(sql)
            names = [column[0] for column in result.description]
            return dict(zip(names, result.fetchone(), strict=True))

    def reader(self, sql: str, batch_rows: int = BATCH_ROWS) -> Iterator[pa.RecordBatch]:
        """The result as a stream of record batches; the cursor is busy until it ends."""
        only_streams, self._only_streams = self._only_streams, False
        with self._errors():
            relation = self._relation(sql)
            # DuckDB 2 renamed the method; 1.4 knows the old one only.
            make = getattr(relation, "to_arrow_reader", None) or relation.fetch_arrow_reader
            reader = self._stream = make(batch_rows)
        while True:
            with self._errors():
                try:
                    batch = reader.read_next_batch()
                except StopIteration:
                    self._only_streams = only_streams
                    return
            yield batch

    def _relation(self, sql: str) -> Any:
        known = self._connection
        if known.sql == sql:
            return known.relation
        relation = self._raw.sql(sql)
        if known.slots:
            known.sql, known.relation = sql, relation
        return relation

    def schema(self, sql: str) -> pa.Schema:
        """The columns of the result, in Arrow."""
        return self.table(f"SELECT * FROM (\n{sql}\n) LIMIT 0").schema

    def table(self, sql: str) -> pa.Table:
        """The whole result in memory."""
        self._only_streams = False
        with self._errors():
            relation = self._raw.sql(sql)
            make = getattr(relation, "to_arrow_table", None) or relation.fetch_arrow_table
            return make()

    def copy(self, sql: str, path: str, format: str, options: tuple[tuple[str, str], ...]) -> int:
        """Write the result to one file; gives the number of rows."""
        return int(self.rows(quote.copy(sql, path, format, options))[0][0])

    def copy_apart(
        self, sql: str, folder: str, options: tuple[tuple[str, str], ...], keys: Sequence[str]
    ) -> list[tuple[str, int]]:
        """Write the result into folders of Parquet by `keys`; path and rows of each file."""
        told = {**dict(options), "partition_by": f"({quote.names(keys)})",
                "filename_pattern": "'{i}'", "return_stats": "true"}  # fmt: skip
        found = self.rows(quote.copy(sql, folder, "parquet", told.items()))
        return [(str(row[0]), int(row[1])) for row in found]

    def interrupt(self) -> None:
        """End what the cursor does; nothing happens if it has ended, or is closed, already."""
        with self._lock, suppress(MillpondError), self._errors():
            self._only_streams = False
            if self._raw is not None:
                self._raw.interrupt()
