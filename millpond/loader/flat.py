"""All shards of a dataset as one range of addresses, so that a batch is one gather.

Each shard has a place, a multiple of the page size, in one reserved range of virtual
memory. `LocalShards` maps files there at their first use; `remote.RemoteShards` keeps
there what it has fetched of narrow buffers, and reads wide values by ranges. Numpy sees
one array of bytes either way, and Python handles no row that it need not.
"""

import mmap
import os
import threading
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from millpond.errors import MillpondError
from millpond.formats.shard_index import Shard
from millpond.loader.ending import close_at_exit
from millpond.loader.memory import (
    Bytes,
    Memory,
    Pool,
    available_bytes,
    libc,
    map_file,
    will_need,
)

Int64s = npt.NDArray[np.int64]

# Above this part of free memory, pages read ahead would push each other out.
_RESIDENT = 0.6
_HEAD_START_S = 1.0
# A second: about what a local disk reads in sequence.
_DISK_BYTES = 1 << 30


class ShardUnreadable(MillpondError):
    """A shard is missing or has another size; the reader turns this into rows."""

    def __init__(self, shard: int, what: str) -> None:
        super().__init__(what)
        self.shard, self.what = shard, what


class Shards(Protocol):
    """Bytes by address. Two implementations: local files, and any other storage."""

    @property
    def places(self) -> Int64s:
        """Where each shard begins."""

    @property
    def memory(self) -> Memory:
        """What `hold` made readable."""

    @property
    def all_held(self) -> bool:
        """Whether `hold` has nothing left to do, ever."""

    def hold(self, shards: Int64s, starts: Int64s, lengths: Int64s) -> None:
        """Make whole buffers readable in `memory`, or raise `ShardUnreadable`."""

    def fixed(self, addresses: Int64s, width: int) -> Bytes:
        """One value of `width` bytes at each address, as rows of an array."""

    def ragged(self, starts: Int64s, ends: Int64s) -> Bytes:
        """The bytes between each start and end, joined in the order asked."""

    @property
    def resident(self) -> bool:
        """Whether `advise` has nothing left to do."""

    def in_place(self, starts: Int64s, ends: Int64s) -> tuple[Bytes, Int64s]:
        """An array that has the bytes between each start and end, and where each begins in it."""

    def advise(self, starts: Int64s, lengths: Int64s) -> None:
        """Say what is read next, of shards that are held; returns at once."""

    def read_ahead(self) -> None:
        """Read all of them in the background, if that will help; returns at once."""


class LocalShards:
    """Files of this machine, mapped when first read."""

    def __init__(self, paths: Sequence[str], shards: Sequence[Shard]) -> None:
        self._paths, self._shards = paths, shards
        self.places, total = shard_places(shards)
        self.memory = Memory(total)
        self._mapped = np.zeros(len(shards), bool)
        self.all_held = False
        self._pool = Pool()
        self._ahead: threading.Thread | None = None
        self._stop = threading.Event()
        # Whether all was read ahead: there is nothing left to advise.
        self.resident = False

    def hold(self, shards: Int64s, starts: Int64s, lengths: Int64s) -> None:
        missing = distinct(shards[~self._mapped[shards]])
        for shard in missing.tolist():
            self._map(shard)
        if missing.size:
            self.all_held = bool(self._mapped.all())

    def fixed(self, addresses: Int64s, width: int) -> Bytes:
        if width < Pool.LEAST_WIDTH:
            return self.memory.fixed(addresses, width).view(np.uint8).reshape(-1, width)
        out = self._pool.take(addresses.size * width).reshape(-1, width)
        self.memory.copy_rows(addresses, width, out)
        return out

    def ragged(self, starts: Int64s, ends: Int64s) -> Bytes:
        return self.memory.ragged(starts, ends)

    def in_place(self, starts: Int64s, ends: Int64s) -> tuple[Bytes, Int64s]:
        return self.memory.bytes, starts

    def advise(self, starts: Int64s, lengths: Int64s) -> None:
        """Ask for the pages of each range. It waits while the disk takes no more requests."""
        begins = starts // mmap.PAGESIZE * mmap.PAGESIZE
        will_need(self.memory.base + begins, starts + lengths - begins)

    def read_ahead(self) -> None:
        """Read all shards into the page cache, front to back: 2 to 4 times sooner warm than
        by random reads. A thread does it, once for each process, if they may stay there."""
        if self._ahead is None and self.memory.size < _RESIDENT * available_bytes():
            self._ahead = threading.Thread(
                target=self._read_all, name="millpond-read-ahead", daemon=True
            )
            self._ahead.start()
            close_at_exit(self)

    def close(self) -> None:
        """End the reading ahead."""
        if self._ahead is not None and self._ahead.is_alive():  # Not so in a forked child.
            self._stop.set()
            self._ahead.join()

    def _read_all(self) -> None:
        # The first batches are asked for row by row, and need the disk for themselves; who
        # looks at a few only never pays for all. To wait as long as all will take costs who
        # looks at all twice that at most.
        self._stop.wait(min(_HEAD_START_S, self.memory.size / _DISK_BYTES))
        piece = 8 << 20
        for i, shard in enumerate(self._shards):
            try:
                self.hold(np.array([i]), np.array([0]), np.array([0]))
            except ShardUnreadable:
                continue  # Whoever asks for its rows will be told.
            place = self.memory.base + int(self.places[i])
            for at in range(0, shard.size_bytes, piece):
                if self._stop.is_set():
                    return
                size = min(piece, shard.size_bytes - at)
                libc().madvise(place + at, size, mmap.MADV_WILLNEED)
        self.resident = True

    def _map(self, shard: int) -> None:
        path, size = self._paths[shard], self._shards[shard].size_bytes
        try:
            fd = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise ShardUnreadable(shard, f"it cannot be opened ({error.strerror})") from error
        try:
            # A map longer than its file ends the process at the first read behind it.
            found = os.fstat(fd).st_size
            if found != size:
                raise ShardUnreadable(shard, f"it has {found} bytes, and the index says {size}")
            address = self.memory.base + int(self.places[shard])
            map_file(address, size, fd)
            # No page predicts the next one; whoever knows what comes next says so.
            libc().madvise(address, size, mmap.MADV_RANDOM)
        finally:
            os.close(fd)
        self._mapped[shard] = True


def shard_places(shards: Sequence[Shard]) -> tuple[Int64s, int]:
    page = mmap.PAGESIZE
    sizes = np.array([-(-shard.size_bytes // page) * page for shard in shards], np.int64)
    ends = np.cumsum(sizes)
    return ends - sizes, int(ends[-1]) if len(shards) else 0


def distinct(numbers: Int64s) -> Int64s:
    """Each number once, rising: `np.unique` without `numpy.ma`, which its first call loads."""
    rising = np.sort(numbers)
    is_new = np.ones(rising.size, np.bool_)
    is_new[1:] = rising[1:] != rising[:-1]
    found: Int64s = rising[is_new]
    return found
