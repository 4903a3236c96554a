"""From row numbers to addresses: the record batches of all shards, and their buffers.

Pure arithmetic over the index; reads nothing. A *chunk* is one record batch; a *slot*
is one buffer of every chunk, numbered in Arrow's order over the stored columns.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from millpond.formats.shard_index import Index
from millpond.formats.shard_types import (
    checksum_column,
    is_bytes,
    is_fixed,
    is_fixed_list,
    is_list,
    row_checksums,
    user_columns,
)

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Node:
    """A type and the slots of its buffers; -1 where it has none.

    `whole` says that a fixed-size list reads as one fixed value: no child is null.
    """

    kind: pa.DataType
    valid: int
    offsets: int = -1
    data: int = -1
    whole: bool = False
    children: tuple["Node", ...] = ()

    def slots(self) -> list[int]:
        own = [slot for slot in (self.valid, self.offsets, self.data) if slot >= 0]
        return own + [slot for child in self.children for slot in child.slots()]


class Chunks:
    """Which chunk holds a row."""

    def __init__(self, rows: Int64s) -> None:
        self.starts = np.concatenate([[0], np.cumsum(rows)]).astype(np.int64)
        self.n_rows = int(self.starts[-1])
        uniform = len(rows) > 0 and bool((rows[:-1] == rows[0]).all() and rows[-1] <= rows[0])
        size = int(rows[0]) if uniform else 0
        self._shift = size.bit_length() - 1 if size.bit_count() == 1 else -1
        self._size = size
        self._buckets = _Buckets.of(self.starts) if self._shift < 0 else None

    def find(self, rows: Int64s) -> tuple[Int64s, Int64s]:
        """The chunk of each row, and its place in the chunk."""
        if self._shift >= 0:
            return rows >> self._shift, rows & (self._size - 1)
        if self._buckets is not None:
            chunk = self._buckets.find(rows, self.starts)
        else:
            chunk = np.searchsorted(self.starts, rows, side="right") - 1
        return chunk, rows - self.starts[chunk]


@dataclass(frozen=True, slots=True, eq=False)
class _Buckets:
    """A first guess for equal stretches of rows, and how many chunks it may be short of.

    Four times a binary search's speed for 512 rows in any order.
    """

    shift: int
    first: Int64s
    steps: int

    @classmethod
    def of(cls, starts: Int64s) -> "_Buckets | None":
        """None where chunks differ so much in size that a guess is no help."""
        n_rows, n_chunks = int(starts[-1]), len(starts) - 1
        if not n_rows:
            return None
        shift = max(0, (n_rows // (4 * n_chunks)).bit_length() - 1)
        edges = np.arange((n_rows >> shift) + 2, dtype=np.int64) << shift
        found = np.searchsorted(starts, edges, side="right") - 1
        steps = int(np.diff(found).max())
        return cls(shift, np.minimum(found[:-1], n_chunks - 1), steps) if steps <= 3 else None

    def find(self, rows: Int64s, starts: Int64s) -> Int64s:
        chunk: Int64s = self.first[rows >> self.shift]
        for _ in range(self.steps):
            chunk += rows >= starts[chunk + 1]
        return chunk


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """Every buffer's address, length and checksum, by (slot, chunk); -1 where absent."""

    chunks: Chunks
    shard: Int64s
    address: Int64s
    length: Int64s
    checksum: npt.NDArray[np.uint64]
    present: tuple[bool, ...]  # Whether any chunk has the slot's buffer.
    columns: dict[str, Node]
    sums: dict[str, int]  # Slot of the row checksums of a column, where it has them.
    row_bytes: dict[str, float]  # Mean bytes of a row, by column.


def layout_of(index: Index, places: Int64s) -> Layout:
    """The layout of all shards, each at its place in one range of addresses."""
    words = index.layout
    shard = np.repeat(np.arange(len(index.shards)), [s.batches for s in index.shards])
    length = np.ascontiguousarray(words[:, 2::3].T).astype(np.int64)
    offset = np.ascontiguousarray(words[:, 1::3].T).astype(np.int64)
    address = np.where(length > 0, offset + places[shard] if len(shard) else offset, -1)
    columns: dict[str, Node] = {}
    slot = 0
    for field in index.schema:
        columns[field.name], slot = _node(field.type, slot, length)
    chunks = Chunks(words[:, 0].astype(np.int64))
    sums = {
        name: columns[checksum_column(name)].data
        for name in row_checksums(pa.schema([index.schema.field(c) for c in _users(index)]))
        if checksum_column(name) in columns
    }
    sizes = {
        name: float(length[columns[name].slots()].sum()) / max(1, chunks.n_rows)
        for name in _users(index)
    }
    sums_by_slot = np.ascontiguousarray(words[:, 3::3].T)
    users = {name: columns[name] for name in _users(index)}
    present = tuple(bool(slot.any()) for slot in length)
    return Layout(chunks, shard, address, length, sums_by_slot, present, users, sums, sizes)


def _users(index: Index) -> list[str]:
    return list(user_columns(index.schema))


def _node(kind: pa.DataType, slot: int, length: Int64s) -> tuple[Node, int]:
    """The node of a type whose buffers begin at `slot`, and the slot behind it."""
    if is_bytes(kind):
        return Node(kind, slot, slot + 1, slot + 2), slot + 3
    if is_fixed(kind) or pa.types.is_boolean(kind):
        return Node(kind, slot, data=slot + 1), slot + 2
    if is_fixed_list(kind) and not length[slot + 1].any():
        return Node(kind, slot, data=slot + 2, whole=True), slot + 3
    own, children = slot, []
    has_offsets = is_list(kind) or pa.types.is_map(kind)
    slot += 2 if has_offsets else 1
    for child in _children(kind):
        node, slot = _node(child, slot, length)
        children.append(node)
    offsets = own + 1 if has_offsets else -1
    return Node(kind, own, offsets, children=tuple(children)), slot


def never_null(node: Node) -> list[int]:
    """The slots of validity that no value can need: those of the entries and keys of maps."""
    own = []
    if pa.types.is_map(node.kind):
        (entries,) = node.children
        own = [entries.valid, entries.children[0].valid]
    return own + [slot for child in node.children for slot in never_null(child)]


def _children(kind: pa.DataType) -> list[pa.DataType]:
    if pa.types.is_struct(kind):
        return [field.type for field in kind]
    if pa.types.is_map(kind):
        return [pa.struct([kind.key_field, kind.item_field])]
    return [kind.value_type]
