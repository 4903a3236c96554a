"""From paths that a user gives to a `DataSource`: files found, names and types fixed once.

What DuckDB would find out anew in each task (types, delimiters, headers, the types of
hive folders) is found out here, at the call, and written into the scan; so no task
can come to another conclusion than its neighbour.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from millpond.engine.duckdb import Engine
from millpond.errors import (
    FileUnreadable,
    MillpondError,
    OptionError,
    PathNotFound,
    SchemaMismatch,
    SqlError,
)
from millpond.expr import quote
from millpond.expr.parse import check
from millpond.formats import csv_dialect, rows
from millpond.formats.find import Found, find_files, with_ends
from millpond.formats.scan import Scan, reader
from millpond.hive import Options, hive_of
from millpond.plan.nodes import DataSource
from millpond.plan.sinks import ENDINGS
from millpond.schema import Field, Schema
from millpond.storage import FileInfo, Storage, expect

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

CHECKED_FILES = 1_000  # Above that many, schemas are not compared at the call.
SNIFFED_FILES = 10


@dataclass(frozen=True, slots=True)
class Sources:
    """Makes data sources, with the engine and the storages of a session.

    `durable`: work on them may be found again by another session, if they are the same.
    """

    engine: Engine
    storage: Callable[[str], Storage]
    durable: bool = False

    def find(self, paths: Paths, where: str, format: str = "") -> Found:
        found = self._find(paths, where, format)
        if not found.files:
            raise PathNotFound(str(paths), where)
        return found

    def _find(self, paths: Paths, where: str, format: str, *, recursive: bool = True) -> Found:
        try:
            given = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
            named = [os.fspath(p) for p in given]
        except TypeError:
            raise OptionError(f"{where}: needs a path, or a list of paths.") from None
        if not named:
            raise OptionError(f"{where}: needs at least one path.")
        others = chain.from_iterable(ENDINGS[other] for other in ENDINGS if other != format)
        found = find_files(
            named, self.storage, where, recursive=recursive,
            endings=ENDINGS.get(format, ()), others=tuple(others),
        )  # fmt: skip
        return with_ends(found, self.storage) if self.durable else found

    # ---- Parquet ---------------------------------------------------------------------

    def parquet(
        self, paths: Paths, where: str, *, columns: Sequence[str] | None, recursive: bool,
        union_by_name: bool,
    ) -> DataSource:  # fmt: skip
        found = self._find(paths, where, "parquet", recursive=recursive)
        if found.schema is not None and not found.files:  # Committed without a row.
            schema = found.schema
            if columns is not None:
                schema = Schema(schema.named(columns, where))
            return DataSource(Scan("parquet", schema), state=found.state)
        hive = hive_of(found, self.engine)
        options: Options = (("union_by_name", "true"),) if union_by_name else ()
        files = found.files
        if union_by_name:
            schema = self._described("parquet", files, (*options, *hive.options), where)
        else:
            if 1 < len(files) <= CHECKED_FILES:
                self._check_footers(files, where)
            schema = self._described("parquet", files[:1], hive.options, where)
        schema = hive.described(schema)
        if columns is not None:
            schema = Schema(schema.named(columns, where))
        return hive.source("parquet", schema, options, found)

    def _check_footers(self, files: Sequence[FileInfo], where: str) -> None:
        """All files have the columns of the first; DuckDB would drop or cast what differs."""
        columns: dict[str, list[tuple[Any, ...]]] = {}
        what = "file_name, name, type, num_children, converted_type, scale, precision, logical_type"
        expect(self.storage, files, ends=True)
        paths = quote.value([file.path for file in files])
        with _unreadable(where), self.engine.cursor() as cursor:
            for path, *column in cursor.rows(f"SELECT {what} FROM parquet_schema({paths})"):
                columns.setdefault(path, []).append(tuple(column))
        first, *others = files
        for file in others:
            # The first entry is the root, whose name is the writer's own choice.
            if columns[file.path][1:] != columns[first.path][1:]:
                one, two = (self._described("parquet", [f], (), where) for f in (first, file))
                if set(one.fields) != set(two.fields):
                    raise _differ(where, first.path, one, file.path, two)

    # ---- CSV and JSON ----------------------------------------------------------------

    def csv(
        self, paths: Paths, where: str, *, schema: Mapping[str, str] | None, delim: str,
        header: bool | None,
    ) -> DataSource:  # fmt: skip
        found = self._find(paths, where, "csv")
        if not found.files:
            return _without_files("csv", self._told(schema, where), found)
        filled = [file for file in found.files if file.size_bytes]
        expect(self.storage, _some(filled), ends=False)
        told = self._told(schema, where)
        if header is not None and not isinstance(header, bool):
            raise OptionError(f"{where}: header is {header!r}; it must be True, False or None.")
        given: list[tuple[str, str]] = [("delim", quote.value(delim))]
        if header is not None:
            given.append(("header", quote.value(header)))
        if filled:
            first = self._sniff(filled[0], given, where)
            if header is None:
                header = csv_dialect.has_header(first, told, found.schema, filled[0].path, where)
            if not header and not given[1:] and (named := told or found.schema):
                # A name may look like a value, as `t` and `1` do: then only the names tell.
                again = self._sniff(filled[0], [*given, ("header", "true")], where)
                if csv_dialect.columns(again).names == named.names:
                    header, first = True, again
            fixed = csv_dialect.options(delim, header, first)
            columns = told or self._csv_columns(filled, fixed, first, found.schema, where)
            if header:
                self._check_headers(filled, int(first["SkipRows"]), where)
        else:
            fixed, columns = tuple(given), told or _committed(found, where)
        options = (("auto_detect", "false"), *fixed, *_columns(columns))
        return self._with_hive("csv", found, columns, options, where)

    def _told(self, schema: Mapping[str, str] | None, where: str) -> Schema | None:
        if schema is None:
            return None
        if not isinstance(schema, Mapping):
            raise OptionError(f"{where}: schema is a dict of names and DuckDB types.")
        given = Schema.of((name, str(kind)) for name, kind in schema.items())
        return check(lambda: self.engine.describe("SELECT * FROM __in0", {"__in0": given}), where)

    def _sniff(self, file: FileInfo, given: Iterable[tuple[str, str]], where: str) -> Any:
        options = "".join(f", {name} = {literal}" for name, literal in given)
        with _unreadable(where), self.engine.cursor() as cursor:
            return cursor.record(f"FROM sniff_csv({quote.value(file.path)}{options})")

    def _csv_columns(
        self,
        files: list[FileInfo],
        fixed: Options,
        first: Any,
        committed: Schema | None,
        where: str,
    ) -> Schema:
        """Names of the first file; types in which the values of several files fit.

        Where there are no rows, those of an output are what was committed.
        """
        one = csv_dialect.columns(first)
        schemas = [one] if self._has_rows(files[0], fixed, one) else []
        for file in _some(files)[1:]:
            other = csv_dialect.columns(self._sniff(file, fixed, where))
            if other.names != one.names:
                raise _differ(where, files[0].path, one, file.path, other)
            if self._has_rows(file, fixed, other):
                schemas.append(other)
        if not schemas and committed is not None and committed.names == one.names:
            return committed
        tables = {f"__in{i}": schema for i, schema in enumerate(schemas or [one])}
        sql = " UNION ALL ".join(f"SELECT * FROM {name}" for name in tables)
        return self.engine.describe(sql, tables)

    def _has_rows(self, file: FileInfo, fixed: Options, found: Schema) -> bool:
        """A file of a header alone says nothing about types; DuckDB takes it for text."""
        if any(kind != "VARCHAR" for kind in found.types):
            return True
        options = (("auto_detect", "false"), *fixed, *_columns(found))
        with self.engine.cursor() as cursor:
            return bool(cursor.rows(f"FROM {reader('csv', [file.path], options)} LIMIT 1"))

    def _check_headers(self, files: list[FileInfo], skip: int, where: str) -> None:
        """The same first line in all files; else a column would be read as another."""
        first = self._line(files[0], skip)
        for file in files[1:CHECKED_FILES]:
            line = self._line(file, skip)
            if line is not None and first is not None and line != first:
                raise SchemaMismatch(
                    f"{where}: {files[0].path} begins with the header {first!r}, and "
                    f"{file.path} with {line!r}. Read them apart and union() the frames."
                )

    def _line(self, file: FileInfo, skip: int) -> str | None:
        """A line near the top of a local file; None where it cannot be looked at cheaply."""
        local = self.storage(file.path).local_path(file.path)
        if local is None or local.endswith((".zst", ".bz2")):
            return None
        with gzip.open(local) if local.endswith(".gz") else open(local, "rb") as stream:
            for _ in range(skip):
                stream.readline()
            return stream.readline().decode("utf-8-sig", "replace").strip()

    def json(self, paths: Paths, where: str, *, schema: Mapping[str, str] | None) -> DataSource:
        found = self._find(paths, where, "json")
        if not found.files:
            return _without_files("json", self._told(schema, where), found)
        # Other forms of dates would be guessed from a sample and not be known to a task.
        options: Options = (("dateformat", "'iso'"), ("timestampformat", "'iso'"))
        columns = self._told(schema, where)
        if columns is None:
            filled = [file for file in found.files if file.size_bytes][:SNIFFED_FILES]
            off = (("hive_partitioning", "false"), ("union_by_name", "true"))
            columns = (
                self._described("json", filled, (*options, *off), where)
                if filled
                else _committed(found, where)
            )
        return self._with_hive("json", found, columns, _columns(columns), where)

    def _with_hive(
        self, format: str, found: Found, columns: Schema, options: Options, where: str
    ) -> DataSource:
        hive = hive_of(found, self.engine)
        if hive.types:
            columns = hive.described(
                self._described(format, found.files[:1], (*options, *hive.options), where)
            )
        return hive.source(format, columns, options, found)

    def _described(
        self, format: str, files: Sequence[FileInfo], options: Options, where: str
    ) -> Schema:
        expect(self.storage, files, ends=format == "parquet")
        paths = [file.path for file in files]
        with _unreadable(where):
            return self.engine.describe(f"FROM {reader(format, paths, options)}", {})

    # ---- other formats ---------------------------------------------------------------

    def arrow(self, paths: Paths, where: str) -> DataSource:
        found = self.find(paths, where, "arrow")
        first, *others = found.files[:CHECKED_FILES]
        schema = check(lambda: self._arrow_schema(first), where)
        for file in others:
            other = self._arrow_schema(file)
            if other != schema:
                raise _differ(where, first.path, schema, file.path, other)
        return DataSource(Scan("arrow", schema), found.files, state=found.state)

    def _arrow_schema(self, file: FileInfo) -> Schema:
        import pyarrow as pa

        with rows.opened(self.storage(file.path), file.path) as opened:
            return self.engine.schema_of(pa.Table.from_batches([], opened.schema))

    def text(self, paths: Paths, where: str, *, whole: bool) -> DataSource:
        found = self.find(paths, where)
        schema = Schema.of([("path", "VARCHAR"), ("text" if whole else "line", "VARCHAR")])
        options = (("whole", "true"),) if whole else ()
        return DataSource(Scan("text", schema, options), found.files)

    def fixed(self, paths: Paths, fields: Mapping[str, int], where: str) -> DataSource:
        from millpond.formats.fixed import Layout, count

        layout = Layout.of(fields, where)
        found = self.find(paths, where)
        for file in found.files:
            count(file, layout)
        options = (("fields", json.dumps(dict(fields))),)
        return DataSource(Scan("fixed", layout.schema, options), found.files)


class _unreadable:
    """Errors of DuckDB while it looks into a file: the call, and the file as DuckDB says it."""

    def __init__(self, where: str) -> None:
        self._where = where

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        if isinstance(error, SqlError):
            raise FileUnreadable(f"{self._where}: {error}") from error.__cause__
        if isinstance(error, MillpondError):
            raise error.located(self._where) from error.__cause__


def _some(files: list[FileInfo]) -> list[FileInfo]:
    """The first file, and some of the others."""
    return [*files[:1], *files[1 :: -(-len(files) // SNIFFED_FILES)]] if files else []


def _without_files(format: str, told: Schema | None, found: Found) -> DataSource:
    """An output that was committed without a row, so without a file."""
    assert found.schema is not None, "only manifests name no files"
    return DataSource(Scan(format, told or found.schema), state=found.state)


def _committed(found: Found, where: str) -> Schema:
    """The columns of empty files, if they are an output's."""
    if found.schema is None or not found.schema.names:
        raise FileUnreadable(f"{where}: the files are empty. Pass schema= to read no rows.")
    return found.schema


def _columns(schema: Schema | None) -> Options:
    if schema is None:
        return ()
    items = ", ".join(f"{quote.name(f.name)}: {quote.value(f.type)}" for f in schema)
    return (("columns", "{" + items + "}"),)


def _differ(where: str, one: str, first: Schema, two: str, second: Schema) -> SchemaMismatch:
    def said(fields: Iterable[Field]) -> str:
        return ", ".join(f"{field.name} {field.type}" for field in fields)

    missing = [f for f in first if second.find(f.name) is None]
    more = [f for f in second if first.find(f.name) is None]
    other = [f for f in second if (was := first.find(f.name)) is not None and was.type != f.type]
    told = [
        *([f"lacks {said(missing)}"] if missing else []),
        *([f"has also {said(more)}"] if more else []),
        *([f"has other types: {said(other)}"] if other else []),
    ] or [f"has another order: {said(second)}"]
    return SchemaMismatch(
        f"{where}: {two} {' and '.join(told)}, compared with {one} ({said(first)}). "
        "Of Parquet, read_parquet(…, union_by_name=True) fills what is missing; else read them "
        "apart and union() the frames."
    )
