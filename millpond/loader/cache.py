"""Shards of a remote dataset kept on this machine's disk, up to a limit of bytes.

The processes of a node share a folder: a file appears there by a rename, whole, under
a name by content, so no process can see a half or an old one. Shards that find no room
are read by ranges: under a uniform order any part of the data is as good to keep as
any other, and to push one out for another would only cost a download.
"""

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_64_hexdigest

from millpond.errors import DiskFull, OptionError, PathNotFound
from millpond.formats.shard_index import Shard
from millpond.loader.flat import LocalShards, ShardUnreadable
from millpond.loader.memory import Bytes, Memory
from millpond.loader.remote import RemoteShards, one_after_another
from millpond.storage import Range, Storage
from millpond.storage.oserrors import explained

Int64s = npt.NDArray[np.int64]
_PIECE = 64 << 20


class CachedShards:
    """Shards that are mapped from the cache where they have room, else read by ranges.

    A shard is fetched whole at its first use. `keep_bytes` bounds the folder, over all
    datasets and processes that share it.
    """

    def __init__(
        self,
        paths: Sequence[str],
        shards: Sequence[Shard],
        storage: Storage,
        folder: str,
        keep_bytes: int,
        fingerprint: str,
    ) -> None:
        if keep_bytes < 1:
            raise OptionError(f"open_dataset(cache_bytes={keep_bytes}): pass 1 or more.")
        self._paths, self._shards, self._storage = paths, shards, storage
        self._folder, self._keep_bytes = folder, keep_bytes
        with explained(folder, "stage"):
            os.makedirs(folder, mode=0o700, exist_ok=True)
        files = [
            os.path.join(folder, f"{xxh3_64_hexdigest(f'{fingerprint} {shard.name}'.encode())}")
            for shard in shards
        ]
        self._remote = RemoteShards(paths, shards, storage)
        self._local = LocalShards(files, shards)
        self._files = files
        # -1: not asked yet; 0: has no room; 1: lies in the cache.
        self._kept = np.full(len(shards), -1, np.int8)

    @property
    def places(self) -> Int64s:
        return self._local.places

    @property
    def all_held(self) -> bool:
        return self._local.all_held

    @property
    def memory(self) -> Memory:
        """Narrow buffers of every shard: of cached ones, copied by the remote side too."""
        return self._local.memory if self.all_held else self._remote.memory

    def hold(self, shards: Int64s, starts: Int64s, lengths: Int64s) -> None:
        for shard in np.unique(shards[self._kept[shards] < 0]).tolist():
            self._kept[shard] = self._fetch(shard)
        kept = self._kept[shards] == 1
        self._local.hold(shards[kept], starts[kept], lengths[kept])
        if self.all_held:
            return
        self._remote.hold(shards[~kept], starts[~kept], lengths[~kept])
        self._remote.copy_in(self._local.memory, starts[kept], lengths[kept])

    def fixed(self, addresses: Int64s, width: int) -> Bytes:
        if self.all_held:
            return self._local.fixed(addresses, width)
        return self.ragged(addresses, addresses + width).reshape(-1, width)

    def ragged(self, starts: Int64s, ends: Int64s) -> Bytes:
        shard = np.searchsorted(self.places, starts, side="right") - 1
        kept = self._kept[shard] == 1
        if kept.all():
            return self._local.ragged(starts, ends)
        parts = [memoryview(b"")] * starts.size
        there = np.flatnonzero(~kept)
        for i, data in zip(
            there.tolist(), self._remote.read(starts[there], ends[there]), strict=True
        ):
            parts[i] = data
        for i in np.flatnonzero(kept).tolist():
            parts[i] = memoryview(self._local.memory.bytes[starts[i] : ends[i]].tobytes())
        return np.frombuffer(bytearray().join(parts), np.uint8)

    def in_place(self, starts: Int64s, ends: Int64s) -> tuple[Bytes, Int64s]:
        if self.all_held:
            return self._local.in_place(starts, ends)
        return self.ragged(starts, ends), one_after_another(starts, ends)

    @property
    def resident(self) -> bool:
        return self._local.resident

    def advise(self, starts: Int64s, lengths: Int64s) -> None:
        """For what lies in the cache, whose pages may be cold."""
        shard = np.searchsorted(self.places, starts, side="right") - 1
        kept = self._kept[shard] == 1
        self._local.advise(starts[kept], lengths[kept])

    def read_ahead(self) -> None:
        """Nothing: what matters first is the network."""

    def _fetch(self, shard: int) -> int:
        """Whether a shard lies in the cache, after it was fetched if there is room."""
        file, size = self._files[shard], self._shards[shard].size_bytes
        if _size(file) == size:
            return 1
        with _locked(self._folder):  # One process fetches; the others find the file.
            if _size(file) == size:
                return 1
            if self._used() + size > self._keep_bytes:
                return 0
            try:
                with explained(file, "cache"):
                    self._download(shard, f"{file}.part")
                    os.rename(f"{file}.part", file)
            except DiskFull:  # As if `cache_bytes` were used up.
                os.unlink(f"{file}.part")
                return 0
        return 1

    def _download(self, shard: int, aside: str) -> None:
        path, size = self._paths[shard], self._shards[shard].size_bytes
        with open(aside, "wb") as out:
            for at in range(0, size, _PIECE):
                asked = min(_PIECE, size - at)
                try:
                    piece = self._storage.read_many([Range(path, at, asked)])[0]
                except PathNotFound as error:
                    raise ShardUnreadable(shard, f"it cannot be read ({error})") from error
                if len(piece) != asked:
                    raise ShardUnreadable(shard, "it is shorter than the index says")
                out.write(piece)

    def _used(self) -> int:
        """Bytes in the folder. What a process left half-fetched is removed: it had the lock."""
        for entry in os.scandir(self._folder):
            if entry.name.endswith(".part"):
                os.unlink(entry.path)
        return sum(max(0, _size(entry.path)) for entry in os.scandir(self._folder))


def _size(path: str) -> int:
    """Bytes of a file; -1 where there is none."""
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return -1


@contextmanager
def _locked(folder: str) -> Iterator[None]:
    """The folder's lock, between processes; a process that dies gives it up."""
    with open(os.path.join(folder, "lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
