"""Rows that the user made from Python objects: an Arrow table as a plan's value."""

from __future__ import annotations

from collections.abc import Iterator
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
