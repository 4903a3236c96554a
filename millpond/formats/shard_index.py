"""The index of a training set: one JSON file that names the shards and all in them.

A shard exists for readers when an index names it. The index carries the schema, each
shard's rows and size, the place and checksum of every buffer, a fingerprint of the
content and a checksum of itself. Names in it are relative to its folder; none may
lead outside. It is read without trusting any of it.
"""

import base64
import json
import posixpath
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from xxhash import xxh3_64_hexdigest, xxh3_128

from millpond.errors import FileUnreadable, SchemaMismatch
from millpond.formats.shard_types import storage_schema, user_columns
from millpond.formats.shards import ShardInfo

INDEX_NAME = "dataset.json"
FORMAT = "millpond-dataset"
VERSION = 1


@dataclass(frozen=True, slots=True)
class Shard:
    """A shard as the index names it; `batches` is how many record batches hold its rows."""

    name: str
    rows: int
    size_bytes: int
    batches: int


@dataclass(frozen=True, eq=False, slots=True)
class Index:
    """A training set: `layout` is that of all shards, one row a record batch.

    Its columns: the batch's rows, then (offset in the shard, length, xxh3) a buffer.
    """

    schema: pa.Schema
    shards: tuple[Shard, ...]
    layout: npt.NDArray[np.uint64]
    fingerprint: str
    align: int | None = None
    commit_id: str = ""  # Of the write that made it, where that had one.

    @property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.shards)

    @property
    def size_bytes(self) -> int:
        return sum(shard.size_bytes for shard in self.shards)


def index_bytes(
    shards: Sequence[ShardInfo], schema: pa.Schema, align: int | None = None, commit_id: str = ""
) -> bytes:
    """The index file over `shards`, in the order of their rows.

    `schema` is what the writers were given; it tells the columns where there is no shard.
    Shards without rows are left out. 25 bytes or less a buffer of each record batch.
    """
    kept = [shard for shard in shards if shard.rows]
    stored = kept[0].schema if kept else storage_schema(schema).serialize().to_pybytes()
    for shard in kept:
        if shard.schema != stored:
            raise SchemaMismatch(
                f"dataset index: shard {shard.name!r} has another schema than shard "
                f"{kept[0].name!r}. Write all shards of a dataset with one schema."
            )
    columns = pa.ipc.read_schema(pa.py_buffer(stored))
    body: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "fingerprint": _fingerprint(stored, kept),
        "rows": sum(shard.rows for shard in kept),
        "bytes": sum(shard.size_bytes for shard in kept),
        "columns": {name: str(columns.field(name).type) for name in user_columns(columns)},
        "schema": base64.b64encode(stored).decode(),
        "align": align,
        "commit": commit_id,
        "shards": [
            {"name": s.name, "rows": s.rows, "bytes": s.size_bytes, "batches": _batches(s, columns)}
            for s in kept
        ],
        "layout": _pack(b"".join(shard.layout for shard in kept)),
    }
    body["checksum"] = _checksum(body)
    return (json.dumps(body, indent=1) + "\n").encode()


def read_index(data: bytes, path: str) -> Index:
    """The index in `data`, read from `path`; `FileUnreadable` that says what is wrong."""
    body = _body(data, path)
    try:
        shards = tuple(
            Shard(_inside(str(s["name"]), path), int(s["rows"]), int(s["bytes"]), int(s["batches"]))
            for s in body["shards"]
        )
        schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(body["schema"])))
        layout = _unpack(body["layout"], sum(s.batches for s in shards), words_per_batch(schema))
        written = str(body.get("commit", ""))
        index = Index(schema, shards, layout, str(body["fingerprint"]), body["align"], written)
        _check(index, path)
    # ValueError: also of base64 and of Arrow. OverflowError: a number that no file can have.
    except (KeyError, TypeError, ValueError, OverflowError, zlib.error) as error:
        raise _damaged(path, f"a part of it cannot be read ({error})") from error
    return index


def words_per_batch(schema: pa.Schema) -> int:
    """Columns of `Index.layout` for a stored schema."""
    return 1 + 3 * sum(_buffers(field.type) for field in schema)


def _buffers(kind: pa.DataType) -> int:
    """Buffers of an array of this type, with those of its children."""
    # Not by the example of an empty array: to make one, pyarrow loads pandas, a quarter second.
    inner = sum(_buffers(kind.field(i).type) for i in range(kind.num_fields))
    return int(kind.num_buffers) + inner


def _body(data: bytes, path: str) -> dict[str, Any]:
    try:
        body = json.loads(data)
    except ValueError as error:
        raise _damaged(path, f"it is not whole JSON ({len(data)} bytes; {error})") from error
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        raise _damaged(path, "it is not the index of a Millpond dataset")
    if body.get("version") != VERSION:
        raise FileUnreadable(
            f"open_dataset({path!r}): the index has format version {body.get('version')}, and "
            f"this Millpond reads version {VERSION}. Use the Millpond that wrote it."
        )
    stated = body.pop("checksum", None)
    if stated != _checksum(body):
        raise _damaged(path, "its checksum does not fit: it was edited, or damaged")
    return body


def _check(index: Index, path: str) -> None:
    """What the reader relies on to stay inside the shards, even against a forged index."""
    first = 0
    for shard in index.shards:
        part = index.layout[first : first + shard.batches]
        first += shard.batches
        if not part.size or int(part[:, 0].sum()) != shard.rows or part[:, 0].min() < 1:
            raise _damaged(path, f"the batches of shard {shard.name!r} do not hold its rows")
        # Each alone first: a sum of two huge words may wrap around to a small one.
        at, length, size = part[:, 1::3], part[:, 2::3], np.uint64(shard.size_bytes)
        if (at > size).any() or (length > size).any() or (at + length > size).any():
            raise _damaged(path, f"a buffer of shard {shard.name!r} lies outside of it")
        if (at % np.uint64(8)).any():
            raise _damaged(path, f"a buffer of shard {shard.name!r} is not aligned to 8 bytes")


def _inside(name: str, path: str) -> str:
    normal = posixpath.normpath(name)
    if normal != name or name.startswith("/") or normal.split("/")[0] in ("..", ".", ""):
        raise _damaged(path, f"it names the shard {name!r}, which does not lie beside it")
    return name


def _damaged(path: str, what: str) -> FileUnreadable:
    return FileUnreadable(
        f"open_dataset({path!r}): the index is damaged: {what}. "
        "Restore the file from a copy, or write the dataset again."
    )


def _batches(shard: ShardInfo, stored: pa.Schema) -> int:
    return len(shard.layout) // (8 * words_per_batch(stored))


def _fingerprint(schema: bytes, shards: Sequence[ShardInfo]) -> str:
    """128 bits over the schema and the content: equal rows in equal batches, wherever."""
    sums = xxh3_128(schema)
    for shard in shards:
        words = np.frombuffer(shard.layout, "<u8")
        columns = words_per_batch(pa.ipc.read_schema(pa.py_buffer(schema)))
        table = words.reshape(-1, columns)
        sums.update(np.ascontiguousarray(table[:, 0]).tobytes())
        sums.update(np.ascontiguousarray(table[:, 3::3]).tobytes())
    return sums.hexdigest()


def _pack(layout: bytes) -> str:
    return base64.b64encode(zlib.compress(layout, 1)).decode()


def _checksum(body: dict[str, Any]) -> str:
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return xxh3_64_hexdigest(canonical.encode())


def _unpack(text: str, batches: int, words: int) -> npt.NDArray[np.uint64]:
    """The layout; never more memory than it should take, whatever the text holds."""
    size = 8 * batches * words
    data = zlib.decompressobj().decompress(base64.b64decode(text), size + 1)
    if len(data) != size:
        raise ValueError(f"the layout has not the {size} bytes of its {batches} batches")
    return np.frombuffer(data, "<u8").reshape(batches, words)
