"""Files of fixed-width binary records: nothing but records, one after the other.

A record is its fields side by side, each so many bytes. In Arrow a field is a
fixed-size binary column; for the engine it is a BLOB. Whole records, without looking
at fields, are one such column over the file's own bytes.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from itertools import count as count_from
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from millpond.errors import FileUnreadable, MillpondError, OptionError
from millpond.formats.scan import FileSlice, Split
from millpond.schema import Schema
from millpond.storage import FileInfo, Range, Storage, read_ahead
from millpond.storage.direct import BlockFile

Bytes: TypeAlias = bytes | bytearray | memoryview
Rows: TypeAlias = npt.NDArray[np.uint8]  # One row per record.

BATCH_BYTES = 12 << 20  # About DuckDB's row group of records of 100 bytes.


@dataclass(frozen=True, slots=True)
class Layout:
    """The fields of a record, in order, with their widths in bytes."""

    names: tuple[str, ...]
    widths: tuple[int, ...]

    @classmethod
    def of(cls, fields: Mapping[str, int], where: str) -> "Layout":
        """From `{"key": 10, "value": 90}`; `OptionError` for widths that are none."""
        if not fields or not isinstance(fields, Mapping):
            raise OptionError(f"{where}: no fields. Give the width of each: {{'key': 10, …}}.")
        for name, width in fields.items():
            if isinstance(width, bool) or not isinstance(width, int) or width < 1:
                raise OptionError(f"{where}: field {name!r} is {width!r} bytes wide; 1 is least.")
        return cls(tuple(fields), tuple(fields.values()))

    @property
    def record_bytes(self) -> int:
        return sum(self.widths)

    @property
    def schema(self) -> Schema:
        return Schema.of((name, "BLOB") for name in self.names)

    @property
    def places(self) -> dict[str, slice]:
        """Where each field is in a record."""
        ends = accumulate(self.widths)
        return {
            name: slice(end - width, end)
            for name, width, end in zip(self.names, self.widths, ends, strict=True)
        }


# ---- reading -------------------------------------------------------------------------


def count(file: FileInfo, layout: Layout) -> int:
    """The number of records in a file, from its size."""
    n, rest = divmod(file.size_bytes, layout.record_bytes)
    if rest:
        raise FileUnreadable(
            f"{file.path}: {file.size_bytes:,} bytes are {n:,} records of "
            f"{layout.record_bytes} bytes and {rest} more. Is it cut short, or are its "
            "fields of other widths?"
        )
    return n


def splits(files: Iterable[FileInfo], layout: Layout, target_bytes: int) -> tuple[Split, ...]:
    """Cut the files, each on its own, into splits of at most about `target_bytes`."""
    done = []
    for file in files:
        n = count(file, layout)
        n_pieces = -(-n * layout.record_bytes // target_bytes)
        edges = [n * i // n_pieces for i in range(n_pieces + 1)] if n_pieces else []
        for first, end in pairwise(edges):
            done.append(Split((FileSlice(file.path, first, end - first),)))
    return tuple(done)


def read(
    storage: Storage,
    slices: Sequence[FileSlice],
    layout: Layout,
    columns: Sequence[str] | None = None,
    batch_bytes: int = BATCH_BYTES,
) -> Iterator[pa.RecordBatch]:
    """The records of some slices in order, the fields `columns` of them (None: all)."""
    for piece in slices:
        for data in read_bytes(storage, piece, layout, batch_bytes):
            yield fields(as_rows(data, layout), layout, columns)


def read_bytes(
    storage: Storage, piece: FileSlice, layout: Layout, batch_bytes: int = BATCH_BYTES
) -> Iterator[memoryview]:
    """The bytes of a slice, some whole records at a time.

    From an object store the next ones are fetched while these are used.
    """
    width = layout.record_bytes
    step = max(1, batch_bytes // width)
    end = None if piece.n_rows is None else piece.first_row + piece.n_rows
    wanted = (
        Range(piece.path, first * width, (step if end is None else min(step, end - first)) * width)
        for first in (count_from(piece.first_row, step) if end is None
                      else range(piece.first_row, end, step))
    )  # fmt: skip
    for asked, data in read_ahead(storage, wanted):
        if len(data) % width or (end is not None and len(data) < asked.length):
            raise FileUnreadable(
                f"{piece.path}: ends within record {(asked.offset + len(data)) // width}. "
                "Was it cut short while it was read?"
            )
        if data:
            yield data
        if len(data) < asked.length:
            return


def as_rows(data: Bytes, layout: Layout) -> Rows:
    """The records in `data` as an array of bytes, one row each. A view."""
    return np.frombuffer(data, np.uint8).reshape(-1, layout.record_bytes)


def whole(data: Bytes, layout: Layout) -> pa.FixedSizeBinaryArray:
    """The records in `data` as one column. A view."""
    width = layout.record_bytes
    return _binary(pa.py_buffer(data), len(data) // width, width)


def fields(rows: Rows, layout: Layout, columns: Sequence[str] | None = None) -> pa.RecordBatch:
    """Records as one column per field: a copy, for a column's values must be adjacent."""
    places = layout.places
    names = layout.names if columns is None else columns
    arrays = []
    for name in names:
        values = np.ascontiguousarray(rows[:, places[name]])
        arrays.append(_binary(pa.py_buffer(values), *values.shape))
    return pa.RecordBatch.from_arrays(arrays, list(names))


def _binary(data: pa.Buffer, n: int, width: int) -> pa.FixedSizeBinaryArray:
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), n, [None, data])


# ---- writing -------------------------------------------------------------------------


class FixedWriter:
    """Writes batches of binary columns as records. Ends with `close` or `abort`."""

    def __init__(self, path: str, layout: Layout, *, direct_after: int | None = None) -> None:
        self.rows = 0
        self._layout = layout
        self._file = BlockFile(path, direct_after=direct_after)

    def add(self, batch: pa.RecordBatch) -> None:
        """Add rows; each value must be as wide as its field."""
        self.add_bytes(to_rows(batch, self._layout))

    def add_bytes(self, rows: Rows) -> None:
        """Add whole records."""
        assert rows.shape[1] == self._layout.record_bytes
        if len(rows):
            self._file.append(np.ascontiguousarray(rows).data.cast("B"))
        self.rows += len(rows)

    def close(self) -> int:
        """The size of the file."""
        self._file.close()
        return self._file.position

    def abort(self) -> None:
        self._file.abort()


def to_rows(batch: pa.RecordBatch, layout: Layout) -> Rows:
    """Columns side by side; `MillpondError` names a value that is not as wide as its field."""
    rows = np.empty((batch.num_rows, layout.record_bytes), np.uint8)
    for (name, place), column in zip(layout.places.items(), batch.columns, strict=True):
        rows[:, place] = values(column, name, place.stop - place.start)
    return rows


def values(column: pa.Array, name: str, width: int) -> Rows:
    """The bytes of a binary column, one row per value. A view."""
    if column.null_count:
        raise MillpondError(
            f"write_fixed: field {name!r} has {column.null_count} NULL values; a record has no "
            "place for them. Give them a value with coalesce."
        )
    n = len(column)
    if not n:
        return np.empty((0, width), np.uint8)
    if pa.types.is_fixed_size_binary(column.type):
        widths, first = np.full(1, column.type.byte_width), column.offset * column.type.byte_width
        data = column.buffers()[1]
    else:
        large = pa.types.is_large_binary(column.type) or pa.types.is_large_string(column.type)
        kind = np.dtype(np.int64 if large else np.int32)
        _, places, data = column.buffers()
        edges = np.frombuffer(places, kind, n + 1, column.offset * kind.itemsize)
        widths, first = np.diff(edges), int(edges[0])
    wrong = np.flatnonzero(widths != width)
    if len(wrong):
        raise MillpondError(
            f"write_fixed: a value of field {name!r} has {widths[wrong[0]]} bytes; "
            f"the field has {width}."
        )
    return np.frombuffer(data, np.uint8, n * width, first).reshape(n, width)
