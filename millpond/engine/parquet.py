"""Rows to a Parquet file by Arrow's encoder: half the CPU of DuckDB's, past the page cache.

Text has no smallest and largest value in the statistics, but where rows are sorted by it: in
hash partitions and random orders they tell nothing. See benchmarks/partition.py.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from millpond.engine.encodings import Encodings, encodings
from millpond.storage.direct import BLOCK_BYTES, BlockFile, reused_memory

GROUP_BYTES = 32 << 20  # Of Arrow rows, in a row group.


class Made(NamedTuple):
    """What is in a file."""

    rows: int
    checksum: str


class ParquetFile:
    """A new file, if only of a schema. It ends with `close` or with `abort`."""

    def __init__(
        self, path: str, schema: pa.Schema, codec: str, *, block_bytes: int = BLOCK_BYTES,
        apart: bool = True, keys: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self._schema, self._codec, self._keys = schema, codec, keys
        self._block = BlockFile(path, block_bytes=block_bytes, apart=apart)
        self._sink = _Sink(self._block)
        self._writer: pq.ParquetWriter | None = None
        self._n_rows = 0

    def write(self, rows: pa.Table, how: Encodings) -> None:
        """A row group, or several. What `how` is when it is called first holds for the file."""
        per_group = max(1, rows.num_rows * GROUP_BYTES // max(rows.nbytes, 1))
        size = min(max(rows.num_rows, 1), per_group)
        self._opened(how).write_table(rows, row_group_size=size)
        self._n_rows += rows.num_rows

    def close(self) -> Made:
        """The file is complete."""
        self._opened(Encodings()).close()
        self._block.close()
        return Made(self._n_rows, f"xxh3:{self._sink.seen.hexdigest()}")

    def abort(self) -> None:
        """No file is left."""
        self._writer = None
        self._block.abort()

    def _opened(self, how: Encodings) -> pq.ParquetWriter:
        if self._writer is None:
            ranged = [
                field.name for field in self._schema
                if field.name in self._keys or not _is_long(field.type)
            ]  # fmt: skip
            self._writer = pq.ParquetWriter(
                self._sink, self._schema, compression=self._codec,
                use_dictionary=list(how.coded) or False, write_statistics=ranged or False,
                column_encoding=dict.fromkeys(how.deltas, "DELTA_BINARY_PACKED") or None,
                store_decimal_as_integer=True, store_schema=False, memory_pool=reused_memory(),
            )  # fmt: skip
        return self._writer


def write_file(
    batches: Iterator[pa.RecordBatch], path: str, schema: pa.Schema, codec: str,
    keys: Sequence[str] = (),
) -> Made:  # fmt: skip
    """One file of all `batches`, in order: that of `keys`, if any."""
    file, held, size = ParquetFile(path, schema, codec, keys=keys), list[pa.RecordBatch](), 0
    how: Encodings | None = None
    try:
        for batch in batches:
            held.append(batch)
            size += batch.nbytes
            if size >= GROUP_BYTES:
                how = encodings(held, schema) if how is None else how
                file.write(pa.Table.from_batches(held, schema), how)
                held, size = [], 0
        if held:
            how = encodings(held, schema) if how is None else how
            file.write(pa.Table.from_batches(held, schema), how)
        return file.close()
    except BaseException:
        file.abort()
        raise


def _is_long(kind: pa.DataType) -> bool:
    """Of a type whose smallest and largest values tell little, and cost most to find."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_binary(kind))


class _Sink:
    """A `BlockFile` as Arrow's writers want it.

    Its checksum is taken here: to read the file for it again would cost as much as to write it.
    """

    closed = False

    def __init__(self, block: BlockFile) -> None:
        self._block, self.seen = block, xxhash.xxh3_64()

    def write(self, data: pa.Buffer) -> int:
        self.seen.update(data)
        self._block.append(memoryview(data))
        return len(memoryview(data))

    def flush(self) -> None:
        """Blocks are written when they are full."""
