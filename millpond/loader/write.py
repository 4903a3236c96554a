"""Write a training set from Arrow batches, in this process: shards, then their index.

For tests and small sets; a frame writes the same files from many tasks. Readers see
nothing before the index is there, which is published last.
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress

import pyarrow as pa

from millpond.errors import MillpondError, OptionError
from millpond.formats.shard_commit import check_vacant, commit_shards
from millpond.formats.shard_size import checked_align
from millpond.formats.shards import ShardInfo, ShardWriter
from millpond.storage import Staged, Storage, open_storage

# Rows to write before the size of a new shard is looked at.
_SLICE = 8192


def write_dataset(
    rows: pa.Table | Iterable[pa.RecordBatch],
    path: str,
    *,
    schema: pa.Schema | None = None,
    rows_per_shard: int | None = None,
    shard_bytes: int = 256 << 20,
    align: int | None = None,
    batch_rows: int | None = None,
    storage_options: Mapping[str, str] | None = None,
) -> None:
    """Write rows, in the order given, as a training set at `path`, which must be empty.

    `schema` is needed where the rows may be none. Memory: two record batches.
    """
    checked_align(align, "write_dataset")
    storage = open_storage(path, storage_options)
    check_vacant(storage, path, "write_dataset")
    batches = rows.to_batches() if isinstance(rows, pa.Table) else rows
    schema = rows.schema if isinstance(rows, pa.Table) else schema
    writing = _Shards(storage, path.rstrip("/"), rows_per_shard, shard_bytes, align, batch_rows)
    try:
        for batch in batches:
            schema = schema or batch.schema
            writing.add(batch, schema)
        if schema is None:
            raise OptionError("write_dataset: no rows and no schema. Pass schema=.")
        writing.finish(schema)
    except BaseException:
        # The caller's error counts, not what cleaning up may say.
        with suppress(MillpondError):
            writing.abort()
            storage.discard(writing.staged)
        raise


class _Shards:
    """The shards of one write, one after the other."""

    def __init__(
        self,
        storage: Storage,
        path: str,
        rows: int | None,
        size_bytes: int,
        align: int | None,
        batch_rows: int | None,
    ) -> None:
        self._storage, self._path, self._align = storage, path, align
        self._rows, self._size_bytes, self._batch_rows = rows, size_bytes, batch_rows
        self._writer: ShardWriter | None = None
        self._infos: list[ShardInfo] = []
        self.staged: list[Staged] = []

    def add(self, batch: pa.RecordBatch, schema: pa.Schema) -> None:
        while batch.num_rows:
            writer = self._open(schema)
            room = self._room(writer, batch.num_rows)
            writer.write(batch.slice(0, room))
            batch = batch.slice(room)
            full = writer.size_bytes >= self._size_bytes and not writer.rows_to_batch_end
            if full or writer.rows_given == self._rows:
                self._close()

    def _room(self, writer: ShardWriter, n: int) -> int:
        """How many of `n` rows the shard takes: up to its size, and a full record batch,
        so that all batches but the last are alike and a row is found by a shift."""
        if self._rows is not None:
            return min(n, self._rows - writer.rows_given)
        if writer.size_bytes >= self._size_bytes:
            return min(n, writer.rows_to_batch_end)
        return min(n, writer.rows_to_batch_end or _SLICE)

    def abort(self) -> None:
        if self._writer is not None:
            self._writer.abort()

    def finish(self, schema: pa.Schema) -> None:
        self._close()
        shards = list(zip(self.staged, self._infos, strict=True))
        commit_shards(self._storage, self._path, shards, schema, align=self._align)

    def _open(self, schema: pa.Schema) -> ShardWriter:
        if self._writer is None:
            name = f"{len(self._infos):06d}.arrow"
            staged = self._storage.stage(f"{self._path}/{name}", "write")
            self.staged.append(staged)
            self._writer = ShardWriter(
                staged.local, schema, name=name, batch_rows=self._batch_rows, align=self._align
            )
        return self._writer

    def _close(self) -> None:
        if self._writer is not None:
            self._infos.append(self._writer.close())
            self._writer = None
            self.staged[-1] = self._storage.seal(self.staged[-1])
