"""The rows of a query → one file, in the format of a sink."""

from __future__ import annotations

import json

from millpond.engine.cursor import Cursor
from millpond.engine.duckdb import Engine
from millpond.expr import quote
from millpond.physical.stages import ToFile
from millpond.plan.wire import huge_as_decimal, plain
from millpond.schema import Schema
from millpond.storage.oserrors import explained


def as_written(sql: str, schema: Schema, format: str) -> str:
    """The rows of `sql` in types that a file of `format` keeps.

    DuckDB writes huge integers to Parquet as DOUBLE, and gives Arrow some types without what
    says how to read them: both get what `to_arrow` gives. Text formats take every value.
    """
    items = []
    for field in schema:
        kind = field.type
        if format == "arrow":
            kind = plain(Schema((field,))).types[0]
        elif format == "parquet" and "HUGEINT" in kind:
            kind = huge_as_decimal(kind)
        name = quote.name(field.name)
        items.append(name if kind == field.type else f"{name}::{kind} AS {name}")
    if all(item == quote.name(name) for item, name in zip(items, schema.names, strict=True)):
        return sql
    return f"SELECT {', '.join(items)} FROM (\n{sql}\n)"


def write_rows(cursor: Cursor, sql: str, path: str, output: ToFile, engine: Engine) -> int:
    """Write the file, and give the number of its rows."""
    match output.format:
        case "arrow":
            return _arrow(cursor, sql, path, dict(output.options))
        case "fixed":
            return _fixed(cursor, sql, path, dict(output.options))
    return cursor.copy(sql, path, output.format, output.options)


def codec_of(output: ToFile) -> str:
    """The compression of Parquet files, in Arrow's word for it."""
    codec = dict(output.options).get("compression", "'snappy'").strip("'").lower()
    return "none" if codec == "uncompressed" else codec


def _arrow(cursor: Cursor, sql: str, path: str, options: dict[str, str]) -> int:
    import pyarrow as pa

    codec, rows = options.get("compression", "NULL").strip("'"), 0
    schema = cursor.schema(sql)
    settings = pa.ipc.IpcWriteOptions(compression=None if codec == "NULL" else codec)
    with (
        explained(path, "write"),
        pa.OSFile(path, "wb") as file,
        pa.ipc.new_file(file, schema, options=settings) as writer,
    ):
        for batch in cursor.reader(sql):
            writer.write_batch(batch)
            rows += batch.num_rows
    return rows


def _fixed(cursor: Cursor, sql: str, path: str, options: dict[str, str]) -> int:
    from millpond.formats.fixed import FixedWriter, Layout

    layout = Layout.of(json.loads(options["fields"]), "write_fixed()")
    writer = FixedWriter(path, layout)
    try:
        for batch in cursor.reader(sql):
            writer.add(batch)
        writer.close()
    except BaseException:
        writer.abort()
        raise
    return writer.rows
