"""How a CSV file is written, as DuckDB's `sniff_csv` found it: names, header, options."""

from typing import Any

from millpond.errors import SchemaMismatch
from millpond.expr import quote
from millpond.schema import Schema


def columns(sniffed: Any) -> Schema:
    """Names and types as they were sniffed."""
    return Schema.of((column["name"], column["type"]) for column in sniffed["Columns"])


def has_header(
    sniffed: Any, told: Schema | None, committed: Schema | None, path: str, where: str
) -> bool:
    """Whether the first line of a file is its header.

    `told` are the columns that the user expects, `committed` those of the output.
    """
    found = columns(sniffed)
    if told is None and committed is not None and len(committed) == len(found):
        told = committed
    if told is None:
        return bool(sniffed["HasHeader"])
    if len(found) != len(told):
        raise SchemaMismatch(
            f"{where}: {path} has {len(found)} columns, and schema= has {len(told)}."
        )
    names = [name.casefold() for name in found.names]
    if all(kind == "VARCHAR" for kind in found.types):
        # Nothing tells a header from text but the names that are expected.
        return names == [name.casefold() for name in told.names]
    return bool(sniffed["HasHeader"])


def options(delim: str, header: bool, sniffed: Any) -> tuple[tuple[str, str], ...]:
    """What was sniffed, as options that leave nothing to sniff."""
    text = {
        name: "" if sniffed[column] in (None, "(empty)") else sniffed[column]
        for name, column in (("quote", "Quote"), ("escape", "Escape"), ("comment", "Comment"))
    }
    found = [
        ("delim", quote.value(delim)),
        ("header", quote.value(header)),
        ("skip", quote.value(int(sniffed["SkipRows"]))),
        *((name, quote.value(item)) for name, item in text.items()),
    ]
    for name, column in (("dateformat", "DateFormat"), ("timestampformat", "TimestampFormat")):
        # As a format, the usual one would take "infinity" for 1900-01-01 (DuckDB 1.4 and 2.0).
        if sniffed[column] and sniffed[column] != "%Y-%m-%d":
            found.append((name, quote.value(sniffed[column])))
    return tuple(found)
