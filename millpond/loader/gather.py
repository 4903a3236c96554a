"""One gather a column over flat addresses, checked as it goes.

Nothing trusts the bytes it reads: offsets are held against their buffers' lengths,
so a damaged file gives an error that names its rows, never a read outside of a map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from xxhash import xxh3_64_intdigest

from millpond.errors import RowsUnreadable
from millpond.formats.shard_types import has_long_offsets, is_bytes, is_fixed, is_ragged
from millpond.loader.columns import Column, NullTokens
from millpond.loader.flat import ShardUnreadable
from millpond.loader.layout import Node
from millpond.loader.verify import extent, slices_of
from millpond.loader.views import cut, is_viewed, without_nulls

if TYPE_CHECKING:
    from millpond.loader.shard_rows import ShardRows

Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
T = TypeVar("T")


class Gather:
    """One call of `take`: the rows, where they lie, and a column at a time."""

    def __init__(
        self, source: ShardRows, rows: Int64s, chunk: Int64s, local: Int64s, in_place: bool = False
    ) -> None:
        self.source, self.layout, self.shards = source, source.layout, source.shards
        self._in_place = in_place
        self.rows, self.chunk, self.local = rows, chunk, local

    def column(self, name: str) -> Column:
        node = self.layout.columns[name]
        # Fixed-size lists with null elements are no run of bytes: their buffers are checked whole.
        if name in self.layout.sums and (is_ragged(node.kind) or fixed_width(node) is not None):
            return self._wide(name, node)
        return self._any(node, self.rows, self.chunk, self.local)

    def _wide(self, name: str, node: Node) -> Column:
        """A column with a checksum for each value: fixed and wide, or ragged."""
        rows, chunk, local = self.rows, self.chunk, self.local
        valid = self._valid(node, rows, chunk, local)
        width = fixed_width(node)
        if width is not None:
            self.source.map_only(self.rows, self.chunk)
            starts = self.layout.address[node.data][chunk] + local * width
            if self._in_place and is_viewed(node.kind):
                return self._views(name, node, starts, starts + width, valid)
            values = self._read(lambda: self.shards.fixed(starts, width))
            column = Column(node.kind, rows.size, values, valid=valid)
        else:
            leaf = node if is_bytes(node.kind) else node.children[0]
            each = 1 if is_bytes(node.kind) else leaf.kind.bit_width // 8
            first, last = self._edges(node, leaf.data, each, rows, chunk, local)
            self.source.map_only(self.rows, self.chunk)
            base = self.layout.address[leaf.data][chunk]
            starts, ends = base + first * each, base + last * each
            has_nulls_inside = leaf is not node and self.layout.present[leaf.valid]
            if self._in_place and is_viewed(node.kind) and not has_nulls_inside:
                return self._views(name, node, starts, ends, valid)
            values = self._read(lambda: self.shards.ragged(starts, ends))
            offsets = np.zeros(rows.size + 1, np.int64)
            np.cumsum(last - first, out=offsets[1:])
            column = self._ragged(node, leaf, values, offsets, valid, chunk, first)
        self._verify(name, lambda at: slices_of(*extent(column), at))
        return column

    def _views(
        self, name: str, node: Node, starts: Int64s, ends: Int64s, valid: Bools | None
    ) -> Column:
        """A wide column that is left where it is stored."""
        flat, begins = self._read(lambda: self.shards.in_place(starts, ends))
        views = cut(flat, begins, begins + ends - starts, node.kind)
        self._verify(name, lambda at: map(views.__getitem__, at.tolist()))
        return Column(node.kind, self.rows.size, rows=without_nulls(views, valid))

    def _ragged(
        self,
        node: Node,
        leaf: Node,
        values: npt.NDArray[np.uint8],
        offsets: Int64s,
        valid: Bools | None,
        chunk: Int64s,
        first: Int64s,
    ) -> Column:
        if leaf is node:
            return Column(node.kind, len(offsets) - 1, values, offsets, valid)
        inner = None
        if self.layout.present[leaf.valid]:
            rows, chunks, locals_ = self._expand(offsets, chunk, first)
            inner = self._valid(leaf, rows, chunks, locals_)
        width = leaf.kind.bit_width // 8
        child = Column(leaf.kind, int(offsets[-1]), values.reshape(-1, width), valid=inner)
        return Column(node.kind, len(offsets) - 1, None, offsets, valid, (child,))

    def _verify(self, name: str, values: Callable[[Int64s], Iterable[Any]]) -> None:
        """Hold each value that is new to this process against its stored checksum.

        `values` gives the bytes of those values of this gather that it is asked for.
        """
        if self.source.verify == "off":
            return
        seen = self.source.seen(name)
        new = (
            seen.new(self.rows) if self.source.verify == "first" else np.ones(len(self.rows), bool)
        )
        if new is None or not new.any():
            return
        at = np.flatnonzero(new)
        slot = self.layout.sums[name]
        stored = self._fixed_of(slot, 8, self.rows[at], self.chunk[at], self.local[at])
        found = np.fromiter(map(xxh3_64_intdigest, values(at)), np.uint64, at.size)
        bad = found != stored.view(np.uint64).reshape(-1)
        if bad.any():
            shard = int(self.layout.shard[self.chunk[at[bad][0]]])
            same = self.layout.shard[self.chunk[at[bad]]] == shard
            what = f"a value of column {name!r} does not fit its checksum"
            raise self.source.unreadable(self.rows[at[bad]][same], shard, what)
        seen.add(self.rows[at])

    def _any(self, node: Node, rows: Int64s, chunk: Int64s, local: Int64s) -> Column:
        """A column of any type, through buffers that are held whole."""
        kind = node.kind
        valid = self._valid(node, rows, chunk, local)
        if pa.types.is_boolean(kind):
            bits = self._bits(node.data, rows, chunk, local)
            return Column(kind, rows.size, bits, valid=valid)
        width = fixed_width(node)
        if width is not None:
            values = self._fixed_of(node.data, width, rows, chunk, local)
            return Column(kind, rows.size, values, valid=valid)
        if node.offsets < 0:
            return self._nested(node, rows, chunk, local, valid)
        first, last = self._edges(node, -1, 1, rows, chunk, local)
        offsets = np.zeros(rows.size + 1, np.int64)
        np.cumsum(last - first, out=offsets[1:])
        if is_bytes(kind):
            self.source.hold(node.data, rows, chunk)
            base = self.layout.address[node.data][chunk]
            self._inside(node.data, first, last, rows, chunk)
            values = self.shards.memory.ragged(base + first, base + last)
            return Column(kind, rows.size, values, offsets, valid)
        child = self._any(node.children[0], *self._expand(offsets, chunk, first, rows))
        return Column(kind, rows.size, None, offsets, valid, (child,))

    def _nested(
        self, node: Node, rows: Int64s, chunk: Int64s, local: Int64s, valid: Bools | None
    ) -> Column:
        """A struct, or a fixed-size list whose elements are not plain."""
        if pa.types.is_fixed_size_list(node.kind):
            size = node.kind.list_size
            inner = (local[:, None] * size + np.arange(size)).reshape(-1)
            rows, chunk, local = np.repeat(rows, size), np.repeat(chunk, size), inner
            n = rows.size // size
        else:
            n = rows.size
        children = tuple(self._any(child, rows, chunk, local) for child in node.children)
        return Column(node.kind, n, valid=valid, children=children)

    def _expand(
        self, offsets: Int64s, chunk: Int64s, first: Int64s, rows: Int64s | None = None
    ) -> tuple[Int64s, Int64s, Int64s]:
        """The rows, chunks and places of all elements of lists."""
        counts = np.diff(offsets)
        inner = np.arange(offsets[-1]) + np.repeat(first - offsets[:-1], counts)
        of = self.rows if rows is None else rows
        return np.repeat(of, counts), np.repeat(chunk, counts), inner

    def _edges(
        self, node: Node, data: int, each: int, rows: Int64s, chunk: Int64s, local: Int64s
    ) -> tuple[Int64s, Int64s]:
        """Where each list or string begins and ends, in elements."""
        wide = 8 if has_long_offsets(node.kind) else 4
        pairs = self._fixed_of(node.offsets, wide, rows, chunk, local, count=2)
        edges = pairs.view(np.int64 if wide == 8 else np.int32).reshape(-1, 2).astype(np.int64)
        first, last = edges[:, 0], edges[:, 1]
        if data >= 0:
            self._inside(data, first * each, last * each, rows, chunk)
        elif (first < 0).any() or (last < first).any():
            self._outside(np.flatnonzero((first < 0) | (last < first)), rows, chunk)
        return first, last

    def slices(self, node: Node, start: Int64s, size: Int64s) -> npt.NDArray[Any]:
        """Parts of lists of plain values, one after the other."""
        leaf = node.children[0]
        each = leaf.kind.bit_width // 8
        first, last = self._edges(node, leaf.data, each, self.rows, self.chunk, self.local)
        beyond = first + start + size > last
        if beyond.any():
            self._outside(np.flatnonzero(beyond), self.rows, self.chunk)
        if self.layout.present[leaf.valid]:
            offsets = np.concatenate([[0], np.cumsum(size)])
            expanded = self._expand(offsets, self.chunk, first + start)
            if self._valid(leaf, *expanded) is not None:
                raise NullTokens
        self.source.map_only(self.rows, self.chunk)
        begin = self.layout.address[leaf.data][self.chunk] + (first + start) * each
        values = self._read(lambda: self.shards.ragged(begin, begin + size * each))
        return values.view(leaf.kind.to_pandas_dtype())

    def edges_of(self, node: Node) -> tuple[Int64s, Int64s]:
        return self._edges(node, -1, 1, self.rows, self.chunk, self.local)

    def _inside(self, slot: int, first: Int64s, last: Int64s, rows: Int64s, chunk: Int64s) -> None:
        wrong = (first < 0) | (last < first) | (last > self.layout.length[slot][chunk])
        if wrong.any():
            self._outside(np.flatnonzero(wrong), rows, chunk)

    def _outside(self, at: Int64s, rows: Int64s, chunk: Int64s) -> None:
        shard = int(self.layout.shard[chunk[at[0]]])
        raise self.source.unreadable(rows[at], shard, "an offset leads outside of its buffer")

    def _valid(self, node: Node, rows: Int64s, chunk: Int64s, local: Int64s) -> Bools | None:
        if not self.layout.present[node.valid]:
            return None
        present = self.layout.length[node.valid][chunk] > 0
        valid = np.ones(rows.size, bool)
        at = np.flatnonzero(present)
        valid[at] = self._bits(node.valid, rows[at], chunk[at], local[at])
        return None if valid.all() else valid

    def _bits(self, slot: int, rows: Int64s, chunk: Int64s, local: Int64s) -> Bools:
        packed = self._fixed_of(slot, 1, rows, chunk, local >> 3).reshape(-1)
        bits: Bools = (packed >> (local & 7).astype(np.uint8)) & 1 == 1
        return bits

    def _fixed_of(
        self,
        slot: int,
        width: int,
        rows: Int64s,
        chunk: Int64s,
        local: Int64s,
        count: int = 1,
    ) -> npt.NDArray[Any]:
        """`count` neighbouring values of a narrow buffer, which is held and checked whole."""
        self.source.hold(slot, rows, chunk)
        size = self.layout.length[slot][chunk]
        wrong = (local + count) * width > size  # Else a forged index leads outside.
        if wrong.any():
            self._outside(np.flatnonzero(wrong), rows, chunk)
        at = self.layout.address[slot][chunk] + local * width
        found = self.shards.memory.fixed(at, width * count, align=min(width, 8) if count > 1 else 0)
        return found.view(np.uint8).reshape(rows.size, width * count)

    def _read(self, read: Callable[[], T]) -> T:
        try:
            return read()
        except ShardUnreadable as error:
            raise self._lost(error) from error

    def _lost(self, error: ShardUnreadable) -> RowsUnreadable:
        bad = self.layout.shard[self.chunk] == error.shard
        return self.source.unreadable(self.rows[bad], error.shard, error.what)


def fixed_width(node: Node) -> int | None:
    """Bytes of one value, if every value takes as many."""
    if node.whole:
        return int(node.kind.list_size) * int(node.kind.value_type.bit_width) // 8
    return int(node.kind.bit_width) // 8 if is_fixed(node.kind) else None
