"""Batches of any size → batches of a given size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from millpond.engine.values import Arrays, as_numpy
from millpond.errors import MillpondError

if TYPE_CHECKING:
    import numpy.typing as npt
    import pyarrow as pa

_MOST_FILLED = 1 << 22  # Rows: room for them is taken at once.


def sized(
    batches: Iterable[pa.RecordBatch], schema: pa.Schema, size: int
) -> Iterator[pa.RecordBatch]:
    """Batches of exactly `size` rows, but for the last."""
    for run in runs(batches, size):
        yield _one(run, schema)


def in_pieces(
    batches: Iterable[pa.RecordBatch], schema: pa.Schema, size: int
) -> Iterator[pa.RecordBatch | pa.Table]:
    """The same for who puts them together himself, as pandas: they are copied once, not twice."""
    import pyarrow as pa

    for run in runs(batches, size):
        yield run[0] if len(run) == 1 else pa.Table.from_batches(run, schema)


def filled(
    batches: Iterable[pa.RecordBatch], schema: pa.Schema, size: int
) -> Iterator[pa.RecordBatch | pa.Table | Arrays]:
    """The same for numpy: numbers are put together as they come, while they are in the cache."""
    if size > _MOST_FILLED:
        yield from in_pieces(batches, schema, size)
        return
    run: _Run | None = None
    for piece in _cut(batches, size):
        if run is None and piece.num_rows == size:
            yield piece
            continue
        run = run or _Run(schema, size)
        run.add(piece)
        if run.rows == size:
            yield run.whole()
            run = None
    if run is not None:
        yield run.whole()


def runs(batches: Iterable[pa.RecordBatch], size: int) -> Iterator[list[pa.RecordBatch]]:
    """Runs of `size` rows, but for the last, each in the pieces that it comes in."""
    held: list[pa.RecordBatch] = []
    count = 0
    for piece in _cut(batches, size):
        held.append(piece)
        count += piece.num_rows
        if count == size:
            yield held
            held, count = [], 0
    if held:
        yield held


def _cut(batches: Iterable[pa.RecordBatch], size: int) -> Iterator[pa.RecordBatch]:
    """The rows in pieces, none of them in two runs of `size` rows."""
    left = size
    for batch in batches:
        start = 0
        while start < batch.num_rows:
            n = min(left, batch.num_rows - start)
            yield batch if n == batch.num_rows else batch.slice(start, n)
            start, left = start + n, left - n or size


def _one(batches: list[pa.RecordBatch], schema: pa.Schema) -> pa.RecordBatch:
    import pyarrow as pa

    if len(batches) == 1:
        return batches[0]
    table = pa.Table.from_batches(batches, schema).combine_chunks()
    found = table.to_batches()
    if len(found) > 1:  # Arrow's text and binary hold 2 GB in one piece.
        raise MillpondError(
            f"a batch of {table.num_rows:,} rows holds more than 2 GB in one column; "
            "pass a smaller batch_size."
        )
    return found[0]


class _Run:
    """A batch on its way, from its pieces."""

    def __init__(self, schema: pa.Schema, size: int) -> None:
        self._schema, self.rows = schema, 0
        self._columns = [_Numbers(f.type, size) if _plain(f.type) else _Pieces(f.name)
                         for f in schema]  # fmt: skip

    def add(self, piece: pa.RecordBatch) -> None:
        for i, column in enumerate(piece.columns):
            mine = self._columns[i]
            if isinstance(mine, _Numbers) and column.null_count:
                # NULLs make other arrays of numpy: those are made of pieces.
                mine = self._columns[i] = _Pieces(self._schema.names[i], mine.piece(self.rows))
            mine.add(column, self.rows)
        self.rows += piece.num_rows

    def whole(self) -> Arrays:
        columns = [column.array(self.rows) for column in self._columns]
        return dict(zip(self._schema.names, columns, strict=True))


class _Pieces:
    """A column that numpy will put together."""

    def __init__(self, name: str, *before: pa.Array) -> None:
        self._name, self._held = name, [*before]

    def add(self, column: pa.Array, _: int) -> None:
        self._held.append(column)

    def array(self, _: int) -> npt.NDArray[Any]:
        import pyarrow as pa

        return as_numpy(pa.chunked_array(self._held), self._name)


class _Numbers:
    """A column of numbers without a NULL."""

    def __init__(self, kind: pa.DataType, size: int) -> None:
        import numpy as np

        self._kind = kind
        self._values: npt.NDArray[Any] = np.empty(size, kind.to_pandas_dtype())

    def add(self, column: pa.Array, first: int) -> None:
        self._values[first : first + len(column)] = column.to_numpy()

    def piece(self, rows: int) -> pa.Array:
        import pyarrow as pa

        return pa.array(self._values[:rows], self._kind)

    def array(self, rows: int) -> npt.NDArray[Any]:
        return self._values[:rows]


def _plain(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))
