"""Rows that the user made from Python objects: an Arrow table as a plan's value."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import xxhash

if TYPE_CHECKING:
    import pyarrow as pa


class ArrowRows:
    """An Arrow table that compares by content and pickles as an Arrow stream."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    @cached_property
    def digest(self) -> str:
        return xxhash.xxh3_128_hexdigest(_stream(self.table))

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


def _stream(table: pa.Table) -> bytes:
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _from_stream(data: bytes) -> ArrowRows:
    import pyarrow as pa

    return ArrowRows(pa.ipc.open_stream(data).read_all())
