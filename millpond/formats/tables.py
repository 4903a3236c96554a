"""What a table format gives to read and takes to commit: files, values, columns. Plain values.

A table format is a log about Parquet files. Its library reads and writes the log; the
files are read as all others are, so that a type never depends on who wrote the log.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from millpond.errors import SchemaMismatch
from millpond.schema import Field, Schema
from millpond.storage import FileInfo

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One state of a table: its files, and for each the values of its `keys` as text.

    `options` are those of DuckDB's reader, as in a `Scan`. With `field_ids`, one for each
    column, columns are found in the files by these and not by name.
    """

    columns: pa.Schema
    files: tuple[FileInfo, ...]
    options: tuple[tuple[str, str], ...]
    keys: tuple[str, ...] = ()
    values: tuple[tuple[str | None, ...], ...] = ()
    field_ids: tuple[int, ...] = ()


# Quoted names and ENUM values are passed over; what remains are words of types.
_WORDS = re.compile(
    r"""ENUM\((?:[^')]|'(?:[^']|'')*')*\)|"(?:[^"]|"")*"|'(?:[^']|'')*'"""
    r"|\b(?:TIMESTAMP WITH TIME ZONE|TIME WITH TIME ZONE|[A-Z][A-Z_0-9]*)\b"
    r"|\[\d+\]"
)
_WIDER = {
    "UTINYINT": "SMALLINT",
    "USMALLINT": "INTEGER",
    "UINTEGER": "BIGINT",
    "UBIGINT": "DECIMAL(20,0)",
    "HUGEINT": "DECIMAL(38,0)",
    "UHUGEINT": "DECIMAL(38,0)",
    "TIMESTAMP_S": "TIMESTAMP",
    "TIMESTAMP_MS": "TIMESTAMP",
    "JSON": "VARCHAR",
}


def stored(schema: Schema, other: Mapping[str, str], refused: frozenset[str], where: str) -> Schema:
    """The columns as a table format keeps them: a wider type where it lacks one.

    `other` are the format's own replacements, besides those that all formats need; a type
    that is `refused` has none that would lose nothing.
    """

    def kept(field: Field) -> Field:
        def word(found: re.Match[str]) -> str:
            text = found[0]
            if text in refused:
                raise SchemaMismatch(
                    f"{where}: the column {field.name!r} is {field.type}, which the format cannot "
                    "keep. Cast it to another type first."
                )
            if text.startswith("ENUM("):
                return "VARCHAR"
            if text[0] == "[":  # Of a fixed length, which neither format has.
                return "[]"
            return text if text[0] in "'\"" else {**_WIDER, **other}.get(text, text)

        return Field(field.name, _WORDS.sub(word, field.type))

    return Schema(tuple(map(kept, schema)))
