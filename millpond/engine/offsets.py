"""Slices of nested Arrow columns, as DuckDB can read them.

A slice is an offset over the buffers of the whole. DuckDB 2 refuses a column where that
offset would have to reach a struct or union inside another one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import pyarrow as pa

    Rows = TypeVar("Rows", pa.RecordBatch, pa.Table)


def from_zero(rows: Rows) -> Rows:
    """The same rows; nested columns that are slices are copied, and so begin at zero."""
    import pyarrow as pa

    for i, field in enumerate(rows.schema):
        if not _holds_structs(field.type):
            continue
        column = rows.column(i)
        if isinstance(column, pa.ChunkedArray):
            chunks = [_settled(chunk) for chunk in column.chunks]
            rows = rows.set_column(i, field, pa.chunked_array(chunks, field.type))
        else:
            rows = rows.set_column(i, field, _settled(column))
    return rows


def _holds_structs(kind: pa.DataType) -> bool:
    """Whether a struct, union or fixed-size list has a struct or union anywhere inside."""
    import pyarrow as pa

    def inside(kind: pa.DataType) -> list[pa.DataType]:
        children = [kind.field(i).type for i in range(kind.num_fields)]
        return [*children, *(below for child in children for below in inside(child))]

    is_union, is_struct = pa.types.is_union, pa.types.is_struct
    fixed = pa.types.is_fixed_size_list(kind)
    return is_union(kind) or (
        (is_struct(kind) or fixed) and any(is_union(t) or is_struct(t) for t in inside(kind))
    )


def _settled(column: pa.Array) -> pa.Array:
    import pyarrow as pa

    return pa.concat_arrays([column, column.slice(0, 0)]) if _is_slice(column) else column


def _is_slice(column: pa.Array) -> bool:
    import pyarrow as pa

    if column.offset:
        return True
    if not pa.types.is_struct(column.type):
        return False
    return any(_is_slice(column.field(i)) for i in range(column.type.num_fields))
