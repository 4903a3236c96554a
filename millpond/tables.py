"""Tables of Delta Lake and Iceberg as data sources, and which of their files a filter needs."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from millpond.engine.duckdb import Engine
from millpond.errors import MillpondError
from millpond.expr import Expression, parse, quote
from millpond.formats import delta, iceberg
from millpond.formats.scan import Scan
from millpond.formats.tables import Snapshot
from millpond.plan import nodes as n
from millpond.schema import Schema
from millpond.storage import Storage


@dataclass(frozen=True, slots=True)
class Tables:
    """Makes data sources of tables, with the engine and the storages of a session."""

    engine: Engine
    storage: Callable[[str], Storage]

    def delta(
        self, uri: str | os.PathLike[str], *, columns: Sequence[str] | None, version: int | None,
        timestamp: str | datetime | None,
    ) -> n.DataSource:  # fmt: skip
        path = os.fspath(uri)
        where = f"read_delta({path!r})"
        found = delta.snapshot(
            self.storage(path), path, where, version=version, timestamp=timestamp
        )
        return self._source(found, columns, where)

    def iceberg(
        self, table: str | os.PathLike[str], *, columns: Sequence[str] | None,
        catalog: iceberg.Catalog, snapshot: int | None, as_of: str | datetime | None,
    ) -> n.DataSource:  # fmt: skip
        name = os.fspath(table)
        where = f"read_iceberg({name!r})"
        found = iceberg.snapshot(
            self.storage, name, where, catalog=catalog, snapshot_id=snapshot, as_of=as_of
        )
        return self._source(found, columns, where)

    def _source(self, found: Snapshot, columns: Sequence[str] | None, where: str) -> n.DataSource:
        schema = self.engine.schema_of(found.columns.empty_table())
        options = found.options
        if found.field_ids:
            options = (("schema", _by_id(found, schema)), *options)
        for file in found.files:
            self.storage(file.path)  # From now on the engine can read there.
        if columns is not None:
            schema = Schema(schema.named(columns, where))
        scan = Scan("parquet", schema, options, keys=found.keys)
        return n.DataSource(scan, found.files, values=found.values)

    # ---- pruning ---------------------------------------------------------------------

    def prune_files(self, node: n.Node) -> n.Node | None:
        """Filter(DataSource(200 files), day = …)  ->  Filter(DataSource(1 file), day = …)

        By the values that a table's log gives for each file; no file is opened. A rule,
        as those of `optimize.RULES`, but it needs the engine.
        """
        below, filters = node, list[n.Filter]()
        while isinstance(below, n.Filter):
            filters.append(below)
            below = below.input
        if not filters or not isinstance(below, n.DataSource) or not below.values:
            return None
        needed = below
        for found in filters:
            needed = self._needed(needed, found.predicate)
        if needed is below:
            return None
        better: n.Node = needed
        for found in reversed(filters):
            better = replace(found, input=better)
        return better

    def _needed(self, source: n.DataSource, predicate: Expression) -> n.DataSource:
        keys, schema = source.scan.keys, source.schema
        fields = [schema.find(key) for key in keys]
        known = {field.name for field in fields if field is not None}
        where = "filter()"
        tests = [
            part.sql
            for part in parse.conjuncts(predicate, schema, where, self.engine.dialect)
            if part.columns and part.columns <= known and not part.varies
        ]
        if not tests:
            return source
        kept = self._files_where(source, tests)
        if kept is None or len(kept) == len(source.files):
            return source
        files, values = zip(*((source.files[i], source.values[i]) for i in kept), strict=True) if (
            kept) else ((), ())  # fmt: skip
        return replace(source, files=files, values=values)

    def _files_where(self, source: n.DataSource, tests: Sequence[str]) -> list[int] | None:
        import pyarrow as pa

        columns = list(zip(*source.values, strict=True))
        given = {f"v{i}": pa.array(column, pa.string()) for i, column in enumerate(columns)}
        rows = pa.table({"place": range(len(source.files)), **given})
        items = [
            f"v{i}::{field.type} AS {quote.name(field.name)}"
            for i, key in enumerate(source.scan.keys)
            if (field := source.schema.find(key)) is not None
        ]
        condition = " AND ".join(f"(\n{test}\n)" for test in tests)
        try:
            with self.engine.cursor() as cursor:
                cursor.register("__files", rows)
                found = cursor.rows(
                    f"SELECT place FROM (SELECT place, {', '.join(items)} FROM __files) "
                    f"WHERE {condition} ORDER BY place"
                )
        except MillpondError:
            return None  # It will fail where it is asked for, and say so there.
        return [int(place) for (place,) in found]


def _by_id(found: Snapshot, schema: Schema) -> str:
    """What DuckDB is told so that it finds columns by their ids; the keys are not read."""
    items = [
        f"{field_id}: {{name: {quote.value(f.name)}, type: {quote.value(f.type)}, "
        "default_value: NULL}"
        for field_id, f in zip(found.field_ids, schema, strict=True)
        if f.name not in found.keys
    ]
    return f"MAP {{{', '.join(items)}}}"
