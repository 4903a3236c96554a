"""What a table format gives to read and takes to commit: files, values, columns. Plain values.

A table format is a log about Parquet files. Its library reads and writes the log; the
files are read as all others are, so that a type never depends on who wrote the log.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING

from millpond.errors import OptionError, SchemaMismatch, StorageError
from millpond.expr import quote
from millpond.schema import Field, Schema
from millpond.storage import FileInfo
from millpond.storage.paths import is_remote

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


def check_place(table: str, path: str, where: str) -> None:
    """Refuse a file of this machine in the log of a table of a store: others write there."""
    if is_remote(table) and not is_remote(path):
        raise StorageError(
            f"{where}: the table names {path!r}, a file of this machine, among its files, and lies "
            "in a store itself. Its log was damaged or changed."
        )


def moment(given: object, word: str, where: str) -> datetime:
    """The time that `given` means: UTC where it does not say."""
    try:
        at = datetime.fromisoformat(given) if isinstance(given, str) else given
    except ValueError:
        at = None
    if isinstance(at, date) and not isinstance(at, datetime):
        at = datetime(at.year, at.month, at.day)
    if not isinstance(at, datetime):
        raise OptionError(
            f"{where}: {word}={given!r} is no time. Pass a datetime, or a text as "
            "'2026-01-31 12:00:00'; without a zone it is UTC."
        )
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def required(columns: pa.Schema) -> dict[str, str]:
    """Columns where the table does not allow every NULL: by name, SQL that is true of a bad row.

    >>> import pyarrow as pa
    >>> required(pa.schema([pa.field("a", pa.int32(), nullable=False), ("b", pa.int32())]))
    {'a': '"a" IS NULL'}
    """
    tests = {field.name: _bad(field, quote.name(field.name), 0) for field in columns}
    return {name: " OR ".join(found) for name, found in tests.items() if found}


def _bad(field: pa.Field, sql: str, depth: int) -> list[str]:
    """Tests of a value: is it, or something in it, NULL where it must not be?"""
    own = [] if field.nullable else [f"{sql} IS NULL"]
    return own + _bad_inside(field.type, sql, depth)


def _bad_inside(kind: pa.DataType, sql: str, depth: int) -> list[str]:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        inner = [
            t for f in kind for t in _bad(f, f"struct_extract({sql}, {quote.value(f.name)})", depth)
        ]
        # The fields of a NULL are NULL, and that is no fault of theirs.
        return [f"({sql} IS NOT NULL AND ({' OR '.join(inner)}))"] if inner else []
    if pa.types.is_map(kind):
        item, all_of = kind.item_field, f"map_values({sql})"
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        item, all_of = kind.value_field, sql
    else:
        return []
    inner = _bad(item, f"e{depth}", depth + 1)
    return (
        [f"len(list_filter({all_of}, lambda e{depth}: {' OR '.join(inner)})) > 0"] if inner else []
    )


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
