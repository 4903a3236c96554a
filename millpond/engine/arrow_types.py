"""Arrow types that people and libraries know, and those in which DuckDB hands out rows.

DuckDB gives BOOLEAN and JSON as extension types, which few libraries compute with. A
user's function, and a result, see the plain type instead: `bool`, not `bool8`. Types
that Arrow has no plain word for, the planner has cast before: `physical.fragment.plain`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa

_Convert = Callable[[pa.Array, pa.DataType], pa.Array]


def plain_schema(schema: pa.Schema) -> pa.Schema:
    """The schema that users see of rows of `schema`."""
    return pa.schema([field.with_type(plain_type(field.type)) for field in schema])


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type that users see. A UUID keeps its own: it has a Python value."""
    match kind:
        case pa.Bool8Type():
            return pa.bool_()
        case pa.BaseExtensionType() if kind.extension_name == "arrow.json":
            return pa.string()
        case pa.MapType():
            return pa.map_(plain_type(kind.key_type), plain_type(kind.item_type))
        case pa.ListType():
            return pa.list_(kind.value_field.with_type(plain_type(kind.value_type)))
        case pa.FixedSizeListType():
            return pa.list_(kind.value_field.with_type(plain_type(kind.value_type)), kind.list_size)
        case pa.StructType():
            return pa.struct([field.with_type(plain_type(field.type)) for field in kind])
    return kind


def plain(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """A batch as the engine gives it → the same rows in the types of `plain_schema`."""
    return _converted(batch, schema, _to_plain)


def given(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The inverse of `plain`: as the engine would give it."""
    return _converted(batch, schema, _to_given)


def _converted(batch: pa.RecordBatch, schema: pa.Schema, convert: _Convert) -> pa.RecordBatch:
    if batch.schema.types == schema.types:
        return batch
    columns = [convert(c, f.type) for c, f in zip(batch.columns, schema, strict=True)]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _to_plain(array: pa.Array, kind: pa.DataType) -> pa.Array:
    if array.type == kind:
        return array
    if isinstance(array.type, pa.BaseExtensionType):
        return array.storage.cast(kind)
    return _nested(array, kind, _to_plain)


def _to_given(array: pa.Array, kind: pa.DataType) -> pa.Array:
    if array.type == kind:
        return array
    if isinstance(kind, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(kind, array.cast(kind.storage_type))
    return _nested(array, kind, _to_given)


def _nested(array: pa.Array, kind: pa.DataType, convert: _Convert) -> pa.Array:
    mask = array.is_null() if array.null_count else None
    match kind:
        case pa.MapType():
            array = _rebased(array)
            keys, items = convert(array.keys, kind.key_type), convert(array.items, kind.item_type)
            return pa.MapArray.from_arrays(array.offsets, keys, items, kind, mask=mask)
        case pa.ListType():
            array = _rebased(array)
            values = convert(array.values, kind.value_type)
            return pa.ListArray.from_arrays(array.offsets, values, kind, mask=mask)
        case pa.FixedSizeListType():
            array = _rebased(array)
            values = convert(array.values[: len(array) * kind.list_size], kind.value_type)
            return pa.FixedSizeListArray.from_arrays(values, type=kind, mask=mask)
        case pa.StructType():
            fields = [convert(array.field(i), kind.field(i).type) for i in range(kind.num_fields)]
            return pa.StructArray.from_arrays(fields, fields=list(kind), mask=mask)
    return array.cast(kind)


def _rebased(array: pa.Array) -> pa.Array:
    """A slice as an array of its own: `values` and `offsets` know nothing of slices."""
    return array.take(pa.array(np.arange(len(array)))) if array.offset else array
