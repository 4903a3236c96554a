"""Batches as a user's function takes them, and what it gives as Arrow rows again."""

from __future__ import annotations

import traceback as tb
from typing import TYPE_CHECKING, Any

from millpond.engine.pandas_later import with_pandas_if_loaded
from millpond.errors import MillpondError, NotInPython

if TYPE_CHECKING:
    import numpy.typing as npt
    import pyarrow as pa


Arrays = dict[str, "npt.NDArray[Any]"]


class FunctionError(MillpondError):
    """A user's function raised, or gave something else than its schema says."""

    def __init__(self, message: str, cause: BaseException | None, traceback: str) -> None:
        super().__init__(message)
        self.cause, self.traceback = cause, traceback


def said_of(name: str, error: BaseException) -> str:
    return f"{name} raised {type(error).__name__}: {error}"


# Not the user's function's own: a generator of ours is closed, somebody pressed Ctrl-C. That
# strikes the main thread, where functions are tried: in a task it is the function's own, too.
PASS = (GeneratorExit, KeyboardInterrupt)


def raised(name: str, error: BaseException, place: str = "") -> FunctionError:
    """What a user's function raised, with a traceback that begins in the user's code."""
    at = error.__traceback__
    while at is not None and at.tb_frame.f_globals.get("__name__", "").startswith("millpond."):
        at = at.tb_next
    text = "".join(tb.format_exception(error.with_traceback(at)))
    return FunctionError(said_of(name, error) + place, error, text)


def as_values(column: pa.Array | pa.ChunkedArray, name: str) -> list[Any]:
    """A column as Python's own values; `NotInPython` names the first that is none."""
    import pyarrow as pa

    if pa.types.is_time(column.type):
        _check_times(column, name)
    try:
        found: list[Any] = column.to_pylist()
    except (OverflowError, ValueError):
        for i in range(len(column)):
            try:
                column[i].as_py()
            except (OverflowError, ValueError) as error:
                raise _not_in_python(name, i, column.type, error) from None
        raise
    return found


def _check_times(column: pa.Array | pa.ChunkedArray, name: str) -> None:
    """24:00:00 would come out as 00:00:00."""
    import pyarrow as pa
    import pyarrow.compute as pc

    ticks = column.cast(pa.int64() if column.type.bit_width == 64 else pa.int32())
    second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[column.type.unit]
    at = pc.index(pc.greater_equal(ticks, 86_400 * second), True).as_py()
    if at >= 0:
        raise _not_in_python(name, at, column.type, "24:00:00 is no time of a day")


def _not_in_python(name: str, row: int, kind: Any, why: object) -> NotInPython:
    return NotInPython(
        f"column {name!r} holds a value of type {kind} in row {row} that Python has not ({why}). "
        "Cast it to VARCHAR in SQL, or take the rows as Arrow."
    )


def as_format(rows: pa.RecordBatch | pa.Table | Arrays, format: str) -> Any:
    if isinstance(rows, dict):
        return rows
    match format:
        case "pandas":
            return _as_pandas(rows)
        case "numpy":
            return {name: as_numpy(rows.column(name), name) for name in rows.schema.names}
        case _:
            import pyarrow as pa

            return pa.table(rows.columns, schema=rows.schema) if rows.num_columns else rows


def _nested_in_one(column: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """A nested column in one piece: Arrow decides for each whether whole numbers become floats."""
    if column.type.num_fields and getattr(column, "num_chunks", 1) > 1:
        return column.combine_chunks()
    return column


def _as_pandas(rows: pa.RecordBatch | pa.Table) -> Any:
    for i, field in enumerate(rows.schema):
        if field.type.num_fields:
            rows = rows.set_column(i, field, _nested_in_one(rows.column(i)))
    odd = [name for name in rows.schema.names if _only_objects(rows.schema.field(name).type)]
    try:
        frame = rows.drop_columns(odd).to_pandas()
    except (OverflowError, ValueError):
        for name in rows.schema.names:
            as_values(rows.column(name), name)
        raise
    for name in odd:
        frame.insert(rows.schema.get_field_index(name), name, as_numpy(rows.column(name), name))
    return frame


def _only_objects(kind: pa.DataType) -> bool:
    """Intervals: Arrow makes objects of pandas of them, and crashes where it knows of none.
    Unions: it makes nothing of them."""
    return any(word in str(kind) for word in ("month_day_nano", "_union<"))


def as_numpy(column: pa.Array | pa.ChunkedArray, name: str) -> npt.NDArray[Any]:
    import numpy as np

    column = _nested_in_one(column)
    if _only_objects(column.type):
        items = np.empty(len(column), dtype=object)
        items[:] = as_values(column, name)
        return items
    options = {} if hasattr(column, "combine_chunks") else {"zero_copy_only": False}
    try:
        found: npt.NDArray[Any] = column.to_numpy(**options)
    except (OverflowError, ValueError):
        as_values(column, name)
        raise
    return found


def to_table(result: Any, name: str, known: pa.Schema) -> pa.Table:
    """What a function may give back, as an Arrow table.

    Values that Arrow cannot guess a type for, such as maps, get that of `known`.
    """
    import pyarrow as pa

    with_pandas_if_loaded()
    if isinstance(result, pa.Table):
        return result
    if isinstance(result, pa.RecordBatch):
        return pa.Table.from_batches([result])
    if isinstance(result, dict):
        _check_columns(result, name)
    framed = hasattr(result, "columns") or hasattr(result, "schema")  # No single column.
    if isinstance(result, dict) or (framed and type(result).__module__.startswith("pandas")):
        try:
            if isinstance(result, dict):
                return pa.table(result)
            return pa.Table.from_pandas(result, preserve_index=False)
        except (pa.ArrowException, TypeError):
            return pa.table({column: _guessed(result[column], column, known) for column in result})
    if framed and hasattr(result, "__arrow_c_stream__"):
        return pa.table(result)
    raise FunctionError(
        f"{name} gave {type(result).__name__}; it must give an Arrow table or batch, a pandas "
        "frame, or a dict of arrays.",
        None,
        "",
    )


def _check_columns(columns: dict[Any, Any], name: str) -> None:
    for column, values in columns.items():
        if isinstance(values, str | bytes) or not hasattr(values, "__iter__"):
            raise FunctionError(
                f"{name} gave {type(values).__name__} in the column {column!r}; it must give an "
                "array, or a list, with a value for each row.",
                None,
                "",
            )


def _guessed(values: Any, column: Any, known: pa.Schema) -> pa.Array | pa.ChunkedArray:
    import pyarrow as pa

    if isinstance(values, pa.Array | pa.ChunkedArray):
        return values
    try:
        return pa.array(values)
    except (pa.ArrowException, TypeError):
        if column not in known.names:
            raise
        return pa.array(values, known.field(column).type)


def as_arrow(result: Any, wanted: pa.Schema, name: str) -> pa.Table:
    import pyarrow as pa

    table = to_table(result, name, wanted)
    if set(table.column_names) != set(wanted.names):
        raise FunctionError(
            f"{name} gave the columns {', '.join(table.column_names)}; its schema has "
            f"{', '.join(wanted.names)}. Pass schema= with what it gives.",
            None,
            "",
        )
    table = table.select(wanted.names)
    if table.schema.types == wanted.types:
        return table.cast(wanted) if table.schema != wanted else table
    for i, (have, want) in enumerate(zip(table.schema, wanted, strict=True)):
        if pa.types.is_floating(have.type) and pa.types.is_integer(want.type):
            # So numpy and pandas have a NULL among whole numbers; NaN itself is none of them.
            table = table.set_column(i, have.name, _nan_as_null(table.column(i)))
    for column in wanted.names:
        try:
            table.column(column).cast(wanted.field(column).type)
        except (pa.ArrowException, NotImplementedError) as error:
            raise FunctionError(
                f"{name} gave {table.schema.field(column).type} in the column {column!r}, which "
                f"does not fit {wanted.field(column).type} ({error}).",
                error,
                "",
            ) from error
    return table.cast(wanted)


def _nan_as_null(numbers: pa.ChunkedArray) -> pa.ChunkedArray:
    import pyarrow as pa
    import pyarrow.compute as pc

    return pc.if_else(pc.is_nan(numbers), pa.scalar(None, numbers.type), numbers)
