"""Rows that the user made from Python objects: an Arrow table, and as a plan's value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import xxhash

from millpond.errors import OptionError, SchemaMismatch

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


def table_of(items: Any) -> pa.Table:
    """Python values as a table: dicts become columns, anything else a column `item`."""
    import pyarrow as pa

    rows = _listed(items)
    if rows and all(isinstance(row, dict) for row in rows):
        names = list(dict.fromkeys(name for row in rows for name in row))
        wrong = next((name for name in names if not isinstance(name, str)), None)
        if wrong is not None or not names:
            has = f"the key {wrong!r}; columns are named by text" if names else "no columns"
            raise SchemaMismatch(f"from_items(): a row has {has}.")
        columns = {c: [row.get(c) for row in rows] for c in names}
    else:
        columns = {"item": rows}
    try:
        try:
            return pa.table(columns)
        except (pa.ArrowException, TypeError, ValueError):
            return pa.table({c: list(map(_value, values)) for c, values in columns.items()})
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise SchemaMismatch(
            f"from_items(): the values of a column have no common type ({error}). "
            "Make them alike, or give an Arrow table with types of its own to from_arrow()."
        ) from error


def _listed(items: Any) -> list[Any]:
    """The rows. What is a whole frame, or one row, would be taken for a list of its names."""
    one = isinstance(items, Mapping | str | bytes) or hasattr(items, "columns")
    try:
        if not one:
            return list(items)
    except TypeError:
        pass
    raise OptionError(
        f"from_items(): needs a list of rows, not {type(items).__name__}. from_arrow() takes "
        "tables, frames of Polars and dicts of columns, from_pandas() frames of pandas."
    )


def _value(item: Any) -> Any:
    """None for what pandas puts in place of it, and Arrow takes for no value."""
    return None if type(item).__name__ in ("NaTType", "NAType") else item


def table_of_pandas(frame: pd.DataFrame) -> pa.Table:
    """A pandas frame as a table, without its index."""
    import pyarrow as pa

    if not hasattr(frame, "columns") or not hasattr(frame, "index"):
        raise OptionError(
            f"from_pandas(): needs a pandas frame, not {type(frame).__name__}. "
            "from_items() takes lists, from_arrow() what Arrow can read."
        )
    try:
        return pa.Table.from_pandas(frame, preserve_index=False)
    except (pa.ArrowException, TypeError, ValueError) as error:
        said = ": ".join(map(str, error.args)) or type(error).__name__
        raise SchemaMismatch(
            f"from_pandas(): Arrow cannot take a column ({said}). Give its values one type, and "
            "each column its own name."
        ) from error


class ArrowRows:
    """An Arrow table that compares by content and pickles as an Arrow stream."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    @cached_property
    def digest(self) -> str:
        import pyarrow as pa

        hashed = _Hashed()
        _write(self.table, pa.PythonFile(hashed, "w"))
        return hashed.hash.hexdigest()

    def slice(self, first: int, n: int) -> ArrowRows:
        return ArrowRows(self.table.slice(first, n))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ArrowRows):
            return NotImplemented
        return self.table is other.table or self.digest == other.digest

    def __hash__(self) -> int:
        return hash((self.table.num_rows, tuple(self.table.column_names)))

    def __repr__(self) -> str:
        return f"ArrowRows({self.table.num_rows} rows, {self.table.num_columns} columns)"

    def __reduce__(self) -> tuple[Any, tuple[bytes]]:
        return _from_stream, (_stream(self.table),)


class _Hashed:
    """A file that keeps a hash of what is written, and nothing else."""

    closed = False

    def __init__(self) -> None:
        self.hash = xxhash.xxh3_128()

    def write(self, data: Any) -> int:
        self.hash.update(data)
        return len(data)

    def flush(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """Nothing is open."""


def let_go(held: list[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """One after the other; those that were given are held no longer."""
    held.reverse()
    while held:
        yield held.pop()


def _stream(table: pa.Table) -> bytes:
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    _write(table, sink)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _write(table: pa.Table, sink: pa.NativeFile) -> None:
    import pyarrow as pa

    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


def _from_stream(data: bytes) -> ArrowRows:
    import pyarrow as pa

    return ArrowRows(pa.ipc.open_stream(data).read_all())
