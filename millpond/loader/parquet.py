"""Plain Parquet files as rows by number, a row group at a time.

A row costs the decoding of its row group, unless that is among the few kept; so
`"block"` order over row groups is the one that pays. `cost` says so.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from xxhash import xxh3_128_hexdigest

from millpond.errors import FileUnreadable, RowsUnreadable, SchemaMismatch
from millpond.loader.columns import Column, from_arrow, slices_of_lists
from millpond.storage import FileInfo, Storage, open_file

Int64s = npt.NDArray[np.int64]
KEEP_BYTES = 512 << 20


class ParquetRows:
    """Rows of Parquet files, in the order of their paths. Memory: `KEEP_BYTES` decoded."""

    def __init__(self, uri: str, storage: Storage, files: Sequence[FileInfo]) -> None:
        self.uri, self._storage = uri, storage
        self._files = [file.path for file in files]
        self._opened: dict[int, pq.ParquetFile] = {}
        self._groups: list[tuple[int, int]] = []
        self.schema = self._open(0).schema_arrow.remove_metadata()
        rows, sizes = [], 0
        for i, file in enumerate(files):
            found = self._open(i)
            if not found.schema_arrow.remove_metadata().equals(self.schema):
                raise SchemaMismatch(
                    f"open_dataset({uri!r}): {file.path!r} has other columns than "
                    f"{files[0].path!r}. Write the files with one schema."
                )
            for g in range(found.num_row_groups):
                self._groups.append((i, g))
                rows.append(found.metadata.row_group(g).num_rows)
                sizes += found.metadata.row_group(g).total_byte_size
        self._starts = np.concatenate([[0], np.cumsum(rows)]).astype(np.int64)
        self.n_rows = int(self._starts[-1])
        self._bytes = sizes / max(1, self.n_rows)
        words = [f"{file.path[len(uri) :]} {file.size_bytes} {file.version}" for file in files]
        self.fingerprint = xxh3_128_hexdigest("\n".join(words).encode())
        self._kept: OrderedDict[tuple[int, tuple[str, ...]], pa.Table] = OrderedDict()

    def take(
        self, rows: Int64s, columns: Sequence[str], in_place: bool = False
    ) -> dict[str, Column]:
        """The named columns of `rows`, in the order asked. None is stored as a view could show."""
        group = np.searchsorted(self._starts, rows, side="right") - 1
        order = np.argsort(group, kind="stable")
        parts = []
        for g in np.unique(group).tolist():
            mine = rows[order][group[order] == g]
            table = self._group(g, tuple(columns), mine)
            parts.append(table.take(pa.array(mine - self._starts[g])))
        back = np.empty_like(order)
        back[order] = np.arange(order.size)
        if not parts:
            empty = self.schema.empty_table().select(list(columns))
            return {name: Column(empty[name].type, 0, array=_one(empty[name])) for name in columns}
        whole = pa.concat_tables(parts).combine_chunks().take(pa.array(back))
        return {name: from_arrow(_one(whole[name])) for name in columns}

    def advise_new(self, rows: Int64s, columns: Sequence[str]) -> None:
        """Nothing either."""

    def prepare(self, whole: bool) -> bool:
        return False

    @property
    def cold(self) -> bool:
        return False

    def advise(self, rows: Int64s, columns: Sequence[str], count: int = 1) -> None:
        """Nothing to say: whole row groups are read."""

    def lengths(self, column: str) -> Int64s:
        """The number of elements of each row of a list column. Reads the column."""
        found = [np.empty(0, np.int64)]
        for g in range(len(self._groups)):
            table = self._group(g, (column,), np.empty(0, np.int64))
            counts = pa.compute.fill_null(pa.compute.list_value_length(table[column]), 0)
            found.append(counts.to_numpy().astype(np.int64))
        return np.concatenate(found)

    def slices(self, rows: Int64s, column: str, start: Int64s, size: Int64s) -> npt.NDArray[Any]:
        return slices_of_lists(self.take(np.unique(rows), [column])[column], rows, start, size)

    def row_bytes(self, columns: Sequence[str]) -> float:
        return self._bytes * len(columns) / max(1, len(self.schema))

    def cost(self) -> str:
        mean = self.n_rows // max(1, len(self._groups))
        return (
            f"plain Parquet: a random row decodes its row group of about {mean:,} rows; use "
            "shuffle='block', or write a training set with write_dataset"
        )

    def _open(self, i: int) -> pq.ParquetFile:
        if i not in self._opened:
            try:
                # A store is asked for the footer and for the columns of a row group alone.
                source = open_file(self._storage, self._files[i])
                self._opened[i] = pq.ParquetFile(source, memory_map=False, pre_buffer=True)
            except (pa.ArrowInvalid, OSError) as error:
                raise FileUnreadable(
                    f"open_dataset({self.uri!r}): {self._files[i]!r} is not a whole Parquet file "
                    f"({error}). Restore or remove it."
                ) from error
        return self._opened[i]

    def _group(self, g: int, columns: tuple[str, ...], rows: Int64s) -> pa.Table:
        key = (g, columns)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        file, inside = self._groups[g]
        try:
            table = self._open(file).read_row_group(inside, columns=list(columns))
        except (pa.ArrowInvalid, OSError) as error:
            what = f"row group {inside} cannot be read ({error})"
            raise RowsUnreadable(self.uri, self._files[file], rows.tolist(), what) from error
        self._kept[key] = table = table.select(list(columns)).combine_chunks()
        while sum(kept.nbytes for kept in self._kept.values()) > KEEP_BYTES and len(self._kept) > 1:
            self._kept.popitem(last=False)
        return table


def _one(column: pa.ChunkedArray) -> pa.Array:
    """A column without chunks."""
    whole = column.combine_chunks()
    return whole if isinstance(whole, pa.Array) else pa.concat_arrays(whole.chunks)
