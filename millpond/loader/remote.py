"""Shards of a storage whose files this machine cannot map: read by ranges."""

import mmap
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from millpond.errors import PathNotFound
from millpond.formats.shard_index import Shard
from millpond.loader.flat import ShardUnreadable, shard_places
from millpond.loader.memory import Bytes, Memory, libc, make_writable
from millpond.storage import Range, Storage

Int64s = npt.NDArray[np.int64]


class RemoteShards:
    """Shards of a storage without files of this machine.

    Narrow buffers are fetched whole and kept, up to `keep_bytes`, the oldest given up
    first; wide values are read by ranges, which the storage merges and reads at once.
    """

    def __init__(
        self,
        paths: Sequence[str],
        shards: Sequence[Shard],
        storage: Storage,
        keep_bytes: int = 1 << 30,
    ) -> None:
        self._paths, self._storage = paths, storage
        self.all_held = False
        self.places, total = shard_places(shards)
        self.memory = Memory(total)
        self._writable = make_writable(self.memory)
        self._kept: OrderedDict[int, int] = OrderedDict()
        self._kept_bytes, self._keep_bytes = 0, keep_bytes

    def hold(self, shards: Int64s, starts: Int64s, lengths: Int64s) -> None:
        wanted = dict(zip(starts.tolist(), lengths.tolist(), strict=True))
        new = {at: size for at, size in wanted.items() if size and at not in self._kept}
        for at in wanted:
            if at in self._kept:
                self._kept.move_to_end(at)
        if not new:
            return
        begins = np.fromiter(new, np.int64, len(new))
        sizes = np.fromiter(new.values(), np.int64, len(new))
        found = self.read(begins, begins + sizes)
        for at, data in zip(new, found, strict=True):
            self._keep(at, np.frombuffer(data, np.uint8))
        self._give_up(keep=wanted)

    def fixed(self, addresses: Int64s, width: int) -> Bytes:
        return self.ragged(addresses, addresses + width).reshape(-1, width)

    def ragged(self, starts: Int64s, ends: Int64s) -> Bytes:
        return np.frombuffer(bytearray().join(self.read(starts, ends)), np.uint8)

    def in_place(self, starts: Int64s, ends: Int64s) -> tuple[Bytes, Int64s]:
        return self.ragged(starts, ends), one_after_another(starts, ends)

    def copy_in(self, other: Memory, starts: Int64s, lengths: Int64s) -> None:
        """Take whole buffers over from memory that holds them already."""
        for at, size in dict(zip(starts.tolist(), lengths.tolist(), strict=True)).items():
            if size and at not in self._kept:
                self._keep(at, other.bytes[at : at + size])

    @property
    def resident(self) -> bool:
        """There is nothing to advise: batches are read ahead by the loader's thread."""
        return True

    def advise(self, starts: Int64s, lengths: Int64s) -> None: ...
    def read_ahead(self) -> None: ...

    def read(self, starts: Int64s, ends: Int64s) -> list[memoryview]:
        shard = np.searchsorted(self.places, starts, side="right") - 1
        offsets = starts - self.places[shard]
        ranges = [
            Range(self._paths[s], a, n)
            for s, a, n in zip(
                shard.tolist(), offsets.tolist(), (ends - starts).tolist(), strict=True
            )
        ]
        try:
            found = self._storage.read_many(ranges)
        # Only a missing file is damage. A store that refuses or does not answer is no
        # reason to replace rows: its error goes up as it is.
        except PathNotFound:
            found = self._read_apart(ranges, shard)
        for i, (data, asked) in enumerate(zip(found, ranges, strict=True)):
            if len(data) != asked.length:
                raise ShardUnreadable(int(shard[i]), "it is shorter than the index says")
        return found

    def _read_apart(self, ranges: list[Range], shard: Int64s) -> list[memoryview]:
        """The same reads a shard at a time, to learn which one is missing."""
        found = [memoryview(b"")] * len(ranges)
        for s in np.unique(shard).tolist():
            mine = np.flatnonzero(shard == s).tolist()
            try:
                parts = self._storage.read_many([ranges[i] for i in mine])
            except PathNotFound as error:
                raise ShardUnreadable(s, f"it cannot be read ({error})") from error
            for i, part in zip(mine, parts, strict=True):
                found[i] = part
        return found

    def _keep(self, at: int, data: Bytes) -> None:
        self._writable[at : at + data.size] = data
        self._kept[at] = data.size
        self._kept_bytes += data.size

    def _give_up(self, keep: dict[int, int]) -> None:
        page = mmap.PAGESIZE
        while self._kept_bytes > self._keep_bytes and next(iter(self._kept)) not in keep:
            at, size = self._kept.popitem(last=False)
            self._kept_bytes -= size
            first, last = -(-at // page) * page, (at + size) // page * page
            if last > first:  # Pages shared with a neighbour stay.
                libc().madvise(self.memory.base + first, last - first, mmap.MADV_DONTNEED)


def one_after_another(starts: Int64s, ends: Int64s) -> Int64s:
    """Where each range begins, once they are joined."""
    lengths = ends - starts
    joined: Int64s = np.cumsum(lengths) - lengths
    return joined
