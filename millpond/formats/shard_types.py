"""Which Arrow types a shard stores, and how: the rules that writer and reader share."""

from collections.abc import Sequence

import pyarrow as pa

from millpond.errors import SchemaMismatch

# Narrower values are checked by whole buffers: 8 bytes of checksum for 255 bytes would
# cost more than the 5 % that checking may cost.
WIDE_BYTES = 256
_PREFIX = "xxh3:"


def checksum_column(name: str) -> str:
    """The stored column that holds the checksums of column `name`."""
    return _PREFIX + name


def is_checksum_column(name: str) -> bool:
    return name.startswith(_PREFIX)


def is_fixed(kind: pa.DataType) -> bool:
    """Whether every value takes the same whole number of bytes, in one buffer."""
    if pa.types.is_fixed_size_binary(kind):
        return True
    return (
        pa.types.is_primitive(kind) or pa.types.is_decimal(kind) or pa.types.is_interval(kind)
    ) and not pa.types.is_boolean(kind)


def is_fixed_list(kind: pa.DataType) -> bool:
    """Whether it is a fixed-size list of fixed values: one run of bytes where none is null."""
    return bool(pa.types.is_fixed_size_list(kind) and is_fixed(kind.value_type))


def is_ragged(kind: pa.DataType) -> bool:
    """Whether a value is one run of bytes between two offsets."""
    return is_bytes(kind) or (is_list(kind) and is_fixed(kind.value_type))


def is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def has_long_offsets(kind: pa.DataType) -> bool:
    """Whether the offsets are of 64 bits."""
    return bool(
        pa.types.is_large_list(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_large_binary(kind)
    )


def is_bytes(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_string(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_large_string(kind)
    )


def row_checksums(schema: pa.Schema) -> tuple[str, ...]:
    """The columns with a checksum of their own for each value.

    By type alone, so that shards written far apart agree.
    """
    return tuple(
        field.name for field in schema if is_ragged(field.type) or _width(field.type) >= WIDE_BYTES
    )


def _width(kind: pa.DataType) -> int:
    if is_fixed(kind):
        return int(kind.bit_width) // 8
    if is_fixed_list(kind):
        return int(kind.list_size) * _width(kind.value_type)
    return 0


def storage_schema(schema: pa.Schema) -> pa.Schema:
    """The schema as a shard stores it: dictionaries, views and runs as plain values."""
    fields = []
    for field in schema:
        if is_checksum_column(field.name):
            raise SchemaMismatch(
                f"column {field.name!r}: names that begin with {_PREFIX!r} are kept for "
                "checksums. Rename the column."
            )
        fields.append(field.with_type(_storage_type(field.type, field.name)))
    return pa.schema(fields)


def _storage_type(kind: pa.DataType, name: str) -> pa.DataType:
    simple = _unwrapped(kind)
    if simple is not None:
        return _storage_type(simple, name)
    if pa.types.is_struct(kind):
        return pa.struct([f.with_type(_storage_type(f.type, name)) for f in kind])
    if is_list(kind):
        make = pa.large_list if has_long_offsets(kind) else pa.list_
        return make(kind.value_field.with_type(_storage_type(kind.value_type, name)))
    if pa.types.is_fixed_size_list(kind):
        child = kind.value_field.with_type(_storage_type(kind.value_type, name))
        return pa.list_(child, kind.list_size)
    if pa.types.is_map(kind):
        return pa.map_(_storage_type(kind.key_type, name), _storage_type(kind.item_type, name))
    if is_fixed(kind) or is_bytes(kind) or pa.types.is_boolean(kind):
        return kind
    raise SchemaMismatch(
        f"column {name!r}: a training set cannot store the type {kind}. "
        "Cast the column to another type, or leave it out."
    )


def _unwrapped(kind: pa.DataType) -> pa.DataType | None:
    """The plain type behind an encoding; None where there is none."""
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return kind.value_type
    if isinstance(kind, pa.BaseExtensionType):
        return kind.storage_type
    if pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_binary_view(kind):
        return pa.binary()
    return None


def user_columns(schema: pa.Schema) -> Sequence[str]:
    """The names a user sees: all but the checksums."""
    return [name for name in schema.names if not is_checksum_column(name)]
