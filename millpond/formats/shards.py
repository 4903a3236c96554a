"""Shards of a training set: standard Arrow IPC files, laid out for random reads.

A shard is uncompressed, so any Arrow reader opens it, and a row is found by the byte
offsets of its record batch's buffers, which the index holds (`formats.shard_index`):
reading needs no Arrow library. Values of 256 bytes and more, and all of variable
length, have an xxh3 each in an extra column; every buffer has one in the index.
What is written here becomes a dataset only when an index names it.
"""

import json
import mmap
import os
from base64 import b64decode, b64encode
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from xxhash import xxh3_64_intdigest

from millpond.errors import SchemaMismatch
from millpond.formats.shard_size import rows_per_batch
from millpond.formats.shard_types import (
    checksum_column,
    has_long_offsets,
    is_list,
    is_ragged,
    row_checksums,
    storage_schema,
)
from millpond.formats.shard_values import canonical
from millpond.storage.direct import BlockFile
from millpond.storage.oserrors import explained


@dataclass(frozen=True, slots=True)
class ShardInfo:
    """A finished shard: what the index needs of it. Plain data; travels from tasks.

    `layout` holds, for each record batch, its rows and then (offset, length, xxh3) of
    each buffer in Arrow's order: little-endian 64-bit words. An absent buffer has
    length 0.
    """

    name: str
    rows: int
    size_bytes: int
    schema: bytes
    layout: bytes

    def to_json(self) -> str:
        """As text, which a journal may keep."""
        known = {"name": self.name, "rows": self.rows, "bytes": self.size_bytes}
        data = {"schema": self.schema, "layout": self.layout}
        return json.dumps(known | {key: b64encode(data[key]).decode() for key in data})

    @staticmethod
    def from_json(text: str) -> "ShardInfo":
        """The inverse of `to_json`."""
        told = json.loads(text)
        schema, layout = b64decode(told["schema"]), b64decode(told["layout"])
        return ShardInfo(str(told["name"]), int(told["rows"]), int(told["bytes"]), schema, layout)


# The length and checksum of each buffer of a record batch.
Checksums: TypeAlias = list[tuple[int, int]]


class ShardWriter:
    """Writes one shard to a local file; `close` gives its `ShardInfo`.

    `align` (bytes, a multiple of 8) keeps every record batch inside one aligned chunk
    of the file where it fits, so that a sample of a chunked store is one read of one
    chunk. It ends with `close` or with `abort`. Memory: up to twice one record batch, and 8 MiB.
    """

    def __init__(
        self,
        path: str,
        schema: pa.Schema,
        *,
        name: str = "",
        batch_rows: int | None = None,
        align: int | None = None,
    ) -> None:
        self.path, self.name, self.align = path, name or os.path.basename(path), align
        self.rows = 0
        self._given = schema
        self._schema = storage_schema(schema)
        self._sums = row_checksums(self._schema)
        self._batch_rows = batch_rows
        self._pending: list[pa.Table] = []
        self._pending_rows = 0
        stored = self._schema
        for column in self._sums:
            stored = stored.append(pa.field(checksum_column(column), pa.uint64(), nullable=False))
        self._stored = stored
        self._block = BlockFile(path)
        self._file = pa.ipc.new_file(_Sink(self._block), stored)
        self._checksums: list[Checksums] = []
        self._is_open = True

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.abort()

    @property
    def rows_given(self) -> int:
        """Rows that `write` was given, written or waiting."""
        return self.rows + self._pending_rows

    @property
    def rows_to_batch_end(self) -> int:
        """Rows that would fill the last record batch; 0 if none is begun."""
        return -self.rows_given % self._batch_rows if self._batch_rows else 0

    @property
    def size_bytes(self) -> int:
        """Bytes so far, with those of the rows that wait."""
        waiting: int = sum(table.nbytes for table in self._pending)
        return self._block.position + waiting

    def write(self, rows: pa.RecordBatch | pa.Table) -> None:
        """Append rows. They must have the writer's schema."""
        table = pa.Table.from_batches([rows]) if isinstance(rows, pa.RecordBatch) else rows
        if not table.schema.equals(self._given):
            raise SchemaMismatch(
                f"shard {self.name!r}: a batch has another schema than the shard. "
                f"The shard has: {_words(self._given)}. The batch has: {_words(table.schema)}. "
                "Cast the batch first."
            )
        if not table.num_rows:
            return
        table = table.cast(self._schema) if self._schema != self._given else table
        if self._batch_rows is None:
            self._batch_rows = rows_per_batch(table.nbytes // table.num_rows, self.align)
        self._pending.append(table)
        self._pending_rows += table.num_rows
        self._flush(self._batch_rows)

    def close(self) -> ShardInfo:
        """Finish the file, and read back where each buffer lies."""
        self._flush(1)
        with explained(self.path, "write"):
            self._file.close()
            self._block.close()
        self._is_open = False
        return ShardInfo(
            self.name,
            self.rows,
            os.path.getsize(self.path),
            self._stored.serialize().to_pybytes(),
            _layout(self.path, self._checksums).tobytes(),
        )

    def abort(self) -> None:
        """Leave no file, unless it is finished."""
        if self._is_open:
            self._is_open = False
            self._block.abort()

    def _flush(self, least: int) -> None:
        """Write full record batches while at least `least` rows wait."""
        while self._pending_rows >= least:
            size = self._batch_rows or least
            table = pa.concat_tables(self._pending)
            for batch in _one_batch(table.slice(0, size)):
                self._put(batch)
            rest = table.slice(size)
            self._pending, self._pending_rows = [rest], rest.num_rows
            if not rest.num_rows:
                self._pending = []
                return

    def _put(self, batch: pa.RecordBatch) -> None:
        batch = pa.RecordBatch.from_arrays(
            [canonical(column) for column in batch.columns], schema=self._schema
        )
        columns = list(batch.columns)
        for name in self._sums:
            columns.append(pa.array(value_checksums(batch.column(name))))
        whole = pa.RecordBatch.from_arrays(columns, schema=self._stored)
        with explained(self.path, "write"):
            if self.align is not None:
                self._fill_up(whole, self.align)
            self._file.write_batch(whole)
        # To read them again from the file would cost as much as to write them.
        self._checksums.append([*map(_checksum, _buffers(whole))])
        self.rows += batch.num_rows

    def _fill_up(self, batch: pa.RecordBatch, align: int) -> None:
        """Begin a new chunk if `batch` would cross a border that it need not cross.

        The gap is an empty record batch with metadata of the right length, so that the
        file stays a valid Arrow file for readers that stream it.
        """
        at = self._block.position
        left = -at % align
        size = pa.ipc.get_record_batch_size(batch)
        if size <= left or left == 0:
            return
        empty = self._stored.empty_table().to_batches(max_chunksize=1)
        nothing = empty[0] if empty else pa.RecordBatch.from_pylist([], schema=self._stored)
        self._file.write_batch(nothing, custom_metadata={"pad": ""})
        base = self._block.position - at
        gap = -self._block.position % align
        if gap < base + 8:  # Too small for one more message: fill the next chunk too.
            gap += align
        self._file.write_batch(nothing, custom_metadata={"pad": " " * (gap - base)})


def value_checksums(column: pa.Array) -> npt.NDArray[np.uint64]:
    """xxh3 of the bytes of each value. Cost: about 0.15 µs a row, 0.6 µs at 4 KiB."""
    if is_ragged(column.type):
        data, starts, ends = _ragged_bytes(column)
    else:
        data, starts, ends = _fixed_bytes(column)
    sums = [
        xxh3_64_intdigest(data[a:b]) for a, b in zip(starts.tolist(), ends.tolist(), strict=True)
    ]
    return np.array(sums, np.uint64)


def _fixed_bytes(
    column: pa.Array,
) -> tuple[memoryview, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    kind, first = column.type, column.offset
    if pa.types.is_fixed_size_list(kind):
        width = kind.list_size * kind.value_type.bit_width // 8
        skip = column.values.offset * kind.value_type.bit_width // 8
    else:
        width, skip = kind.bit_width // 8, 0
    starts = (np.arange(len(column), dtype=np.int64) + first) * width + skip
    return memoryview(column.buffers()[-1]).cast("B"), starts, starts + width


def _ragged_bytes(
    column: pa.Array,
) -> tuple[memoryview, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The bytes that all values lie in, and where each one begins and ends."""
    kind = column.type
    buffers = column.buffers()
    raw = np.frombuffer(buffers[1], np.int64 if has_long_offsets(kind) else np.int32)
    offsets = raw[column.offset : column.offset + len(column) + 1].astype(np.int64)
    width = kind.value_type.bit_width // 8 if is_list(kind) else 1
    shift = column.values.offset if is_list(kind) else 0
    data = memoryview(buffers[-1]).cast("B") if buffers[-1] is not None else memoryview(b"")
    return data, (offsets[:-1] + shift) * width, (offsets[1:] + shift) * width


def _layout(path: str, known: list[Checksums]) -> npt.NDArray[np.uint64]:
    """Where each buffer of an Arrow IPC file lies: see `ShardInfo.layout`.

    One row a record batch that holds rows. Of each of these, `known` has the checksums.
    """
    with open(path, "rb") as opened:
        mapped = mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ)
    # What says where they lie is some hundred bytes a record batch.
    mapped.madvise(mmap.MADV_RANDOM)
    whole, found = pa.py_buffer(mapped), list[list[int]]()
    file = pa.ipc.open_file(whole)
    for i in range(file.num_record_batches):
        batch = file.get_batch(i)
        if batch.num_rows:
            words = _buffer_words(batch, whole.address, known[len(found)])
            found.append([batch.num_rows, *words])
    return np.array(found, np.uint64).reshape(len(found), -1 if found else 0)


def _buffer_words(batch: pa.RecordBatch, base: int, known: Checksums) -> Iterable[int]:
    for buffer, (size, checksum) in zip(_buffers(batch), known, strict=True):
        if buffer is None or not buffer.size:
            yield from (0, 0, 0)
        else:
            assert buffer.size == size, "Arrow stores buffers as it was given them"
            yield from (buffer.address - base, size, checksum)


def _buffers(batch: pa.RecordBatch) -> Iterable[pa.Buffer | None]:
    for column in batch.columns:
        assert column.offset == 0, "an array begins at its buffers' beginning"
        yield from column.buffers()


def _checksum(buffer: pa.Buffer | None) -> tuple[int, int]:
    return (buffer.size, xxh3_64_intdigest(buffer)) if buffer is not None else (0, 0)


def _one_batch(table: pa.Table) -> list[pa.RecordBatch]:
    """`table` as one record batch; as several where 32-bit offsets cannot hold it."""
    batches: list[pa.RecordBatch] = table.combine_chunks().to_batches()
    return batches


def _words(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema)


class _Sink:
    """A `BlockFile` as Arrow's writers want it."""

    closed = False

    def __init__(self, block: BlockFile) -> None:
        self._block = block

    def write(self, data: pa.Buffer) -> int:
        self._block.append(memoryview(data))
        return len(memoryview(data))

    def flush(self) -> None:
        """Blocks are written when they are full."""
