"""Owns every DuckDB connection of a process: limits, lock-down, errors; what words mean.

One instance per process (a new one costs 13 ms), one cursor per piece of work: a
DuckDB connection holds one unfinished result at a time. User SQL can read no Python
variable, install or load no extension, and change no setting.
"""

from __future__ import annotations

import errno
import json
import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import duckdb

from millpond.engine.cursor import Connection, Cursor
from millpond.engine.intervals import with_equal_intervals
from millpond.errors import (
    DiskFull,
    FileUnreadable,
    MillpondError,
    OutOfMemory,
    SchemaMismatch,
    SqlError,
    WorkerLost,
)
from millpond.expr import Dialect, SortKey, quote
from millpond.schema import Schema
from millpond.storage import RemoteFiles

if TYPE_CHECKING:
    import pyarrow as pa

VERSION: str = duckdb.__version__
CLOSED = "this session is closed; open another with millpond.init()."
FORKED = (
    "this session belongs to the process that opened it, and DuckDB's threads do not outlive a "
    "fork. Open another with millpond.init() in the child, or start it by spawn or forkserver."
)
_AHEAD_BYTES = 32 * 2**20  # A scan and a function run at once; see benchmarks/functions.py.
_NOT_IN_DUCKDB = ("halffloat", "decimal256")  # Arrow's words.
_LOW_DISK_BYTES = 16 * 2**20
_TOO_LONG = "The maximum total string size for regular string buffers"
_NO_SPACE = tuple(map(os.strerror, (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)))


class Engine:
    """DuckDB in this process, within `threads` and `memory_limit_bytes`, spilling to `scratch`."""

    def __init__(self, *, threads: int, memory_limit_bytes: int, scratch: str) -> None:
        self.scratch = scratch
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self.deputy: Engine | None = None  # What works for it meanwhile, with more memory.
        self._files: list[RemoteFiles] = []
        self._config: dict[str, Any] = {
            "threads": threads,
            "memory_limit": f"{memory_limit_bytes}B",
            "preserve_insertion_order": True,
            "python_enable_replacements": False,
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "allow_community_extensions": False,
            "allow_persistent_secrets": False,
            # It would give old rows of a remote file that was replaced within a second.
            "enable_external_file_cache": False,
        }
        self._arrow_schema = lru_cache(maxsize=512)(self._find_arrow_schema)
        self._opened = 0
        self._open()

    def _open(self) -> None:
        # A folder of its own: an instance that is left removes what it spilled when it likes.
        spill = os.path.join(self.scratch, f"spill{self._opened or ''}")
        self._opened += 1
        self._root = duckdb.connect(":memory:", config={**self._config, "temp_directory": spill})
        self._root.execute("SET TimeZone = 'UTC'")
        # One cursor tells how far its statement is, and lets a stream run ahead of its reader:
        # the settings are a connection's own, and have to be made before the lock.
        self._watched = self._root.cursor()
        self._watched.execute(f"SET streaming_buffer_size = '{_AHEAD_BYTES}B'")
        self._watched.execute("SET enable_progress_bar = true")
        self._watched.execute("SET enable_progress_bar_print = false")
        self._watched_is_free = True
        self._idle: list[Connection] = []  # Left by cursors, to be used again.
        self._root.execute("SET lock_configuration = true")
        for files in self._files:
            self._root.register_filesystem(files.filesystem())

    @contextmanager
    def _errors(self, instance: object) -> Iterator[None]:
        try:
            yield
        except (duckdb.Error, OSError) as error:
            if (failure := self.failure_in(error)) is not None:
                raise failure from None
            # pyarrow wraps what a DuckDB stream raises while it is read: only its text is left.
            own = error if isinstance(error, duckdb.Error) else _named(str(error))
            if isinstance(own, duckdb.FatalException | duckdb.InternalException):
                self.drop(instance)
            raise translated(own, self.scratch) from error

    def drop(self, instance: object) -> None:
        """Leave an instance of DuckDB that failed inside, and so refuses all that comes after.

        `instance` is that of the cursor which met it. Others that are at work there fail, too:
        their tasks are tried again.
        """
        with self._lock:
            if instance is self._root:
                self._open()

    @property
    def dialect(self) -> Dialect:
        return Dialect(self.parse, self.unparse, self.describe, self.explain)

    @contextmanager
    def cursor(self) -> Iterator[Cursor]:
        """A cursor of one's own; closed, and its tables forgotten, at the end."""
        cursor = self._made(self._connected())
        try:
            yield cursor
        finally:
            cursor.close()

    @contextmanager
    def kept_cursor(self) -> Iterator[Cursor]:
        """As `cursor`, perhaps on the connection that an earlier one has left as it found it."""
        self._check_process()
        with self._lock:
            connection = self._idle.pop() if self._idle else None
        cursor = self._made(connection or self._connected())
        try:
            yield cursor
        except BaseException:
            cursor.close()
            raise
        left = cursor.release()
        with self._lock:
            if left and left.root is self._root and len(self._idle) < self._config["threads"]:
                self._idle.append(left)
            elif left:
                left.raw.close()

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise MillpondError(FORKED)

    def _connected(self) -> Connection:
        self._check_process()
        with self._lock:
            try:
                return Connection(self._root.cursor(), self._root)
            except duckdb.ConnectionException:
                raise MillpondError(CLOSED) from None

    def _made(self, connection: Connection) -> Cursor:
        errors = partial(self._errors, connection.root)
        return Cursor(connection, errors, reopens=not VERSION.startswith("1."))

    @contextmanager
    def watched_cursor(self) -> Iterator[Cursor]:
        """As `cursor`, for the one large statement of a plan: `fraction` tells how far it is."""
        with self._lock:
            mine, self._watched_is_free = self._watched_is_free, False
            root = self._root
        if not mine:
            with self.cursor() as plain:
                yield plain
            return
        cursor = self._made(Connection(self._watched, root))
        try:
            yield cursor
        finally:
            if root is self._root:  # Else it is gone, and a new one is free.
                cursor.forget()
                with self._lock:
                    self._watched_is_free = True

    def fraction(self) -> float | None:
        """How much of the watched statement is done, as DuckDB guesses; None if unknown."""
        if (deputy := self.deputy) is not None:
            return deputy.fraction()
        if self._watched_is_free:
            return None
        percent = self._watched.query_progress()
        return percent / 100 if percent >= 0 else None

    def read_through(self, files: RemoteFiles) -> None:
        """Let SQL read the paths of another storage, by its scheme."""
        with self._lock:  # An instance that is opened anew meanwhile has to know it, too.
            self._root.register_filesystem(files.filesystem())
            self._files.append(files)

    def failure_in(self, error: duckdb.Error | OSError) -> MillpondError | None:
        """The failure of a storage that DuckDB met and passes on; None if it is its own."""
        text = str(error)
        found = (files.failure_in(text) for files in self._files)
        return next((failure for failure in found if failure is not None), None)

    def close(self) -> None:
        with self._lock:
            for connection in self._idle:
                connection.raw.close()
            self._idle.clear()
        self._watched.close()
        self._root.close()

    # ---- words ----------------------------------------------------------------------

    def parse(self, sql: str) -> dict[str, Any]:
        """DuckDB's own JSON tree of `sql`; `SqlError` says at which character it breaks."""
        with self.cursor() as cursor:
            rows = cursor.rows(f"SELECT json_serialize_sql({quote.value(sql)}::VARCHAR)")
        tree: dict[str, Any] = json.loads(rows[0][0])
        if tree["error"]:
            if tree["error_type"] == "not implemented":
                raise SqlError(
                    "only queries are taken here: SELECT …, FROM … or WITH … SELECT; and a PIVOT "
                    "must name its values, PIVOT t ON column IN (…), for its columns to be known."
                )
            place = tree.get("position")
            at = f", at character {int(place) + 1}." if place is not None else "."
            raise SqlError(str(tree["error_message"]).rstrip(".") + at)
        return tree

    def unparse(self, tree: dict[str, Any]) -> str:
        """The inverse of `parse`."""
        with self.cursor() as cursor:
            text = quote.value(json.dumps(tree))
            return str(cursor.rows(f"SELECT json_deserialize_sql({text}::JSON)")[0][0])

    def describe(
        self, sql: str, inputs: Mapping[str, Schema], macros: Sequence[str] = ()
    ) -> Schema:
        """Names and types of `sql` over empty tables of the given schemas; reads no data."""
        with self.cursor() as cursor:
            for name, schema in inputs.items():
                items = ", ".join(f"NULL::{f.type} AS {quote.name(f.name)}" for f in schema)
                cursor.run(f"CREATE TEMP VIEW {quote.name(name)} AS SELECT {items or '1 AS empty'}")
            for macro in macros:
                cursor.run(macro)
            rows = cursor.rows(f"DESCRIBE {sql}")
        return Schema.of((row[0], row[1]) for row in rows)

    def explain(self, sql: str, inputs: Mapping[str, Schema]) -> list[dict[str, Any]]:
        """DuckDB's plan of `sql`. Streams of Arrow have no statistics that it could use."""
        import pyarrow as pa

        with self.cursor() as cursor:
            for name, schema in inputs.items():
                # Not `empty_table`: that makes arrays, and imports pandas where it is installed.
                none = pa.Table.from_batches([], self.arrow_schema(schema))
                cursor.register(name, none)
            ((_, text),) = cursor.rows(f"EXPLAIN (FORMAT JSON) {sql}")
        plan: list[dict[str, Any]] = json.loads(text)
        return plan

    def sort_key(self, keys: Sequence[SortKey], schema: Schema) -> str:
        """SQL over rows of `schema` for a BLOB whose byte order is the order of the keys."""
        items = ", ".join(f"({key.sql}) AS k{i}" for i, key in enumerate(keys))
        found = self.describe(f"SELECT {items} FROM __in0", {"__in0": schema})
        kinds = self.arrow_schema(found).types
        # DuckDB 1.4 sorts intervals inside of other values by their bytes.
        inside = not VERSION.startswith("1.")
        keys = [
            replace(key, sql=with_equal_intervals(key.sql, kind, inside=inside))
            for key, kind in zip(keys, kinds, strict=True)
        ]
        if not inside:
            return " || ".join(self._sort_key_of_one(key, schema) for key in keys)
        key = _sort_key(keys)
        found = self.describe(f"SELECT {key} FROM __in0", {"__in0": schema})
        # Short keys make a BIGINT, but not with text beside them.
        return key if found.types == ("BLOB",) else _sort_key((*keys, SortKey("''")))

    def _sort_key_of_one(self, key: SortKey, schema: Schema) -> str:
        """DuckDB 1.4 ends the key of a NULL in bytes by chance; so NULLs get a key from us."""
        found = self.describe(f"SELECT {_sort_key([key])} FROM __in0", {"__in0": schema})
        blob = _sort_key([key] if found.types == ("BLOB",) else [key, SortKey("''")])
        null = "\\x01" if key.nulls_first else "\\x02"  # As DuckDB has it.
        return f"CASE WHEN ({key.sql}) IS NULL THEN '{null}'::BLOB ELSE {blob} END"

    def arrow_schema(self, schema: Schema) -> pa.Schema:
        """How the engine gives rows of `schema` in Arrow."""
        return self._arrow_schema(schema)

    def _find_arrow_schema(self, schema: Schema) -> pa.Schema:
        items = ", ".join(f"NULL::{f.type} AS {quote.name(f.name)}" for f in schema)
        with self.cursor() as cursor:
            return cursor.table(f"SELECT {items} WHERE false").schema

    def schema_of(self, table: pa.Table | pa.RecordBatchReader) -> Schema:
        """How DuckDB reads an Arrow table. `SchemaMismatch` for types that it has not."""
        with self.cursor() as cursor:
            try:
                cursor.register("given", table)
            except duckdb.NotImplementedException as error:
                kinds = [(f.name, str(f.type)) for f in table.schema]
                odd = [one for one in kinds if any(word in one[1] for word in _NOT_IN_DUCKDB)]
                said = ", ".join(f"{name!r} is {kind}" for name, kind in odd or kinds)
                raise SchemaMismatch(
                    f"{said}, and DuckDB has no such type. Cast it before, as halffloat to float32."
                ) from error
            return Schema.of((row[0], row[1]) for row in cursor.rows("DESCRIBE FROM given"))


def _sort_key(keys: Sequence[SortKey]) -> str:
    items = ", ".join(f"{key.sql}, '{key.direction}'" for key in keys)
    return f"create_sort_key({items})"


def _named(text: str) -> duckdb.Error:
    """DuckDB's error again, from its text, which begins with the name of its class."""
    kind = _KINDS.get(text.partition(":")[0], duckdb.Error)
    return kind(text)


# Those that `translated` tells apart; DuckDB writes the name before every message.
_KINDS: Mapping[str, type[duckdb.Error]] = {
    "Out of Memory Error": duckdb.OutOfMemoryException,
    "IO Error": duckdb.IOException,
    "FATAL Error": duckdb.FatalException,
    "INTERNAL Error": duckdb.InternalException,
}


def translated(error: duckdb.Error, scratch: str) -> MillpondError:
    """Our error for DuckDB's, by its class."""
    text = _first_paragraph(str(error))
    match error:
        case duckdb.FatalException() | duckdb.InternalException():
            return WorkerLost(f"DuckDB failed inside, and was opened anew: {text}")
        case duckdb.OutOfMemoryException():
            if _is_full(scratch):
                return DiskFull(f"no space left in {scratch}: {text}")
            return OutOfMemory(text)
        case duckdb.IOException():
            # DuckDB gives no error number of its own, but the system's words for it; and what
            # it wrote is removed by now, so the disk itself may not be full any more.
            if any(words in text for words in _NO_SPACE) or _is_full(scratch):
                return DiskFull(f"no space left on the disk: {text}")
            return FileUnreadable(text)
    if _TOO_LONG in text:  # A batch of fewer rows may pass.
        return OutOfMemory(f"more than 2 GiB of text in one batch: {text}")
    return SqlError(text)


def _is_full(folder: str) -> bool:
    try:
        stat = os.statvfs(folder)
    except OSError:
        return False
    return stat.f_bavail * stat.f_frsize < _LOW_DISK_BYTES


def _first_paragraph(text: str) -> str:
    """DuckDB's message without the echo of SQL that the user did not write."""
    head = re.split(r"\n\s*\n|\s*Candidate functions:", text.strip(), maxsplit=1)[0]
    return re.sub(r"\s*\n\s*", " ", head)
