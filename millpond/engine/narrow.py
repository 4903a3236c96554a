"""Decimals of up to 18 digits in 64 bits, for rows that are on their way to a file.

DuckDB gives Arrow 128 for each, and half of them say nothing: a fifth of all bytes of TPC-H's
`lineitem`. A Parquet file of either is the same.
"""

import numpy as np
import pyarrow as pa

from millpond.storage.direct import reused_memory

_DIGITS = 18
_TO_PARQUET = int(pa.__version__.partition(".")[0]) >= 22  # An older Arrow refuses them there.


def narrow_schema(schema: pa.Schema) -> pa.Schema:
    """The columns of `narrowed` rows."""
    return pa.schema([field.with_type(_narrow(field.type)) for field in schema])


def narrowed(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The same values; each decimal of up to 18 digits takes 64 bits."""
    schema = narrow_schema(batch.schema)
    if schema == batch.schema:
        return batch
    columns = [
        column if column.type == field.type else _half(column, field.type)
        for column, field in zip(batch.columns, schema, strict=True)
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _narrow(kind: pa.DataType) -> pa.DataType:
    if _TO_PARQUET and pa.types.is_decimal128(kind) and kind.precision <= _DIGITS:
        return pa.decimal64(kind.precision, kind.scale)
    return kind


def _half(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """The low words: the high ones repeat the sign."""
    valid, values = column.buffers()
    end = column.offset + len(column)
    words = np.frombuffer(values, np.int64)[: 2 * end : 2] if end else np.zeros(0, np.int64)
    low = pa.allocate_buffer(8 * end, memory_pool=reused_memory())
    np.frombuffer(low, np.int64)[column.offset :] = words[column.offset :]
    nulls = column.null_count
    return pa.Array.from_buffers(kind, len(column), [valid, low], nulls, column.offset)
