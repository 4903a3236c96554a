"""Open a training set: rows by number, and loaders over them.

`open_dataset` is the door: it tells what lies at a path (an index with shards, or
plain Parquet), and hands in the rows; what a row number means is the same for all.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from millpond import lazy
from millpond.engine.values import as_values
from millpond.errors import ColumnNotFound, FileUnreadable, OptionError, RowNotFound, warn
from millpond.formats.find import find_files
from millpond.formats.shard_index import INDEX_NAME, Index, read_index
from millpond.loader.batches import FORMATS, Batch, Format, shown
from millpond.loader.cache import CachedShards
from millpond.loader.columns import TooLarge, to_arrow
from millpond.loader.feed import Feed
from millpond.loader.flat import LocalShards, Shards
from millpond.loader.loader import Loader, Settings
from millpond.loader.mds import INDEX as MDS_INDEX
from millpond.loader.mds import MdsRows
from millpond.loader.parquet import ParquetRows
from millpond.loader.plan import Choice, identity_of, order_of, sequence_about, units_of
from millpond.loader.remote import RemoteShards
from millpond.loader.selection import Predicate, Select
from millpond.loader.sequence import Single
from millpond.loader.shard_rows import ShardRows, Verify
from millpond.loader.units import RowSource
from millpond.storage import Range, Storage, open_storage

__all__ = ["Batch", "Dataset", "open_dataset"]


class Dataset(Feed):
    """Rows of a training set by number. Made by `open_dataset`.

    `ds[17]` is a row as a dict; `ds[[3, 1, 2]]` and `ds[10:20]` are Arrow tables in the
    order asked. It may be pickled: the other process opens it anew.
    """

    def __init__(
        self, rows: RowSource, storage: Storage, select: Select | None, reopen: tuple[Any, ...]
    ) -> None:
        self.rows, self.storage, self.select = rows, storage, select
        self._reopen = reopen

    def __reduce__(self) -> tuple[Any, ...]:
        return _open, self._reopen

    @property
    def path(self) -> str:
        return self.rows.uri

    @property
    def schema(self) -> pa.Schema:
        """The columns, as Arrow types."""
        return self.rows.schema

    @property
    def fingerprint(self) -> str:
        """Identity of the content: other rows or another order, another fingerprint."""
        return self.rows.fingerprint

    def __len__(self) -> int:
        return self.rows.n_rows

    def __repr__(self) -> str:
        return f"Dataset({self.path!r}, {len(self):,} rows: {', '.join(self.schema.names)})"

    def __getitem__(self, at: int | slice | Sequence[int] | npt.NDArray[np.int64]) -> Any:
        if isinstance(at, int | np.integer) and not isinstance(at, bool):
            row = self._rows_of(np.array([at], np.int64))
            return _dicts(self._table(row))[0]
        if isinstance(at, slice):
            return self._table(np.arange(*at.indices(len(self)), dtype=np.int64))
        asked = np.asarray(at)
        if asked.size and asked.dtype.kind not in "iu":
            raise OptionError(
                f"dataset {self.path!r}: rows are asked for by number, not by {asked.dtype}. "
                "Pass an integer, a slice or a list of integers."
            )
        return self._table(self._rows_of(asked.astype(np.int64).reshape(-1)))

    def take(
        self,
        rows: Sequence[int] | npt.NDArray[np.int64],
        columns: Sequence[str] | None = None,
        *,
        format: Format = "numpy",
    ) -> Any:
        """`rows` in the order asked as a loader gives a batch: the quickest random access.

        `columns` and `format` are those of `loader`. Rows count from 0; they may repeat.
        """
        if format not in FORMATS:
            raise OptionError(f"take(format={format!r}): it is one of {', '.join(FORMATS)}.")
        asked = self._rows_of(np.asarray(rows, np.int64).reshape(-1))
        names = list(columns) if columns is not None else self.schema.names
        for name in names:
            if name not in self.schema.names:
                raise ColumnNotFound(name, self.schema.names, f"dataset {self.path!r}")
        self.rows.advise_new(asked, names)
        return shown(self.rows.take(asked, names, format == "views"), format, dress_of(format))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Rows as dicts, in storage order."""
        for first in range(0, len(self), 1024):
            yield from _dicts(self[first : first + 1024])

    def _open(self, choice: Choice, settings: Settings) -> Loader:
        units = units_of(self.rows, self.storage, self.select, choice)
        order = order_of(choice, units.n, units.unit_bytes)
        return Loader(
            f"dataset {self.path!r}",
            Single(units.n, order),
            [units],
            identity_of(self.fingerprint, choice, order),
            settings,
            remake=(self, choice),
            about=sequence_about(choice, order, self.rows.cost(), units),
            dress=dress_of(settings.format, settings.pin_memory),
        )

    def _rows_of(self, asked: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        n = len(self)
        if not asked.size or asked.view(np.uint64).max() < n:  # A negative number is large here.
            return asked
        least, most = int(asked.min()), int(asked.max())
        if least < -n or most >= n:
            wrong = most if most >= n else least
            raise RowNotFound(f"dataset {self.path!r}: no row {wrong}; it has {n} rows.")
        return np.where(asked < 0, asked + n, asked)

    def _table(self, rows: npt.NDArray[np.int64]) -> pa.Table:
        names = self.schema.names
        self.rows.advise_new(rows, names)
        columns = self.rows.take(rows, names)
        try:
            arrays = [to_arrow(columns[name]) for name in names]
        except TooLarge:
            if rows.size == 1:
                raise
            half = rows.size // 2
            return pa.concat_tables([self._table(rows[:half]), self._table(rows[half:])])
        return pa.table(arrays, schema=self.schema)


def open_dataset(
    path: str,
    storage_options: Mapping[str, str] | None = None,
    *,
    verify: Verify = "first",
    select: Select | None = None,
    cache: str | None = None,
    cache_bytes: int = 64 << 30,
) -> Dataset:
    """Open a training set: a local path, a URI, a mount; also Parquet, or MDS shards.

    `verify` is `"first"` (each value is checked when this process first reads it),
    `"always"` or `"off"`. `select` evaluates filters (None: DuckDB does). `cache` is a
    folder of this machine that keeps up to `cache_bytes` of remote shards, for all
    processes that name it. Reads the index, or the footers.
    """
    if not isinstance(path, str | os.PathLike):
        raise OptionError(f"open_dataset({path!r}): needs a path.")
    if verify not in ("first", "always", "off"):
        raise OptionError(f"open_dataset(verify={verify!r}): it is one of first, always, off.")
    engine = select or _by_the_engine
    return _open(str(path), storage_options, verify, engine, cache, cache_bytes)


def _dicts(table: pa.Table) -> list[dict[str, Any]]:
    names = table.schema.names
    columns = [as_values(table.column(name), name) for name in names]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _by_the_engine(text: str, schema: pa.Schema) -> Predicate:
    from millpond.loader.filters import predicate  # Loads DuckDB: only where there is a filter.

    return predicate(text, schema)


def _open(
    path: str,
    options: Mapping[str, str] | None,
    verify: Verify,
    select: Select | None,
    cache: str | None,
    cache_bytes: int,
) -> Dataset:
    storage = open_storage(path, options)
    root = path.rstrip("/").removesuffix("/" + INDEX_NAME)
    rows = _rows(root, storage, verify, cache, cache_bytes)
    reopen = (path, options, verify, select, cache, cache_bytes)
    return Dataset(rows, storage, select, reopen)


def _rows(
    root: str, storage: Storage, verify: Verify, cache: str | None, cache_bytes: int
) -> RowSource:
    file = f"{root}/{INDEX_NAME}"
    if storage.stat(file) is not None:
        data = storage.read_many([Range(file, 0, -1)])[0]
        index = read_index(bytes(data), file)
        return ShardRows(root, index, _shards(root, index, storage, cache, cache_bytes), verify)
    if storage.stat(f"{root}/{MDS_INDEX}") is not None:
        return MdsRows(root, storage)
    where = f"open_dataset({root!r})"
    found = find_files([root], lambda _: storage, where, recursive=True)
    files = [file for file in found.files if file.path.endswith(".parquet")]
    if files:
        keys = [name for name, _ in found.hive[0]]
        if keys:
            warn(
                f"{where}: the values of the folders ({', '.join(keys)}) are no columns here. Read "
                "the folder with read_parquet and write a training set, to have them."
            )
        return ParquetRows(root, storage, files)
    raise FileUnreadable(
        f"open_dataset({root!r}): neither an index ({INDEX_NAME}) nor MDS shards or Parquet lie "
        "here. Write a training set with write_dataset, or pass the folder of one."
    )


def _shards(
    root: str, index: Index, storage: Storage, cache: str | None, cache_bytes: int
) -> Shards:
    paths = [f"{root}/{shard.name}" for shard in index.shards]
    local = storage.local_path(root)
    if local is None and cache is not None:
        return CachedShards(paths, index.shards, storage, cache, cache_bytes, index.fingerprint)
    if local is None:
        return RemoteShards(paths, index.shards, storage)
    real = os.path.realpath(local)
    own = [os.path.realpath(os.path.join(real, shard.name)) for shard in index.shards]
    for path, shard in zip(own, index.shards, strict=True):
        if not path.startswith(real + os.sep):
            raise FileUnreadable(
                f"open_dataset({root!r}): the shard {shard.name!r} is a link that leads outside "
                "of the dataset. Put the file itself there."
            )
    return LocalShards(own, index.shards)


def dress_of(format: Format, pin_memory: bool = False) -> Any:
    """What makes torch tensors of a batch, without importing torch where nobody asks."""
    if format != "torch":
        return None
    torch = lazy.extra("millpond.loader.torch", extra="torch", what="loader(format='torch')")
    if pin_memory:
        torch.must_pin()
    return torch.pinned if pin_memory else torch.tensors
