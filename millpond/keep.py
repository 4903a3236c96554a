"""Computed rows, partition by partition: tables in memory, or Arrow files when they grow."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from typing import TYPE_CHECKING

from millpond.formats.memory import ArrowRows, let_go
from millpond.formats.scan import FileSlice, Split
from millpond.storage import FileInfo
from millpond.storage.oserrors import explained, make_private

if TYPE_CHECKING:
    import pyarrow as pa


class Keeper:
    """Takes one partition after the other. `splits` gives them back as a source's splits."""

    def __init__(self, schema: pa.Schema, folder: str, memory_bytes: int) -> None:
        self._schema, self._folder, self._left = schema, folder, memory_bytes
        self._tables: list[pa.Table] = []
        self._files: list[FileInfo] = []

    def add(self, batches: Iterable[pa.RecordBatch]) -> None:
        """Keep the rows of the next partition."""
        import pyarrow as pa

        held: list[pa.RecordBatch] = []
        stream = iter(batches)
        for batch in stream:
            batch = batch if batch.schema == self._schema else batch.cast(self._schema)
            held.append(batch)
            self._left -= batch.nbytes
            if self._left < 0 or self._files:
                break
        table = pa.Table.from_batches(held, self._schema)
        if self._left >= 0 and not self._files:
            self._tables.append(table)
            return
        for earlier in self._tables:
            self._write(earlier.to_batches())
        self._tables = []
        del table
        self._write(let_go(held), stream)

    def _write(self, *streams: Iterable[pa.RecordBatch]) -> None:
        import pyarrow as pa

        make_private(self._folder)
        path = os.path.join(self._folder, f"part-{len(self._files):05d}.arrow")
        with explained(path, "keep"), pa.ipc.new_file(path, self._schema) as writer:
            for stream in streams:
                for batch in stream:
                    writer.write_batch(
                        batch if batch.schema == self._schema else batch.cast(self._schema)
                    )
        found = os.stat(path)
        self._files.append(FileInfo(path, found.st_size, str(found.st_mtime_ns)))

    def discard(self) -> None:
        """Remove what was written of rows that will not be whole."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def splits(self) -> tuple[tuple[Split, ...], tuple[FileInfo, ...]]:
        """One split per partition, and the files, if any, that hold them."""
        if self._files:
            files = tuple(Split((FileSlice(file.path),)) for file in self._files)
            return files, tuple(self._files)
        return tuple(Split(rows=ArrowRows(table)) for table in self._tables), ()

    def table(self) -> pa.Table:
        import pyarrow as pa

        # `Schema.empty_table` knows no unions.
        empty = pa.Table.from_batches([], self._schema)
        return pa.concat_tables(self._tables or [empty])
