"""Mosaic MDS shards as rows by number, read in place.

A sample is one range of bytes between two offsets in its shard's head, and is decoded
by itself: so a row costs some microseconds of Python, and `cost` says so. Pickled
columns are refused, because reading them would run code.
"""

import json
import posixpath
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from xxhash import xxh3_128_hexdigest

from millpond.errors import FileUnreadable, PathNotFound, RowsUnreadable, SchemaMismatch
from millpond.loader.columns import Column, from_arrow, slices_of_lists
from millpond.storage import Range, Storage

Int64s = npt.NDArray[np.int64]
INDEX = "index.json"
_NUMBERS = {
    f"{kind}{bits}": np.dtype(f"{kind}{bits}")
    for kind, sizes in (
        ("uint", (8, 16, 32, 64)),
        ("int", (8, 16, 32, 64)),
        ("float", (16, 32, 64)),
    )
    for bits in sizes
}
_SCAN = 4096


@dataclass(frozen=True, slots=True)
class _Field:
    """A column: its Arrow type, its bytes in each sample (None: they differ), its decoder."""

    name: str
    kind: pa.DataType
    size: int | None
    decode: Callable[[memoryview], Any]


@dataclass(frozen=True, slots=True)
class _Shard:
    path: str
    samples: int
    size_bytes: int


class MdsRows:
    """Rows of the MDS shards that `index.json` at `uri` names."""

    def __init__(self, uri: str, storage: Storage) -> None:
        self.uri, self._storage = uri, storage
        data = bytes(storage.read_many([Range(f"{uri}/{INDEX}", 0, -1)])[0])
        self.fingerprint = xxh3_128_hexdigest(data)
        try:
            described = json.loads(data)["shards"]
            self._shards = [self._shard(shard) for shard in described]
            self._fields = _fields(uri, described[0]) if described else []
            for shard in described[1:]:
                if _fields(uri, shard) != self._fields:
                    raise SchemaMismatch(
                        f"open_dataset({uri!r}): shard {shard['raw_data']['basename']!r} has other "
                        "columns than the first one. Write all shards with the same columns."
                    )
        except (KeyError, TypeError, ValueError) as error:
            raise FileUnreadable(
                f"open_dataset({uri!r}): {INDEX} is no index of MDS shards ({error!r}). "
                "Restore it from a copy."
            ) from error
        self.schema = pa.schema([(field.name, field.kind) for field in self._fields])
        counts = [shard.samples for shard in self._shards]
        self._starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self.n_rows = int(self._starts[-1])
        self._heads: dict[int, Int64s] = {}

    def take(
        self, rows: Int64s, columns: Sequence[str], in_place: bool = False
    ) -> dict[str, Column]:
        """The named columns of `rows`, in the order asked. None is stored as a view could show."""
        shard = np.searchsorted(self._starts, rows, side="right") - 1
        ranges = self._ranges(rows, shard)
        samples = self._storage.read_many(ranges)
        wanted = [field for field in self._fields if field.name in columns]
        values: dict[str, list[Any]] = {field.name: [] for field in wanted}
        for row, s, sample in zip(rows.tolist(), shard.tolist(), samples, strict=True):
            try:
                self._decode(sample, values)
            except (ValueError, IndexError, TypeError) as error:
                what = f"a sample cannot be decoded ({error})"
                raise self._bad(np.array([row]), s, what) from error
        kinds = {field.name: field.kind for field in wanted}
        return {name: from_arrow(pa.array(values[name], kinds[name])) for name in columns}

    def advise(self, rows: Int64s, columns: Sequence[str], count: int = 1) -> None:
        """Nothing: batches are read ahead by the loader's thread."""

    def advise_new(self, rows: Int64s, columns: Sequence[str]) -> None:
        """Nothing either."""

    def prepare(self, whole: bool) -> bool:
        return False

    @property
    def cold(self) -> bool:
        return False

    def lengths(self, column: str) -> Int64s:
        """The number of elements of each row of a list column. Reads all samples."""
        found = [np.empty(0, np.int64)]
        for first in range(0, self.n_rows, _SCAN):
            rows = np.arange(first, min(first + _SCAN, self.n_rows))
            offsets = self.take(rows, [column])[column].offsets
            assert offsets is not None, "packing takes list columns only"
            found.append(np.diff(offsets))
        return np.concatenate(found)

    def slices(self, rows: Int64s, column: str, start: Int64s, size: Int64s) -> npt.NDArray[Any]:
        return slices_of_lists(self.take(np.unique(rows), [column])[column], rows, start, size)

    def row_bytes(self, columns: Sequence[str]) -> float:
        return sum(shard.size_bytes for shard in self._shards) / max(1, self.n_rows)

    def cost(self) -> str:
        return (
            "MDS shards, decoded a sample at a time in Python; write_dataset once, and batches "
            "come some ten times faster"
        )

    def _shard(self, shard: dict[str, Any]) -> _Shard:
        raw = shard["raw_data"]
        name = str(raw["basename"])
        if shard.get("compression") or shard["format"] != "mds" or shard["version"] != 2:
            raise FileUnreadable(
                f"open_dataset({self.uri!r}): shard {name!r} is compressed, or not MDS version 2. "
                "Decompress the shards first."
            )
        if posixpath.normpath(name) != name or name.startswith(("/", "..")):
            raise FileUnreadable(
                f"open_dataset({self.uri!r}): the index names the shard {name!r}, which does not "
                "lie beside it."
            )
        return _Shard(f"{self.uri}/{name}", int(shard["samples"]), int(raw["bytes"]))

    def _ranges(self, rows: Int64s, shard: Int64s) -> list[Range]:
        heads = {s: self._head(s, rows[shard == s]) for s in np.unique(shard).tolist()}
        found = []
        for s, i in zip(shard.tolist(), (rows - self._starts[shard]).tolist(), strict=True):
            begin, end = heads[s][i : i + 2].tolist()
            found.append(Range(self._shards[s].path, begin, end - begin))
        return found

    def _head(self, s: int, rows: Int64s) -> Int64s:
        """Where each sample of a shard begins, and where the last one ends."""
        if s not in self._heads:
            shard = self._shards[s]
            try:
                data = self._storage.read_many([Range(shard.path, 0, 4 * (shard.samples + 2))])[0]
            except PathNotFound as error:
                raise self._bad(rows, s, f"it cannot be read ({error})") from error
            head = np.frombuffer(data, "<u4").astype(np.int64)
            inside = head.size == shard.samples + 2 and head[0] == shard.samples
            if not inside or (np.diff(head[1:]) < 0).any() or head[-1] > shard.size_bytes:
                raise self._bad(rows, s, "its head does not fit the index")
            self._heads[s] = head[1:]
        return self._heads[s]

    def _decode(self, sample: memoryview, values: dict[str, list[Any]]) -> None:
        sizes, at = [], 0
        for field in self._fields:
            if field.size is None:
                sizes.append(int.from_bytes(sample[at : at + 4], "little"))
                at += 4
            else:
                sizes.append(field.size)
        if at + sum(sizes) != len(sample):
            raise ValueError("its columns' sizes do not add up")
        for field, size in zip(self._fields, sizes, strict=True):
            if field.name in values:
                values[field.name].append(field.decode(sample[at : at + size]))
            at += size

    def _bad(self, rows: Int64s, s: int, what: str) -> RowsUnreadable:
        return RowsUnreadable(
            self.uri, posixpath.basename(self._shards[s].path), rows.tolist(), what
        )


def _fields(uri: str, shard: dict[str, Any]) -> list[_Field]:
    described = zip(
        shard["column_names"], shard["column_encodings"], shard["column_sizes"], strict=True
    )
    return [_field(uri, str(name), str(encoding), size) for name, encoding, size in described]


def _field(uri: str, name: str, encoding: str, size: int | None) -> _Field:
    word, _, rest = encoding.partition(":")
    if word in ("bytes", "jpeg", "png"):  # Images stay encoded; who trains decodes them.
        return _Field(name, pa.large_binary(), size, bytes)
    if word in ("str", "json"):
        return _Field(name, pa.string(), size, _text)
    if word == "int" or word in _NUMBERS:
        dtype = _NUMBERS["int64" if word == "int" else word]
        return _Field(name, pa.from_numpy_dtype(dtype), dtype.itemsize, _Number(dtype))
    if word == "str_int":
        return _Field(name, pa.int64(), size, _integer)
    if word == "str_float":
        return _Field(name, pa.float64(), size, _float)
    if word == "ndarray" and rest:
        dtype_name, _, shape = rest.partition(":")
        dtype = _NUMBERS[dtype_name]
        return _Field(name, pa.list_(pa.from_numpy_dtype(dtype)), size, _Array(dtype, not shape))
    raise SchemaMismatch(
        f"open_dataset({uri!r}): column {name!r} is stored as {encoding!r}, which is not read here "
        "(pickled columns would run code). Convert the column, and write_dataset."
    )


@dataclass(frozen=True, slots=True)
class _Number:
    dtype: np.dtype[Any]

    def __call__(self, data: memoryview) -> Any:
        return np.frombuffer(data, self.dtype, 1)[0]


@dataclass(frozen=True, slots=True)
class _Array:
    """An array, flat. `shaped`: its shape stands before it, as (ndim << 2 | log2 width)."""

    dtype: np.dtype[Any]
    shaped: bool

    def __call__(self, data: memoryview) -> Any:
        skip = 1 + (data[0] >> 2) * (1 << (data[0] & 3)) if self.shaped else 0
        return np.frombuffer(data[skip:], self.dtype)


def _text(data: memoryview) -> str:
    return str(data, "utf-8")


def _integer(data: memoryview) -> int:
    return int(_text(data))


def _float(data: memoryview) -> float:
    return float(_text(data))
