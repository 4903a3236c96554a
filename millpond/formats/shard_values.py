"""What the values of an Arrow array take; and arrays without what is no value.

Both are the same for equal values, however an array was made, cut or padded: so that
equal rows make equal shards.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from millpond.formats.shard_types import has_long_offsets, is_bytes, is_fixed, is_list


def value_bytes(rows: pa.RecordBatch) -> int:
    """Bytes of all values: those of a batch cut in two add up to the same."""
    return sum(map(_bytes, rows.columns))


def _bytes(array: pa.Array) -> int:
    kind = array.type
    if is_fixed(kind):
        return int(len(array) * kind.bit_width // 8)
    if is_bytes(kind):
        return int(pc.sum(pc.binary_length(array)).as_py() or 0) + 4 * len(array)
    if pa.types.is_struct(kind):
        return sum(_bytes(array.field(i)) for i in range(kind.num_fields))
    if pa.types.is_fixed_size_list(kind):
        size = kind.list_size
        return _bytes(array.values.slice(array.offset * size, len(array) * size))
    if is_list(kind) or pa.types.is_map(kind):
        first, last = array.offsets[0].as_py(), array.offsets[len(array)].as_py()
        parts = [array.keys, array.items] if pa.types.is_map(kind) else [array.values]
        return sum(_bytes(part.slice(first, last - first)) for part in parts) + 4 * len(array)
    return len(array)


def canonical(array: pa.Array) -> pa.Array:
    """The same values, and zeros where there is none, in buffers of exactly their size."""
    kind = array.type
    if pa.types.is_struct(kind):
        return _blank_struct(array)
    if pa.types.is_fixed_size_list(kind):
        values = array.values.slice(array.offset * kind.list_size, len(array) * kind.list_size)
        values = canonical(values)
        if is_fixed(kind.value_type) and array.null_count and not array.flatten().null_count:
            # Elements are null where their list is, which says so itself: without bits of their
            # own, each list is one run of bytes.
            values = pa.Array.from_buffers(
                kind.value_type, len(values), [None, *values.buffers()[1:]]
            )
        return type(array).from_arrays(values, type=kind, mask=_nulls(array))
    if is_list(kind) or pa.types.is_map(kind):
        return _blank_list(array)
    if is_bytes(kind):
        return _cut(array)
    if pa.types.is_boolean(kind):
        bits = pc.fill_null(array, False) if array.null_count else pc.or_(array, array)
        return pa.Array.from_buffers(kind, len(array), [_valid(array), _bits(bits)])
    if is_fixed(kind):
        return _blank_fixed(array)
    return array


def _blank_fixed(array: pa.Array) -> pa.Array:
    kind, n = array.type, len(array)
    width = kind.bit_width // 8
    values = array.buffers()[1]
    if values is None:
        return array
    values = values.slice(array.offset * width, n * width)
    if array.null_count:
        data = np.frombuffer(values, np.uint8).reshape(n, width).copy()
        data[array.is_null().to_numpy(zero_copy_only=False)] = 0
        values = pa.py_buffer(data)
    return pa.Array.from_buffers(kind, n, [_valid(array), values])


def _blank_struct(array: pa.Array) -> pa.Array:
    """What a field holds in a row that is null is a value to Arrow, and nothing to a reader."""
    parts = [array.field(i) for i in range(array.type.num_fields)]
    if array.null_count:
        parts = [pc.if_else(array.is_valid(), part, None) for part in parts]
    return pa.StructArray.from_arrays(
        [canonical(part) for part in parts], fields=list(array.type), mask=_nulls(array)
    )


def _blank_list(array: pa.Array) -> pa.Array:
    kind, parts = array.type, [array.values]
    if pa.types.is_map(kind):
        parts = [array.keys, array.items]
    offsets = array.offsets.to_numpy()
    first, last = int(offsets[0]), int(offsets[-1])
    inner = [canonical(part.slice(first, last - first)) for part in parts]
    rebased = pa.array(offsets - offsets[0])
    return type(array).from_arrays(rebased, *inner, type=kind, mask=_nulls(array))


def _cut(array: pa.Array) -> pa.Array:
    """Text or bytes, without what whoever made the array left before or behind them."""
    kind, buffers, n = array.type, array.buffers(), len(array)
    if not n or buffers[2] is None:
        return array
    width = np.int64 if has_long_offsets(kind) else np.int32
    offsets = np.frombuffer(buffers[1], width)[array.offset : array.offset + n + 1]
    first, last = int(offsets[0]), int(offsets[-1])
    rebased, data = pa.py_buffer(offsets - offsets[0]), buffers[2].slice(first, last - first)
    return pa.Array.from_buffers(kind, n, [_valid(array), rebased, data])


def _nulls(array: pa.Array) -> pa.Array | None:
    return array.is_null() if array.null_count else None


def _valid(array: pa.Array) -> pa.Buffer | None:
    return _bits(array.is_valid()) if array.null_count else None


def _bits(flags: pa.Array) -> pa.Buffer:
    """The bits of fresh flags, which begin at bit 0; behind the last one, zeros."""
    n = len(flags)
    data = np.frombuffer(flags.buffers()[1], np.uint8)[: (n + 7) // 8]
    if n % 8:
        data = data.copy()
        data[-1] &= (1 << n % 8) - 1
    return pa.py_buffer(data)
