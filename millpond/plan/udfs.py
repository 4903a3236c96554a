"""Python functions that SQL may call: typed by their annotations, called with arrays.

A function that is given Arrow arrays and gives one is called once a batch. One that is
written for single values is called once a row: which it is, a call with no rows tells.
"""

import datetime
import decimal
import inspect
import types
import typing
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from millpond.errors import OptionError, SqlError
from millpond.expr import Dialect, quote
from millpond.plan.functions import python_call
from millpond.plan.nodes import Udf
from millpond.schema import Schema

_TYPES: dict[Any, str] = {
    bool: "BOOLEAN", int: "BIGINT", float: "DOUBLE", str: "VARCHAR", bytes: "BLOB",
    datetime.date: "DATE", datetime.datetime: "TIMESTAMP", datetime.time: "TIME",
    datetime.timedelta: "INTERVAL", decimal.Decimal: "DECIMAL(38, 10)", uuid.UUID: "UUID",
}  # fmt: skip


def udf_values(
    functions: Sequence[Callable[..., Any]] | None, where: str, dialect: Dialect,
    *, deterministic: bool,
) -> tuple[Udf, ...]:  # fmt: skip
    """The functions as values; a missing or unknown annotation is an `OptionError`."""
    if not isinstance(functions, Sequence | None):
        raise OptionError(f"{where}: udfs is a list of functions, as in udfs=[f].")
    found = tuple(_udf(f, where, dialect, deterministic) for f in functions or ())
    names = [udf.name.casefold() for udf in found]
    for name in names:
        if names.count(name) > 1:
            raise OptionError(f"{where}: two functions in udfs= are named {name!r}.")
    return found


def _udf(function: Callable[..., Any], where: str, dialect: Dialect, deterministic: bool) -> Udf:
    name = getattr(function, "__name__", type(function).__name__)
    if not name.isidentifier():
        raise OptionError(f"{where}: {name} in udfs= has no name that SQL could call. Use def.")
    call = python_call(function, "udf", where, deterministic=deterministic)
    try:
        hints = typing.get_type_hints(function)
    except NameError:  # Types in quotes are DuckDB's own words.
        hints = dict(inspect.get_annotations(function))
    parameters = tuple(inspect.signature(function).parameters)
    for part in (*parameters, "return"):
        if part not in hints:
            what = f"its parameter {part!r}" if part != "return" else "what it returns"
            raise OptionError(
                f"{where}: {name}() in udfs= has no annotation for {what}. Write types, as in "
                f"def {name}(x: int) -> str."
            )
    kinds = [(part, _kind(hints[part], name, where)) for part in (*parameters, "return")]
    try:
        schema = dialect.describe("SELECT * FROM __in0", {"__in0": Schema.of(kinds)})
    except SqlError as error:
        raise OptionError(f"{where}: {name}() in udfs= has an unknown type: {error}") from error
    return Udf(name, call, schema.fields[:-1], schema.types[-1])


def _kind(hint: Any, name: str, where: str) -> str:
    if isinstance(hint, str):
        return hint
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        plain = [arg for arg in inner if arg is not type(None)]
        if len(plain) == 1:
            return _kind(plain[0], name, where)
    if origin is list and inner:
        return f"{_kind(inner[0], name, where)}[]"
    if origin is dict and len(inner) == 2:
        return f"MAP({_kind(inner[0], name, where)}, {_kind(inner[1], name, where)})"
    if origin is typing.Annotated:
        return _kind(inner[1] if isinstance(inner[1], str) else inner[0], name, where)
    if hint not in _TYPES:
        raise OptionError(
            f"{where}: {name}() in udfs= has the annotation {hint!r}, which is no SQL type. "
            "Use int, float, str, bool, bytes, date, list[…], or a DuckDB type in quotes."
        )
    return _TYPES[hint]


def known(dialect: Dialect, udfs: tuple[Udf, ...]) -> Dialect:
    """A dialect whose `describe` knows the functions by name, arity and result."""
    if not udfs:
        return dialect

    def describe(sql: str, inputs: Any) -> Schema:
        return dialect.describe(sql, inputs, tuple(_macro(udf) for udf in udfs))

    return Dialect(dialect.parse, dialect.unparse, describe, dialect.explain)


def _macro(udf: Udf) -> str:
    """A stand-in of the same types: naming a column that a cast of its arguments gives."""
    names = quote.names(field.name for field in udf.parameters)
    casts = ", ".join(f"{quote.name(f.name)}::{f.type}" for f in udf.parameters)
    given = f"[({casts or 'NULL'})]"
    return (
        f"CREATE TEMP MACRO {quote.name(udf.name)}({names}) AS "
        f"CASE WHEN {given} IS NULL THEN NULL ELSE NULL::{udf.returns} END"
    )
