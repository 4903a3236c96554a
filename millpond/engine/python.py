"""User functions over Arrow batches: rows, batches, partitions, groups.

A function is unpickled, and a class built, once per worker process. What a function
raises, or gives that does not fit its schema, becomes a `FunctionError` that names the
field and the row; the worker turns it into a `TaskError` with the place in the run.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import cloudpickle

from millpond.engine.pieces import filled, in_pieces, sized
from millpond.engine.rows import RowFunction, several, through
from millpond.engine.values import (
    PASS,
    Arrays,
    FunctionError,
    as_arrow,
    as_format,
    raised,
    to_table,
)
from millpond.plan.nodes import PythonCall

if TYPE_CHECKING:
    import pyarrow as pa


_CUT: dict[str, Callable[..., Iterator[Any]]]
_CUT = {"arrow": sized, "pandas": in_pieces, "numpy": filled}


@functools.lru_cache(maxsize=64)
def loaded(function: bytes) -> Callable[..., Any]:
    """The function, or an instance of the class, once per process."""
    found: Callable[..., Any] = cloudpickle.loads(function)
    return found() if isinstance(found, type) else found


def is_class(call: PythonCall) -> bool:
    """Whether the user gave a class, to be built once per process."""
    return isinstance(cloudpickle.loads(call.function), type)


def apply(
    call: PythonCall,
    batches: Iterable[pa.RecordBatch],
    given: pa.Schema,
    wanted: pa.Schema,
    most_bytes: int = sys.maxsize,
    earlier: Sequence[tuple[PythonCall, pa.Schema]] = (),
) -> Iterator[pa.RecordBatch]:
    """The rows that the function gives for `batches` (of schema `given`), as `wanted`.

    A function of a whole partition or group gets at most `most_bytes` at once. One of rows
    may have others that run `earlier`, each with what it gives.
    """
    function = guarded(call)
    match call.kind:
        case "row" | "flat" | "filter":
            line = [RowFunction(each.kind, each.name, guarded(each), gives)
                    for each, gives in (*earlier, (call, wanted))]  # fmt: skip
            yield from through(line, batches)
        case "batch":
            cut = _CUT[call.format]
            for rows in cut(batches, given, call.batch_size):
                yield from call_on(function, rows, call, wanted)
        case "partition":
            whole = _Whole(given, call.name, "partition", most_bytes)
            for batch in batches:
                whole.add(batch)
            yield from call_on(function, whole.take(), call, wanted)
        case "group":
            for group in _groups(batches, given, call.group_keys, call.name, most_bytes):
                yield from call_on(function, group, call, wanted)


def guarded(call: PythonCall) -> Callable[..., Any]:
    try:
        return loaded(call.function)
    except PASS:
        raise
    except BaseException as error:  # The user's own constructor or imports.
        raise raised(call.name, error) from error


def call_on(
    function: Callable[..., Any], rows: pa.RecordBatch | pa.Table | Arrays, call: PythonCall,
    out: pa.Schema,
) -> Iterator[pa.RecordBatch]:  # fmt: skip
    """What a function of batches, partitions or groups gives for `rows`."""
    try:
        given = function(as_format(rows, call.format))
        results = given if isinstance(given, Iterator) else iter([given])
        for result in results:
            yield from as_arrow(result, out, call.name).to_batches()
    except (FunctionError, GeneratorExit):
        raise
    except BaseException as error:  # A user's function may raise anything.
        raise raised(call.name, error) from error


class _Whole:
    """Rows that a function gets in one piece; more than the memory holds are an error."""

    def __init__(self, schema: pa.Schema, name: str, what: str, most_bytes: int) -> None:
        self._schema, self._name, self._what, self._most = schema, name, what, most_bytes
        self._held: list[pa.RecordBatch] = []
        self._bytes = 0

    def add(self, batch: pa.RecordBatch) -> None:
        self._held.append(batch)
        self._bytes += batch.nbytes
        if self._bytes > self._most:
            raise FunctionError(
                f"{self._name} takes a whole {self._what} at once, and one holds more than the "
                f"{self._most / 1e6:,.0f} MB that its process may use. Make more, smaller "
                f"{self._what}s, use map_batches, or raise memory_limit.",
                None,
                "",
            )

    def take(self) -> pa.Table:
        import pyarrow as pa

        held, self._held, self._bytes = self._held, [], 0
        return pa.Table.from_batches(held, self._schema)


def _groups(
    batches: Iterable[pa.RecordBatch],
    schema: pa.Schema,
    keys: tuple[str, ...],
    name: str,
    most_bytes: int,
) -> Iterator[pa.Table]:
    """Runs of rows with equal keys; the input is sorted by them. One run is held at a time."""
    group = _Whole(schema, name, "group", most_bytes)
    at: str | None = None
    for batch in batches:
        rows = zip(*(batch.column(k).to_pylist() for k in keys), strict=True)
        start = 0
        for i, row in enumerate(rows):
            key = repr(row)
            if "-0.0" in key:
                key = repr(_one_zero(row))
            if at is not None and key != at:
                group.add(batch.slice(start, i - start))
                yield group.take()
                start = i
            at = key
        group.add(batch.slice(start))
    if at is not None:
        yield group.take()


def _one_zero(item: Any) -> Any:
    """-0.0 is 0.0 for SQL, wherever it stands in a key."""
    match item:
        case float():
            return item + 0.0
        case dict():
            return {name: _one_zero(part) for name, part in item.items()}
        case list() | tuple():
            return type(item)(map(_one_zero, item))
    return item


def sample_rows(function: Callable[..., Any], call: PythonCall, rows: list[Any]) -> list[Any]:
    """What a row function gives for a few rows, to learn its schema."""
    if call.kind == "flat":
        some = (several(function(row), call.name, i) for i, row in enumerate(rows))
        return [out for given in some for out in islice(given, 100)]
    return [function(row) for row in rows]


def widened(learnt: pa.Schema, given: pa.Schema) -> pa.Schema:
    """What a few rows tell of their types, made wide enough for the rows to come.

    A decimal shows as many digits as it has, and NULLs show no type at all. A column that
    the input has under the same name keeps its type there; other decimals get 38 digits.
    """
    import pyarrow as pa

    fields = []
    for field in learnt:
        i = given.get_field_index(field.name)
        before: Any = given.field(i).type if i >= 0 else None
        if pa.types.is_null(field.type) and before is not None:
            field = field.with_type(before)
        elif pa.types.is_decimal(field.type):
            kept = before is not None and pa.types.is_decimal(before)
            fits = kept and before.scale >= field.type.scale
            field = field.with_type(before if fits else pa.decimal128(38, field.type.scale))
        fields.append(field)
    return pa.schema(fields)


def try_function(call: PythonCall, rows: pa.Table, where: str) -> pa.Table:
    """What the function gives for a few rows, as a table: to learn names and types."""
    import pyarrow as pa

    function = guarded(call)
    try:
        if call.kind in ("row", "flat"):
            given = sample_rows(function, call, rows.to_pylist())
        else:
            if call.kind == "group" and rows.num_rows:
                ordered = rows.sort_by([(k, "ascending") for k in call.group_keys])
                rows = next(_groups(ordered.to_batches(), rows.schema, call.group_keys,
                                    call.name, ordered.nbytes))  # fmt: skip
            result = function(as_format(rows, call.format))
            found = next(result) if isinstance(result, Iterator) else result
            return to_table(found, call.name, rows.schema)
    except (FunctionError, *PASS):
        raise
    except BaseException as error:  # A user's function may raise anything.
        raise raised(call.name, error) from error
    for i, row in enumerate(given):
        if not isinstance(row, dict):
            what = f"{call.name} gave {type(row).__name__} for row {i}, not a dict"
            raise FunctionError(f"{what}.", None, "")
    names = list(dict.fromkeys(name for row in given for name in row))
    if not names:
        raise FunctionError(
            f"its columns cannot be learnt, as it gave {'no fields' if given else 'no rows'} "
            'for the first 100 rows. Pass schema={"name": "TYPE", …}.',
            None,
            "",
        )
    try:
        return pa.table({name: [row.get(name) for row in given] for name in names})
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise FunctionError(
            f"its fields have mixed types ({error}). Pass schema=.", error, ""
        ) from error
