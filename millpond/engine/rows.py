"""Functions of one row, one after the other, with Arrow at both ends only.

Between two of them a column stays a list of Python's values where Arrow would give back
just these. Any other (a whole number in a column of floats, a list, a subclass) goes
through Arrow. So functions in a line give what they give one by one.
"""

from __future__ import annotations

import functools
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import chain, compress
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from millpond.engine.pandas_later import (
    nanoseconds,
    whole_nanoseconds,
    with_pandas_for,
    with_pandas_if_loaded,
)
from millpond.engine.values import FunctionError, as_values, raised, said_of

if TYPE_CHECKING:
    import pyarrow as pa

# A few thousand rows stay in the processor's cache: a quarter faster than 100,000 at once.
_ROWS_AT_ONCE = 2048


class RowFunction:
    """A user's function of one row; `kind` is "row", "flat" or "filter". Counts its rows."""

    def __init__(
        self, kind: str, name: str, function: Callable[..., Any], gives: pa.Schema
    ) -> None:
        self.kind, self.name, self.function, self.gives = kind, name, function, gives
        self._seen = 0

    def over(self, rows: _Rows, last: bool) -> _Rows:
        """What it gives for some rows; of the `last` function, as Arrow."""
        first, self._seen = self._seen, self._seen + rows.n
        out = _called(self.kind, self.function, self.name, rows.as_dicts(), first)
        if self.kind == "filter":
            return rows.kept(out, last)
        rows.dicts = None  # A function that gives what it got holds no second name of it now.
        return _given(out, self.gives, self.name, first, last)


def through(
    line: Sequence[RowFunction], batches: Iterable[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    """Rows of `batches` through all functions of a line, in order."""
    import pyarrow as pa

    for batch in batches:
        made: list[pa.RecordBatch] = []
        for start in range(0, batch.num_rows, _ROWS_AT_ONCE):
            rows = _of_batch(batch.slice(start, _ROWS_AT_ONCE))
            for function in line:
                rows = function.over(rows, function is line[-1])
            made.append(rows.as_batch())
        if made:
            table = pa.Table.from_batches(made, made[0].schema)
            yield from table.combine_chunks().to_batches()


@dataclass(slots=True)
class _Rows:
    """Some rows, column by column: as values, as Arrow, or both; `dicts` if they are made."""

    schema: pa.Schema
    n: int
    values: list[list[Any] | None]
    arrays: Sequence[pa.Array | None]
    dicts: list[dict[str, Any]] | None = None

    def as_dicts(self) -> list[dict[str, Any]]:
        if self.dicts is None:
            for i, made in enumerate(self.arrays):
                if made is not None and self.values[i] is None:
                    self.values[i] = as_values(made, self.schema.names[i])
            self.dicts = _dicts(self.schema.names, self.values, self.n)
        return self.dicts

    def as_batch(self) -> pa.RecordBatch:
        import pyarrow as pa

        columns = [
            pa.array(values, field.type) if made is None else made
            for made, values, field in zip(self.arrays, self.values, self.schema, strict=True)
        ]
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)

    def kept(self, which: list[bool], last: bool) -> _Rows:
        """Those rows. A condition may have changed its dicts, and their lists: both are dropped."""
        import pyarrow as pa

        mask = pa.array(which, pa.bool_())
        return _Rows(
            self.schema,
            sum(which),
            [
                list(compress(values, which))
                if values and (made is None or (not last and str(field.type) in _EXACT))
                else None
                for values, made, field in zip(self.values, self.arrays, self.schema, strict=True)
            ],
            [None if made is None else made.filter(mask) for made in self.arrays],
        )


def _of_batch(batch: pa.RecordBatch) -> _Rows:
    with_pandas_for(batch.schema)
    return _Rows(batch.schema, batch.num_rows, [None] * batch.num_columns, batch.columns)


def as_rows(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """Rows as dicts, as Arrow's `to_pylist`, in half of its time."""
    return _of_batch(batch).as_dicts()


def table_rows(table: pa.Table) -> list[dict[str, Any]]:
    """The rows of a whole result as dicts."""
    names = table.column_names
    columns = [as_values(table.column(i), name) for i, name in enumerate(names)]
    return _dicts(names, columns, table.num_rows)


def from_rows(rows: list[Any], wanted: pa.Schema, name: str, first: int = 0) -> pa.RecordBatch:
    """Dicts as a batch; a missing key is NULL, a key without a column is an error."""
    return _given(rows, wanted, name, first, True).as_batch()


def _dicts(names: Sequence[str], columns: Sequence[Any], n: int) -> list[dict[str, Any]]:
    return _row_maker(tuple(names))(columns) if names else [{} for _ in range(n)]


@functools.lru_cache(maxsize=64)
def _row_maker(names: tuple[str, ...]) -> Callable[[Sequence[Any]], list[dict[str, Any]]]:
    """`lambda columns: [{"a": v0, "b": v1} for (v0, v1,) in zip(*columns)]`, for these names.

    Python makes a dict from a literal twice as fast as from pairs. A name is written by
    `repr`, so that it stays a name whatever it contains.
    """
    items = ", ".join(f"{name!r}: v{i}" for i, name in enumerate(names))
    each = "".join(f"v{i}, " for i in range(len(names)))
    made: Callable[[Sequence[Any]], list[dict[str, Any]]] = eval(
        f"lambda columns: [{{{items}}} for ({each}) in zip(*columns)]"
    )
    return made


def _called(
    kind: str, function: Callable[..., Any], name: str, rows: list[dict[str, Any]], first: int
) -> list[Any]:
    """What the function gives for each row; `first` is the place of the first, for an error."""
    out: list[Any] = []
    place = 0
    try:
        match kind:
            case "row":
                for row in rows:
                    out.append(function(row))
                    place += 1
            case "flat":
                for row in rows:
                    out.extend(several(function(row), name, first + place))
                    place += 1
            case _:
                for row in rows:
                    out.append(bool(function(row)))
                    place += 1
    except (FunctionError, GeneratorExit):
        raise
    except BaseException as error:  # A user's function may raise anything.
        raise raised(name, error, f" on row {first + place} of the partition") from error
    return out


# ---- what a function gives -----------------------------------------------------------


def several(given: Any, name: str, row: int) -> Iterable[Any]:
    """What a function gave for a row of which it makes several."""
    if not isinstance(given, Iterable):
        what = f"{name} gave {type(given).__name__} for row {row}, not a list of dicts."
        raise FunctionError(what, None, "")
    return given


def _given(rows: list[Any], wanted: pa.Schema, name: str, first: int, last: bool) -> _Rows:
    import pyarrow as pa

    with_pandas_if_loaded()
    names = tuple(wanted.names)
    if same := _have_just(rows, names):
        columns = [list(map(itemgetter(column), rows)) for column in names]
    else:
        _check_keys(rows, names, name, first)
        columns = [[row.get(column) for row in rows] for column in names]
    values: list[list[Any] | None] = [
        None if last or not _comes_back(column, field.type) else column
        for column, field in zip(columns, wanted, strict=True)
    ]
    try:
        arrays = [
            _column(column, field.type) if kept is None else None
            for column, kept, field in zip(columns, values, wanted, strict=True)
        ]
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise _misfit(rows, wanted, name, first, error) from error
    as_they_are = same and None not in values and _are_ours(rows)
    return _Rows(wanted, len(rows), values, arrays, rows if as_they_are else None)


def _have_just(rows: list[Any], names: tuple[str, ...]) -> bool:
    """Whether all are dicts of just these keys in this order, as those of most functions are."""
    if set(map(type, rows)) != {dict} or set(map(len, rows)) != {len(names)}:
        return False
    return list(chain.from_iterable(rows)) == list(names) * len(rows)


def _check_keys(rows: list[Any], names: Sequence[str], name: str, first: int) -> None:
    known = set(names)
    for i, row in enumerate(rows):
        if not isinstance(row, dict):
            what = f"{name} gave {type(row).__name__} for row {first + i}, not a dict"
            raise FunctionError(f"{what}.", None, "")
        if not row.keys() <= known:
            extra = sorted(map(str, set(row) - known))
            raise FunctionError(
                f"{name} gave the field {extra[0]!r} for row {first + i}, which its schema "
                f"({', '.join(names)}) does not have. Pass schema= with all of its columns.",
                None,
                "",
            )
    if rows and not any(names[0] in row for row in rows) and not any(rows[0]):
        raise FunctionError(f"{name} gave rows without columns.", None, "")


def _column(values: list[Any], kind: pa.DataType) -> pa.Array:
    import pyarrow as pa

    if nanoseconds(kind):
        return pa.array(whole_nanoseconds(values), kind)
    if pa.types.is_timestamp(kind) and any(getattr(value, "nanosecond", 0) for value in values):
        raise ValueError("its nanoseconds would be lost; TIMESTAMP_NS holds them")
    return pa.array(values, kind)


def _misfit(
    rows: list[Any], wanted: pa.Schema, name: str, first: int, error: BaseException
) -> FunctionError:
    import pyarrow as pa

    for field in wanted:
        for i, row in enumerate(rows):
            try:
                _column([row.get(field.name)], field.type)
            except (pa.ArrowException, TypeError, ValueError, OverflowError) as why:
                return FunctionError(
                    f"{name} gave {row.get(field.name)!r} in the field {field.name!r} of row "
                    f"{first + i}; its type is {field.type} ({why}). Pass schema= if another "
                    "type is meant.",
                    why,
                    "",
                )
    return FunctionError(said_of(name, error), error, "")


# ---- what need not go through Arrow --------------------------------------------------

# By Arrow's word for the type: the only Python class whose objects come back as they are, and
# for whole numbers the machine's word for their range.
_EXACT: dict[str, tuple[type, str]] = {
    **{f"int{8 << i}": (int, word) for i, word in enumerate("bhiq")},
    **{f"uint{8 << i}": (int, word) for i, word in enumerate("BHIQ")},
    "double": (float, ""),
    "bool": (bool, ""),
    "date32[day]": (date, ""),
    "binary": (bytes, ""),
    "large_binary": (bytes, ""),
    "string": (str, ""),
    "large_string": (str, ""),
}


def _comes_back(values: list[Any], kind: pa.DataType) -> bool:
    """Whether Arrow would give back these very values."""
    exact, word = _EXACT.get(str(kind), (None, ""))
    found = set(map(type, values))
    if exact is None or not found <= {exact, type(None)}:
        return False
    there = values if len(found) == 1 else list(filter(None, values))
    try:
        if word and exact in found:
            array(word, there)
        elif exact is str and exact in found:
            "".join(there).encode()
    except (OverflowError, UnicodeEncodeError):  # Arrow says so in better words.
        return False
    return True


_ONCE = max(map(sys.getrefcount, [{}, {}]))  # What Python counts for what only a list holds.


def _are_ours(rows: list[Any]) -> bool:
    """Whether nobody else holds any of these dicts, so that the next function may change them."""
    return max(map(sys.getrefcount, rows), default=0) <= _ONCE
