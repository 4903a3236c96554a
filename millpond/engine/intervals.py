"""Intervals in sort keys: a month, 30 days and 720 hours are equal, but their bytes are not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from millpond.expr import quote

if TYPE_CHECKING:
    import pyarrow as pa


def with_equal_intervals(sql: str, kind: pa.DataType, *, inside: bool) -> str:
    """SQL for a value that sorts as the one of `sql` does, where equal intervals are the same.

    `kind` is its type in Arrow. Also those `inside` of other values, whose types change then: an
    array becomes a list, and a map its entries.
    """
    import pyarrow as pa

    return _equal(sql, kind, 0) if inside or pa.types.is_interval(kind) else sql


def _equal(sql: str, kind: pa.DataType, depth: int) -> str:
    import pyarrow as pa

    if not _has_interval(kind):
        return sql
    if pa.types.is_interval(kind):
        return f"normalized_interval({sql})"
    if pa.types.is_struct(kind):
        items = ", ".join(
            f"{quote.name(field.name)} := "
            + _equal(f"struct_extract({sql}, {quote.value(field.name)})", field.type, depth)
            for field in kind
        )
        return f"CASE WHEN ({sql}) IS NOT NULL THEN struct_pack({items}) END"
    name, each = f"__e{depth}", kind.field(0).type
    if pa.types.is_map(kind):
        sql = f"map_entries({sql})"
    return f"list_transform({sql}, lambda {name}: {_equal(name, each, depth + 1)})"


def _has_interval(kind: pa.DataType) -> bool:
    import pyarrow as pa

    if pa.types.is_interval(kind):
        return True
    return any(_has_interval(kind.field(i).type) for i in range(kind.num_fields))
