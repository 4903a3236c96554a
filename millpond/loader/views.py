"""Values that stay where they are stored: `format="views"`, for samples that are decoded.

A wide column becomes a list of read-only arrays, one a row, each a look into the mapped
shard; a row costs 0.2 µs, whatever its size, and its bytes are read when the consumer
reads them. What is a view follows from the column's type alone, not from where it lies.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from millpond.formats.shard_types import is_fixed_list, is_list, row_checksums
from millpond.loader.columns import Column, numpy_type, to_arrow, to_numpy

Int64s = npt.NDArray[np.int64]
Views = list[npt.NDArray[Any] | None]


def is_viewed(kind: pa.DataType) -> bool:
    """Whether rows of this type are views: bytes and lists of numbers, but short fixed ones."""
    if not row_checksums(pa.schema([("", kind)])):
        return False
    if is_list(kind) or is_fixed_list(kind):
        return numpy_type(kind.value_type) is not None
    return bool(
        pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
    )  # fmt: skip


def cut(flat: npt.NDArray[np.uint8], starts: Int64s, ends: Int64s, kind: pa.DataType) -> Views:
    """The bytes of `flat` between each start and end, as bytes or as numbers."""
    if is_list(kind) or is_fixed_list(kind):
        dtype = numpy_type(kind.value_type)
        assert dtype is not None, "a type that is viewed has its numbers in numpy"
        flat, starts, ends = flat.view(dtype), starts // dtype.itemsize, ends // dtype.itemsize
    return [flat[a:b] for a, b in zip(starts.tolist(), ends.tolist(), strict=True)]


def without_nulls(views: Views, valid: npt.NDArray[np.bool_] | None) -> Views:
    """None in the place of each value that is null."""
    if valid is None:
        return views
    return [view if there else None for view, there in zip(views, valid.tolist(), strict=True)]


def to_views(column: Column) -> Any:
    """What `format="views"` gives for a column: views, or the same as `to_numpy`."""
    if column.rows is not None:
        return column.rows
    if not is_viewed(column.kind):
        return to_numpy(column)
    array = to_arrow(column)
    if is_list(column.kind) or is_fixed_list(column.kind):
        return without_nulls(list(to_numpy(column)), _valid(array))
    return [np.frombuffer(value.as_buffer(), np.uint8) if value.is_valid else None
            for value in array]  # fmt: skip


def _valid(array: pa.Array) -> npt.NDArray[np.bool_] | None:
    if not array.null_count:
        return None
    valid: npt.NDArray[np.bool_] = array.is_valid().to_numpy(zero_copy_only=False)
    return valid
