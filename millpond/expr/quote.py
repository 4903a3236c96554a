"""The only place that turns a name or a value into SQL."""

import math
from collections.abc import Iterable, Mapping

from millpond.errors import SqlError

Value = str | bytes | bool | int | float | None
Nested = Value | list[str] | tuple[str, ...] | Mapping[str, "Nested"]


def name(text: str) -> str:
    """A name as SQL, whatever it contains.

    >>> print(name('a "b" c'))
    "a ""b"" c"
    """
    if "\x00" in text:
        raise SqlError(f"the name {text!r} contains a NUL character; DuckDB has no such names.")
    return '"' + text.replace('"', '""') + '"'


def names(texts: Iterable[str]) -> str:
    return ", ".join(name(text) for text in texts)


def value(item: Nested) -> str:
    """A value as an SQL literal.

    >>> print(value("it's"), value(["a", "b"]), value({"a": 1}), value(None), value(True))
    'it''s' ['a', 'b'] {'a': 1} NULL true
    """
    match item:
        case None:
            return "NULL"
        case bool():
            return "true" if item else "false"
        case int():
            return str(item)
        case float():
            return repr(item) if math.isfinite(item) else f"'{item}'::DOUBLE"
        case bytes():
            return "'" + "".join(f"\\x{byte:02X}" for byte in item) + "'::BLOB"
        case str():
            return _text(item)
        case Mapping():
            return "{" + ", ".join(f"{_text(key)}: {value(item[key])}" for key in item) + "}"
    return "[" + ", ".join(_text(part) for part in item) + "]"


def copy(query: str, path: str, format: str, options: Iterable[tuple[str, str]]) -> str:
    """The statement that writes a query to `path`; `options` are names and literals."""
    extra = "".join(f", {option.upper()} {literal}" for option, literal in options)
    return f"COPY (\n{query}\n) TO {value(path)} (FORMAT {format}{extra})"


def _text(text: str) -> str:
    if "\x00" in text:
        head, *rest = text.split("\x00")
        return "(" + " || chr(0) || ".join(_text(part) for part in [head, *rest]) + ")"
    return "'" + text.replace("'", "''") + "'"
