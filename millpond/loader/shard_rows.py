"""The rows of a dataset's shards: what was opened and checked of them in this process.

What a batch needs is read by `loader.gather`; here is what outlives a batch.
"""

import os
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from xxhash import xxh3_64_intdigest

from millpond.errors import FileUnreadable, RowsUnreadable
from millpond.formats.shard_index import Index
from millpond.formats.shard_types import user_columns
from millpond.loader.columns import Column
from millpond.loader.flat import LocalShards, Shards, ShardUnreadable, distinct
from millpond.loader.gather import Gather, fixed_width
from millpond.loader.layout import Layout, layout_of, never_null
from millpond.loader.verify import Seen

Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Verify = Literal["first", "always", "off"]

# Rows of a scan in storage order.
_SCAN = 65_536


class ShardRows:
    """The rows of a dataset's shards.

    `verify` is `"first"`: each narrow buffer and each wide value is checked the first
    time that this process reads it, and remembered at one bit a row.
    """

    def __init__(self, uri: str, index: Index, shards: Shards, verify: Verify = "first") -> None:
        self.uri, self.index, self.shards, self.verify = uri, index, shards, verify
        self.layout: Layout = layout_of(index, shards.places)
        self.n_rows = self.layout.chunks.n_rows
        self._checked: Bools = np.zeros(self.layout.address.shape, bool)
        self._checked[self.layout.length == 0] = True
        self._slot_done: Bools = np.asarray(self._checked.all(axis=1))
        self._seen: dict[str, Seen] = {}
        self._lock, self._lock_pid = threading.Lock(), os.getpid()
        self._check_index()

    def _check_index(self) -> None:
        """What is taken as it is must be so, even in a forged index."""
        rows = np.diff(self.layout.chunks.starts)
        for name, node in self.layout.columns.items():
            width, wrong = fixed_width(node), None
            if width and (self.layout.length[node.data] < rows * width).any():
                wrong = "fewer bytes than rows"
            elif any(self.layout.present[slot] for slot in never_null(node)):
                wrong = "keys of maps that are null"  # Arrow would end the process.
            if wrong:
                raise FileUnreadable(
                    f"open_dataset({self.uri!r}): the index is damaged: column {name!r} has "
                    f"{wrong}. Restore the file, or write the dataset again."
                )

    def prepare(self, whole: bool) -> bool:
        """Before many rows are read: whether it helps to say by `advise` what comes next.

        With `whole`, when any row may be next, all are read ahead where memory holds them.
        """
        if whole:
            self.shards.read_ahead()
        return not self.shards.resident

    @property
    def cold(self) -> bool:
        """Whether random rows come one by one from a disk of this machine."""
        return isinstance(self.shards, LocalShards) and not self.shards.resident

    def take(
        self, rows: Int64s, columns: Sequence[str], in_place: bool = False
    ) -> dict[str, Column]:
        """The named columns of `rows`, in the order asked. Rows must lie in 0..n_rows-1.

        With `in_place`, wide columns are left where they are stored: see `loader.views`.
        Raises `RowsUnreadable`, which names the rows of this call that are damaged.
        """
        gather = Gather(self, rows, *self.layout.chunks.find(rows), in_place)
        with self._turn():
            return {name: gather.column(name) for name in columns}

    def _turn(self) -> AbstractContextManager[Any]:
        """One thread at a time where a call may push out what another one has just fetched.

        A child process makes a lock of its own: the parent's may be held by a thread that
        does not live here.
        """
        if isinstance(self.shards, LocalShards):
            return nullcontext()
        if self._lock_pid != os.getpid():
            self._lock, self._lock_pid = threading.Lock(), os.getpid()
        return self._lock

    def advise(self, rows: Int64s, columns: Sequence[str], count: int = 1) -> None:
        """Say that `count` rows from each of `rows` on are read next.

        Of wide columns they are asked for, of narrow buffers all that is not checked yet.
        """
        if self.shards.resident:
            return
        chunk, local = self.layout.chunks.find(rows)
        try:
            self.map_only(rows, chunk)
        except RowsUnreadable:
            return  # Whoever takes these rows is told, and may skip them.
        for name in columns:
            node, width = self.layout.columns[name], self.layout.row_bytes[name]
            narrow, wide = set(node.slots()), -1
            if name in self.layout.sums:
                wide = node.data if node.data >= 0 else node.children[0].data
                narrow = narrow - {wide} | {self.layout.sums[name]}
            for slot in narrow:
                self._ask_for(slot, distinct(chunk[~self._checked[slot][chunk]]))
            if wide >= 0:
                # Where a ragged value lies is not known before its offset is read; on
                # average, rows lie as many bytes apart as they are long.
                size = self.layout.length[wide][chunk]
                first = np.minimum((local * width).astype(np.int64), size)
                at = self.layout.address[wide][chunk] + first
                self.shards.advise(at, np.minimum(size - first, int(width * count)))

    def advise_new(self, rows: Int64s, columns: Sequence[str]) -> None:
        """`advise` for those of `rows` that this process has not checked yet: no others cost
        a call. Where nothing is checked, nobody knows, and nothing is said."""
        if self.shards.resident or self.verify != "first":
            return
        for name in columns:
            new = self.seen(name).new(rows) if name in self.layout.sums else None
            if new is not None and new.any():
                self.advise(rows[new], [name])

    def lengths(self, column: str) -> Int64s:
        """The number of elements of each row of a list column, in storage order.

        Reads the offsets only: about 20 ns a row.
        """
        node, found = self.layout.columns[column], [np.empty(0, np.int64)]
        for start in range(0, self.n_rows, _SCAN):
            rows = np.arange(start, min(start + _SCAN, self.n_rows))
            gather = Gather(self, rows, *self.layout.chunks.find(rows))
            with self._turn():
                first, last = gather.edges_of(node)
            found.append(last - first)
        return np.concatenate(found)

    def slices(self, rows: Int64s, column: str, start: Int64s, size: Int64s) -> npt.NDArray[Any]:
        """`size[i]` elements of the list in row `rows[i]` from its element `start[i]` on.

        Reads the slices alone; lists that are new to this process are read whole first,
        one at a time, for their checksums.
        """
        whole = np.unique(rows)
        new = self.seen(column).new(whole) if self.verify == "first" else None
        if self.verify == "always" or new is not None:
            for row in whole[new] if new is not None else whole:
                self.take(np.array([row], np.int64), [column])
        gather = Gather(self, rows, *self.layout.chunks.find(rows))
        with self._turn():
            return gather.slices(self.layout.columns[column], start, size)

    @cached_property
    def schema(self) -> pa.Schema:
        schema = self.index.schema
        return pa.schema([schema.field(name) for name in user_columns(schema)])

    @property
    def fingerprint(self) -> str:
        return self.index.fingerprint

    def row_bytes(self, columns: Sequence[str]) -> float:
        return sum(self.layout.row_bytes[name] for name in columns)

    def cost(self) -> str:
        return "one gather a batch; a row costs one read of about its own size"

    def hold(self, slot: int, rows: Int64s, chunk: Int64s) -> None:
        """Make a narrow buffer of each chunk readable, and check it if it is new."""
        if self._slot_done[slot] and self.verify != "always":
            self._open(slot, rows, chunk)
            return
        need = distinct(chunk[~self._checked[slot][chunk]])
        if self.verify == "always":
            need = distinct(chunk)
        self._open(slot, rows, chunk)
        if not self.shards.resident:
            self._ask_for(slot, need)
        for c in need.tolist():
            self._check(slot, c, rows, chunk)
        self._slot_done[slot] = self._checked[slot].all()

    def _ask_for(self, slot: int, chunks: Int64s) -> None:
        self.shards.advise(self.layout.address[slot][chunks], self.layout.length[slot][chunks])

    def _open(self, slot: int, rows: Int64s, chunk: Int64s) -> None:
        self._hold(rows, chunk, self.layout.address[slot][chunk], self.layout.length[slot][chunk])

    def map_only(self, rows: Int64s, chunk: Int64s) -> None:
        """For wide values: local files are mapped, other storages read by ranges."""
        nothing = np.zeros_like(chunk)
        self._hold(rows, chunk, nothing, nothing)

    def _hold(self, rows: Int64s, chunk: Int64s, starts: Int64s, lengths: Int64s) -> None:
        if self.shards.all_held:
            return
        try:
            self.shards.hold(self.layout.shard[chunk], starts, lengths)
        except ShardUnreadable as error:
            bad = self.layout.shard[chunk] == error.shard
            raise self.unreadable(rows[bad], error.shard, error.what) from error

    def _check(self, slot: int, c: int, rows: Int64s, chunk: Int64s) -> None:
        at, size = self.layout.address[slot, c], self.layout.length[slot, c]
        if self.verify != "off" and size > 0:
            found = xxh3_64_intdigest(cast(Any, self.shards.memory.bytes[at : at + size]))
            if found != int(self.layout.checksum[slot, c]):
                shard = int(self.layout.shard[c])
                raise self.unreadable(rows[chunk == c], shard, "a checksum does not fit")
        self._checked[slot, c] = True

    def seen(self, name: str) -> Seen:
        if name not in self._seen:
            self._seen[name] = Seen(self.n_rows)
        return self._seen[name]

    def unreadable(self, rows: Int64s, shard: int, what: str) -> RowsUnreadable:
        return RowsUnreadable(self.uri, self.index.shards[shard].name, rows.tolist(), what)
