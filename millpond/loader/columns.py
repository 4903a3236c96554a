"""Columns of a batch: what a gather gives, and the same as numpy or Arrow.

A `Column` is plain arrays in Arrow's layout. Numbers and fixed-size lists become
numpy views of them; lists of numbers become `Ragged`; all else becomes objects.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from millpond.errors import OptionError
from millpond.formats.shard_types import (
    has_long_offsets,
    is_bytes,
    is_fixed,
    is_fixed_list,
    is_list,
)

Int64s = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

_MOST_ELEMENTS = 2**31 - 1  # Of a column whose offsets have 32 bits.


@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """Values of one column. Which fields count depends on the type.

    `values`: bytes of fixed values (n, width), bits as bools, or the joined bytes of
    strings. `offsets`: n + 1 of them, for strings in bytes, for lists in elements.
    `valid`: one bool a value, None where all are. `array`: all of it, where a file's
    decoder gave an Arrow array; then the others do not count. `rows`: likewise, where
    values were left where they are stored: an array a row, None for a null.
    """

    kind: pa.DataType
    n: int
    values: npt.NDArray[Any] | None = None
    offsets: Int64s | None = None
    valid: npt.NDArray[np.bool_] | None = None
    children: tuple["Column", ...] = ()
    array: pa.Array | None = None
    rows: list[npt.NDArray[Any] | None] | None = None


class Ragged:
    """Rows of different lengths: one array of `values`, and `offsets` of n + 1 rows.

    Elements that are null are masked: `values` is then a masked array.
    `ragged[i]` is a view of row i; `ragged[i:j]` a `Ragged` whose values are a view of
    those rows' values alone, so `offsets` always begin at 0 and end at `len(values)`.
    Rows that are null are empty.
    """

    __slots__ = ("offsets", "values")

    def __init__(self, values: npt.NDArray[Any], offsets: Int64s) -> None:
        self.values, self.offsets = values, offsets

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, at: int | slice) -> Any:
        if isinstance(at, slice):
            first, last, step = at.indices(len(self))
            if step != 1:
                raise IndexError(f"a slice of ragged rows has step 1, not {step}")
            offsets = self.offsets[first : max(first, last) + 1]
            return Ragged(self.values[offsets[0] : offsets[-1]], offsets - offsets[0])
        if not -len(self) <= at < len(self):
            raise IndexError(f"row {at} of {len(self)} ragged rows")
        at %= len(self)
        return self.values[self.offsets[at] : self.offsets[at + 1]]

    def __iter__(self) -> Iterator[npt.NDArray[Any]]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return f"Ragged({len(self)} rows of {self.values.dtype})"

    @property
    def lengths(self) -> Int64s:
        return np.diff(self.offsets)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        rows = np.empty(len(self), object)
        rows[:] = list(self)
        return rows


class TooLarge(OptionError):
    """Rows hold more in one column than its Arrow type can count."""

    def __init__(self, kind: pa.DataType, n_rows: int, size: int) -> None:
        super().__init__(
            f"{n_rows:,} rows hold {size:,} elements in one column of type {kind}, whose offsets "
            "count 2^31 at most. Take fewer rows at once (a smaller batch_size), or write the "
            "column as a large_ type of Arrow."
        )


class NullTokens(OptionError):
    """A list of tokens that is to be packed has an element that is null."""

    def __init__(self) -> None:
        super().__init__(
            "loader(tokens=…): some lists have elements that are NULL, and a pack has no place "
            "for them. Leave them out (list_filter) before writing the training set."
        )


def flat_lists(lists: Column) -> tuple[npt.NDArray[Any], Int64s]:
    """The elements of lists of numbers, one list after the other, and where each begins.

    A null list is empty. Raises `NullTokens` where an element is null.
    """
    if lists.array is not None:
        elements, edges = _elements(lists.array)
        if isinstance(elements, np.ma.MaskedArray):
            raise NullTokens
        return elements, edges
    if lists.children[0].valid is not None:
        raise NullTokens
    child, offsets, dtype = lists.children[0], lists.offsets, numpy_type(lists.kind.value_type)
    assert child.values is not None, "lists of numbers have values"
    assert offsets is not None, "a column of lists has offsets"
    assert dtype is not None, "numbers have a type in numpy"
    return child.values.view(dtype).reshape(-1), offsets


def slices_of_lists(lists: Column, rows: Int64s, start: Int64s, size: Int64s) -> npt.NDArray[Any]:
    """`size[i]` elements of row `rows[i]` from its element `start[i]` on, one after the other.

    `lists` holds each of the rows once, rising.
    """
    values, offsets = flat_lists(lists)
    first = offsets[np.searchsorted(np.unique(rows), rows)] + start
    parts = [values[a : a + k] for a, k in zip(first.tolist(), size.tolist(), strict=True)]
    return np.concatenate([values[:0], *parts])


def to_numpy(column: Column) -> Any:
    """An array, or `Ragged` for lists of numbers. Masked where numbers are null."""
    kind, values = column.kind, column.values
    if pa.types.is_boolean(kind) and values is not None:
        return _masked(column, values)
    if is_fixed(kind) and values is not None:
        dtype = numpy_type(kind)
        if dtype is not None:
            return _masked(column, values.view(dtype).reshape(column.n))
        if pa.types.is_fixed_size_binary(kind):
            return _masked(column, values)
    if is_fixed_list(kind) and values is not None:
        dtype = numpy_type(kind.value_type)
        if dtype is not None:
            return _masked(column, values.view(dtype).reshape(column.n, kind.list_size))
    if column.offsets is not None and is_list(kind) and column.children[0].valid is None:
        dtype = numpy_type(kind.value_type)
        child = column.children[0].values
        if dtype is not None and child is not None:
            return Ragged(child.view(dtype).reshape(-1), column.offsets)
    return _numpy_of(to_arrow(column))


def _numpy_of(array: pa.Array) -> Any:
    """The same for an Arrow array. No value changes because another one is null."""
    kind = array.type
    if numpy_type(kind) is not None or pa.types.is_boolean(kind) or pa.types.is_date(kind):
        return _numbers(array)
    if is_list(kind) and numpy_type(kind.value_type) is not None:
        return Ragged(*_elements(array))
    if is_fixed_list(kind) and numpy_type(kind.value_type) is not None:
        n, size = len(array), kind.list_size
        values = _numbers(array.values.slice(array.offset * size, n * size)).reshape(n, size)
        if not array.null_count:
            return values
        null = array.is_null().to_numpy(zero_copy_only=False)[:, None]
        return np.ma.MaskedArray(values, mask=np.ma.getmaskarray(values) | null)
    if not _needs_values(array):
        return array.to_numpy(zero_copy_only=False)
    rows = np.empty(len(array), object)
    for i, value in enumerate(array):
        rows[i] = value.as_py()
    return rows


def _numbers(array: pa.Array) -> npt.NDArray[Any]:
    """Numbers, times and bools; masked where some are null."""
    dtype = numpy_type(array.type)
    if dtype is not None:
        first, size = array.offset * dtype.itemsize, len(array) * dtype.itemsize
        values = _bytes_of(array.buffers()[1])[first : first + size].view(dtype)
    elif pa.types.is_boolean(array.type):
        values = array.fill_null(False).to_numpy(zero_copy_only=False)
    else:
        values = array.to_numpy(zero_copy_only=False)
    if not array.null_count:
        return values
    return np.ma.MaskedArray(values, mask=array.is_null().to_numpy(zero_copy_only=False))


def _elements(lists: pa.Array) -> tuple[npt.NDArray[Any], Int64s]:
    """The elements of an array of lists of numbers, and where each row's begin."""
    lengths = pa.compute.fill_null(pa.compute.list_value_length(lists), 0).to_numpy()
    return _numbers(lists.flatten()), np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def _needs_values(array: pa.Array) -> bool:
    """Whether Arrow's own objects would not do.

    It makes floats of integers where some are null, and 2^53 + 1 would be another number; of
    intervals it makes objects of pandas, and crashes where that is not installed.
    """
    kind = array.type
    if pa.types.is_interval(kind):
        return True
    if pa.types.is_struct(kind):
        inside = [array.field(i) for i in range(kind.num_fields)]
    elif pa.types.is_map(kind):
        inside = [array.keys, array.items]
    elif is_list(kind) or pa.types.is_fixed_size_list(kind):
        inside = [array.values]
    else:
        return bool(pa.types.is_integer(kind) and array.null_count)
    return any(_needs_values(part) for part in inside)


def from_arrow(array: pa.Array) -> Column:
    """A column over an Arrow array without offset: plain layouts are taken apart."""
    kind, n, buffers = array.type, len(array), array.buffers()
    if array.offset or array.null_count or not n:
        return Column(kind, n, array=array)
    if is_fixed(kind):
        return Column(
            kind,
            n,
            _bytes_of(buffers[1])[: n * kind.bit_width // 8].reshape(n, kind.bit_width // 8),
        )
    if is_list(kind) and is_fixed(kind.value_type):
        child = array.values
        if child.null_count or child.offset:
            return Column(kind, n, array=array)
        width = kind.value_type.bit_width // 8
        offsets = array.offsets.to_numpy(zero_copy_only=False).astype(np.int64)
        data = _bytes_of(child.buffers()[1])[: len(child) * width].reshape(-1, width)
        inner = Column(kind.value_type, len(child), data)
        return Column(kind, n, None, offsets, children=(inner,))
    return Column(kind, n, array=array)


def _bytes_of(buffer: pa.Buffer | None) -> Bytes:
    return np.frombuffer(b"" if buffer is None else buffer, np.uint8)


def numpy_type(kind: pa.DataType) -> np.dtype[Any] | None:
    """The numpy type with the same bytes; None where numpy has none."""
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        plain: np.dtype[Any] = np.dtype(kind.to_pandas_dtype())
        return plain
    if pa.types.is_timestamp(kind):
        return np.dtype(f"datetime64[{kind.unit}]")
    if pa.types.is_duration(kind):
        return np.dtype(f"timedelta64[{kind.unit}]")
    return None


def to_arrow(column: Column) -> pa.Array:
    """The Arrow array over the same memory, where the layout allows."""
    kind, n = column.kind, column.n
    if column.array is not None:
        return column.array
    valid = None
    if column.valid is not None:
        valid = pa.py_buffer(np.packbits(column.valid, bitorder="little"))
    if column.offsets is not None:
        offsets = _offset_buffer(column)
        if is_bytes(kind):
            return pa.Array.from_buffers(kind, n, [valid, offsets, _buffer(column.values)])
        children = [to_arrow(child) for child in column.children]
        return pa.Array.from_buffers(kind, n, [valid, offsets], children=children)
    if column.children:
        children = [to_arrow(child) for child in column.children]
        return pa.Array.from_buffers(kind, n, [valid], children=children)
    if pa.types.is_boolean(kind):
        bits = np.packbits(column.values, bitorder="little") if column.values is not None else None
        return pa.Array.from_buffers(kind, n, [valid, _buffer(bits)])
    if is_fixed_list(kind):
        child = pa.Array.from_buffers(
            kind.value_type, n * kind.list_size, [None, _buffer(column.values)]
        )
        return pa.Array.from_buffers(kind, n, [valid], children=[child])
    return pa.Array.from_buffers(kind, n, [valid, _buffer(column.values)])


def to_batch(columns: dict[str, Column], schema: pa.Schema) -> pa.RecordBatch:
    fields = [schema.field(name) for name in columns]
    arrays = [to_arrow(column) for column in columns.values()]
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))


def _masked(column: Column, values: Any) -> Any:
    if column.valid is None:
        return values
    mask = ~column.valid
    if values.ndim == 2:
        mask = np.repeat(mask[:, None], values.shape[1], axis=1)
    return np.ma.MaskedArray(values, mask=mask)


def _offset_buffer(column: Column) -> pa.Buffer:
    assert column.offsets is not None
    if has_long_offsets(column.kind):
        return pa.py_buffer(column.offsets)
    if column.offsets[-1] > _MOST_ELEMENTS:
        raise TooLarge(column.kind, column.n, int(column.offsets[-1]))
    return pa.py_buffer(column.offsets.astype(np.int32))


def _buffer(values: npt.NDArray[Any] | None) -> pa.Buffer:
    return pa.py_buffer(b"" if values is None else np.ascontiguousarray(values).reshape(-1))
