"""Arrow types that people and libraries can use, and DuckDB's own that lose nothing.

Between tasks rows travel in DuckDB's lossless types: extension types for HUGEINT, BIT,
BOOLEAN, JSON. A user's function, and a result, see the plain type instead: `bool`, not
`bool8`. Both directions share memory where the layout is the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

_BIG = pa.decimal128(38, 0)  # The layout of a HUGEINT is that of a 128 bit decimal.


def plain_schema(schema: pa.Schema) -> pa.Schema:
    """The schema that users see of rows of `schema`."""
    return pa.schema([field.with_type(plain_type(field.type)) for field in schema])


def plain_type(kind: pa.DataType) -> pa.DataType:
    match kind:
        case pa.OpaqueType():
            return {"hugeint": _BIG, "uhugeint": _BIG, "bit": pa.string()}.get(kind.type_name, kind)
        case pa.Bool8Type():
            return pa.bool_()
        case pa.BaseExtensionType() if kind.extension_name == "arrow.json":
            return pa.string()
        case pa.MapType():
            return pa.map_(plain_type(kind.key_type), plain_type(kind.item_type))
        case pa.ListType():
            return pa.list_(kind.value_field.with_type(plain_type(kind.value_type)))
        case pa.LargeListType():
            return pa.large_list(kind.value_field.with_type(plain_type(kind.value_type)))
        case pa.FixedSizeListType():
            return pa.list_(kind.value_field.with_type(plain_type(kind.value_type)), kind.list_size)
        case pa.StructType():
            return pa.struct([field.with_type(plain_type(field.type)) for field in kind])
    return kind


def plain(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """A batch in DuckDB's types → the same rows in the types of `plain_schema`."""
    if batch.schema.types == schema.types:
        return batch
    columns = [_to_plain(c, f.type) for c, f in zip(batch.columns, schema, strict=True)]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def lossless(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The inverse of `plain`."""
    if batch.schema.types == schema.types:
        return batch
    columns = [_to_lossless(c, f.type) for c, f in zip(batch.columns, schema, strict=True)]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _to_plain(array: pa.Array, kind: pa.DataType) -> pa.Array:
    have = array.type
    if have == kind:
        return array
    match have:
        case pa.OpaqueType(type_name="bit"):
            return pa.array([_bits(item) for item in array.storage.to_pylist()], pa.string())
        case pa.OpaqueType():
            return _same_bytes(array.storage, kind)
        case pa.Bool8Type():
            return array.storage.cast(pa.bool_())
        case pa.BaseExtensionType():
            return array.storage.cast(kind)
    return _nested(array, kind, _to_plain)


def _to_lossless(array: pa.Array, kind: pa.DataType) -> pa.Array:
    have = array.type
    if have == kind:
        return array
    match kind:
        case pa.OpaqueType(type_name="bit"):
            stored = pa.array([_packed(item) for item in array.to_pylist()], kind.storage_type)
            return pa.ExtensionArray.from_storage(kind, stored)
        case pa.OpaqueType():
            stored = _same_bytes(array, kind.storage_type)
            return pa.ExtensionArray.from_storage(kind, stored)
        case pa.BaseExtensionType():
            return pa.ExtensionArray.from_storage(kind, array.cast(kind.storage_type))
    return _nested(array, kind, _to_lossless)


def _same_bytes(array: pa.Array, kind: pa.DataType) -> pa.Array:
    return pa.Array.from_buffers(kind, len(array), array.buffers(), -1, array.offset)


def _nested(array: pa.Array, kind: pa.DataType, convert: Any) -> pa.Array:
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
        case pa.LargeListType():
            array = _rebased(array)
            values = convert(array.values, kind.value_type)
            return pa.LargeListArray.from_arrays(array.offsets, values, kind, mask=mask)
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


def _bits(item: bytes | None) -> str | None:
    """DuckDB's BIT: the number of padding bits, then the bits, the padding in front."""
    if item is None:
        return None
    return "".join(f"{byte:08b}" for byte in item[1:])[item[0] :]


def _packed(text: str | None) -> bytes | None:
    if text is None:
        return None
    padding = -len(text) % 8
    number = int("1" * padding + text, 2)
    return bytes([padding]) + number.to_bytes((padding + len(text)) // 8, "big")
