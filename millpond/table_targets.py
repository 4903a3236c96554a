"""Writes to tables: rows in the columns of the table, files by our tasks, one transaction."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from millpond.engine.duckdb import Engine
from millpond.errors import (
    OptionError,
    SchemaMismatch,
    StorageError,
    TableChanged,
    TargetNotEmpty,
)
from millpond.expr import Expression, quote
from millpond.formats import delta, iceberg, iceberg_write
from millpond.formats.tables import required, stored
from millpond.plan import nodes as n
from millpond.plan.sinks import checked_mode, sink
from millpond.schema import Schema
from millpond.storage import OutputFile, Storage
from millpond.storage.commit import commit_id_in, new_commit_id
from millpond.targets import WriteResult, written


@dataclass(frozen=True, slots=True)
class TableTarget:
    """A prepared write: `sink` makes the files, and `finish` makes them the table's."""

    storage: Storage
    sink: n.DataSink
    finish: Callable[[Sequence[OutputFile]], int]
    commit_id: str

    def complete(self) -> WriteResult | None:
        """None: a table's log does not say which plan a file came from."""
        return None

    def check(self) -> None:
        """Nothing: all was looked at when the target was made."""

    def commit(self, files: Sequence[OutputFile]) -> WriteResult:
        staged = [file.staged for file in files]
        try:
            self.storage.publish(staged)
            self.finish(files)
        except (TableChanged, TargetNotEmpty, SchemaMismatch):
            # Refused for certain. After other errors the table may name the files, so they stay.
            self.storage.delete([one.path for one in staged])
            raise
        return written(files, sum(file.rows for file in files))


@dataclass(frozen=True, slots=True)
class TableTargets:
    """Makes the targets, with the engine and the storages of a session."""

    engine: Engine
    storage: Callable[[str], Storage]

    def delta(
        self, node: n.Node, uri: str, mode: str, partition_by: str | Sequence[str] | None,
        options: dict[str, Any],
    ) -> TableTarget:  # fmt: skip
        where, storage = f"write_delta({uri!r})", self.storage(uri)
        plain = _checked(node, uri, mode, partition_by, options, where, self.engine)
        present = delta.current(storage, uri, mode, where)
        if mode == "append":
            storage.check_atomic(f"{uri.rstrip('/')}/_delta_log/check")
        # Files with the id of a commit are what a killed write left: no table names them.
        if present is None and not all(commit_id_in(info.path) for info in storage.list(uri)):
            raise StorageError(
                f"{where}: {uri!r} holds files, and they are no Delta table. Choose another path."
            )
        if present is not None and mode == "error":
            raise TargetNotEmpty(uri, where)
        want = stored(node.schema, delta.OTHER, delta.UNSUPPORTED, where)
        keys = plain.keys
        if present is not None:
            if partition_by is not None and keys != present.keys:
                raise OptionError(
                    f"{where}: the table is partitioned by {', '.join(present.keys) or 'nothing'}, "
                    "and that cannot be changed. Leave partition_by= out."
                )
            keys = present.keys
            lost = [key for key in keys if key not in want.names]
            if lost:
                raise SchemaMismatch(
                    f"{where}: the table is partitioned by {', '.join(lost)}, and the rows have no "
                    "such column. Add it, or write to another path."
                )
            if mode == "append":
                want = self._like(want, present.columns, where)
        columns = delta.delta_schema(self.engine.arrow_schema(want), where)
        # An overwrite gives the table the columns of the rows, with NULLs.
        tests = required(present.columns) if present is not None and mode == "append" else {}
        rows = _as(node, want, tests, where)
        made = n.DataSink(rows, "parquet", uri.rstrip("/"), mode, plain.options, _FILE, keys)

        def finish(files: Sequence[OutputFile]) -> int:
            return delta.commit(
                storage, uri, files, columns=columns, keys=keys, mode=mode,
                present=present, where=where,
            )  # fmt: skip

        return TableTarget(storage, made, finish, new_commit_id())

    def iceberg(
        self, node: n.Node, table: str, mode: str, partition_by: str | Sequence[str] | None,
        catalog: iceberg.Catalog, options: dict[str, Any],
    ) -> TableTarget:  # fmt: skip
        where = f"write_iceberg({table!r})"
        plain = _checked(node, table, mode, partition_by, options, where, self.engine)
        want = stored(node.schema, iceberg.OTHER, iceberg.UNSUPPORTED, where)
        target = iceberg_write.Target(
            self.storage, table, self.engine.arrow_schema(want), mode, where, catalog=catalog,
            keys=None if partition_by is None else plain.keys,
        )  # fmt: skip
        want = self._like(want, target.columns, where)
        options_ = (*plain.options, ("field_ids", target.field_ids))
        rows = _as(node, want, required(target.columns), where)
        made = n.DataSink(
            rows, "parquet", target.folder, "append", options_, _FILE, target.keys, True
        )
        return TableTarget(self.storage(target.folder), made, target.commit, new_commit_id())

    def _like(self, want: Schema, columns: Any, where: str) -> Schema:
        """The columns of the table in its order, if the rows have the same."""
        have = self.engine.schema_of(columns.empty_table())
        texts = {field.name for field in have if field.type == "VARCHAR"}
        given = {  # A UUID is text in a table that keeps text.
            replace(f, type="VARCHAR") if f.type == "UUID" and f.name in texts else f for f in want
        }
        if set(have) != given:
            raise SchemaMismatch(
                f"{where}: the table has the columns ({have}), and the rows are ({want}). Select "
                "and cast to the same columns."
            )
        return have


_FILE = "part-{partition}.parquet"


def _checked(
    node: n.Node, path: str, mode: str, partition_by: str | Sequence[str] | None,
    options: dict[str, Any], where: str, engine: Engine,
) -> n.DataSink:  # fmt: skip
    checked_mode(mode, where)
    explain = engine.explain
    plain = sink(node, "parquet", path, mode, options, partition_by, explain=explain)
    for key in plain.keys:
        if node.schema.field(key, where).type == "BLOB":
            raise SchemaMismatch(f"{where}: {key!r} is BLOB; partition by a column of text.")
    return plain


def _as(node: n.Node, schema: Schema, tests: Mapping[str, str], where: str) -> n.Node:
    """The rows of `node` in these columns, which have the same names.

    A row that one of the `tests` of columns is true of ends the write.
    """
    if node.schema == schema and not tests:
        return node

    def item(name: str, kind: str) -> str:
        value = quote.name(name)
        if name in tests:
            text = f"{where}: the column {name!r} holds NULL where the table does not allow it."
            value = f"CASE WHEN {tests[name]} THEN error({quote.value(text)}) ELSE {value} END"
        return f"({value})::{kind} AS {quote.name(name)}"

    items = [item(field.name, field.type) for field in schema]
    return n.Project(node, Expression(", ".join(items), frozenset(schema.names)), schema)
