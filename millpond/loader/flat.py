"""All shards of a dataset as one range of addresses, so that a batch is one gather.

Each shard has a place, a multiple of the page size, in one reserved range of virtual
memory. `LocalShards` maps files there at their first use; `RemoteShards` keeps there
what it has fetched of narrow buffers, and reads wide values by ranges. Numpy sees one
array of bytes either way, and no row is handled by Python code that need not be.
"""

import ctypes
import math
import mmap
import os
import sys
import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from millpond.errors import MillpondError, PathNotFound
from millpond.formats.shard_index import Shard
from millpond.storage import Range, Storage

Int64s = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

# Above this part of free memory, pages read ahead would push each other out.
_RESIDENT = 0.6
_MAP_FIXED = 0x10  # The same on Linux and macOS; the module mmap does not have it.
_FAILED = ctypes.c_void_p(-1).value


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
    def memory(self) -> "Memory":
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

    def advise(self, starts: Int64s, lengths: Int64s) -> None:
        """Say what is read next; returns at once."""


class Memory:
    """A reserved range of addresses, and gathers from what is readable of it.

    The range is given back when the last array that looks into it is gone.
    """

    def __init__(self, size: int) -> None:
        self.size = -(-max(size, 8) // mmap.PAGESIZE) * mmap.PAGESIZE
        self.base = _reserve(self.size)
        # Not at exit: a thread that still gathers would end the process with a signal.
        weakref.finalize(self, _libc().munmap, self.base, self.size).atexit = False
        self.bytes: Bytes = np.asarray(self)
        self._slices = memoryview(cast(Any, self.bytes))
        self._views: dict[tuple[int, int], npt.NDArray[Any]] = {}

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return {"version": 3, "typestr": "|u1", "shape": (self.size,), "data": (self.base, True)}

    def fixed(self, addresses: Int64s, width: int, align: int = 0) -> npt.NDArray[Any]:
        """Items of `width` bytes at `addresses`, which are multiples of `align`."""
        step = align or math.gcd(width, 8)
        view = self._views.get((width, step))
        if view is None:
            kind = f"u{width}" if width in (1, 2, 4, 8) else f"V{width}"
            count = (self.size - width) // step + 1
            view = np.ndarray((count,), kind, self._slices, strides=(step,))
            self._views[width, step] = view
        # Fancy indexing: `take` would first copy a view whose items overlap.
        items: npt.NDArray[Any] = view[addresses >> (step.bit_length() - 1)]
        return items

    def ragged(self, starts: Int64s, ends: Int64s) -> Bytes:
        """A join of slices: measured 2 to 4 times faster than any gather by index."""
        flat, pairs = self._slices, zip(starts.tolist(), ends.tolist(), strict=True)
        # A bytearray, because torch takes writable memory only.
        return np.frombuffer(bytearray().join([flat[a:b] for a, b in pairs]), np.uint8)

    def copy_rows(self, addresses: Int64s, width: int, out: Bytes) -> None:
        """Rows of `width` bytes into `out`: for rows so large that memory is the cost."""
        flat, into = self._slices, memoryview(cast(Any, out.reshape(-1)))
        for i, at in enumerate(addresses.tolist()):
            into[i * width : (i + 1) * width] = flat[at : at + width]


class LocalShards:
    """Files of this machine, mapped when first read."""

    def __init__(
        self, paths: Sequence[str], shards: Sequence[Shard], random: bool | None = None
    ) -> None:
        """`random`: no page predicts the next one; None: if the shards outgrow memory."""
        self._paths, self._shards = paths, shards
        self.places, total = _places(shards)
        self.memory = Memory(total)
        self._mapped = np.zeros(len(shards), bool)
        self.all_held = False
        random = not self.fits_in_memory() if random is None else random
        self._pool = Pool()
        self._random = random
        self._ahead: threading.Thread | None = None

    def hold(self, shards: Int64s, starts: Int64s, lengths: Int64s) -> None:
        missing = np.unique(shards[~self._mapped[shards]])
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

    def advise(self, starts: Int64s, lengths: Int64s) -> None:
        """Ask for the pages of each range, without waiting.

        The calls keep the interpreter's lock: each is a microsecond, and to hand the
        lock over a thousand times would cost a waiting consumer far more.
        """
        page = mmap.PAGESIZE
        begins = starts // page * page
        sizes = starts + lengths - begins
        madvise, base = _libc_locked().madvise, self.memory.base
        for begin, size in zip(begins.tolist(), sizes.tolist(), strict=True):
            madvise(base + begin, size, mmap.MADV_WILLNEED)

    def fits_in_memory(self) -> bool:
        """Whether all shards may stay in the page cache beside what the machine runs."""
        return self.memory.size < _RESIDENT * available_bytes()

    def read_ahead(self) -> None:
        """Read all shards into the page cache, front to back: 2 to 4 times sooner warm than
        by random reads. Returns at once; a thread does it, once for each process."""
        if self._ahead is None:
            self._ahead = threading.Thread(
                target=self._read_all, name="millpond-read-ahead", daemon=True
            )
            self._ahead.start()

    def _read_all(self) -> None:
        piece = 8 << 20
        for i, shard in enumerate(self._shards):
            try:
                self.hold(np.array([i]), np.array([0]), np.array([0]))
            except ShardUnreadable:
                continue  # Whoever asks for its rows will be told.
            place = self.memory.base + int(self.places[i])
            for at in range(0, shard.size_bytes, piece):
                size = min(piece, shard.size_bytes - at)
                _libc().madvise(place + at, size, mmap.MADV_WILLNEED)

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
            _map_at(address, size, fd)
            if self._random:
                _libc().madvise(address, size, mmap.MADV_RANDOM)
        finally:
            os.close(fd)
        self._mapped[shard] = True


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
        self.places, total = _places(shards)
        self.memory = Memory(total)
        self._writable = _writable(self.memory)
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

    def copy_in(self, other: Memory, starts: Int64s, lengths: Int64s) -> None:
        """Take whole buffers over from memory that holds them already."""
        for at, size in dict(zip(starts.tolist(), lengths.tolist(), strict=True)).items():
            if size and at not in self._kept:
                self._keep(at, other.bytes[at : at + size])

    def advise(self, starts: Int64s, lengths: Int64s) -> None:
        """Nothing: batches are read ahead by the loader's thread."""

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
                _libc().madvise(self.memory.base + first, last - first, mmap.MADV_DONTNEED)


class Pool:
    """Output memory for large rows, used again once nobody looks at it.

    A fresh block of this size costs a page fault every 4 KiB: twice the time of the
    gather itself at 64 KiB a row. The reference count tells when a block is free, so
    this is for interpreters that count them.
    """

    LEAST_WIDTH = 16 << 10
    _BLOCKS = 8

    def __init__(self) -> None:
        self._blocks: list[Bytes] = []

    def take(self, size: int) -> Bytes:
        for block, count in zip(self._blocks, _references(self._blocks), strict=True):
            if block.size >= size and count == _FREE:
                return block[:size]
        fresh = np.empty(size, np.uint8)
        self._blocks = [*self._blocks[-(self._BLOCKS - 1) :], fresh]
        return fresh[:size]


def _references(blocks: list[Bytes]) -> list[int]:
    return [sys.getrefcount(block) for block in blocks]


# How often a block is counted that only the pool's list knows, in this interpreter.
# Where counts mean nothing (free-threaded builds), no block is ever free.
_COUNTS = getattr(sys, "_is_gil_enabled", lambda: True)()
_FREE = _references([np.empty(0, np.uint8)])[0] if _COUNTS else -1


def available_bytes() -> int:
    """Memory that the system could give without swapping; all of it where it does not say."""
    try:
        with open("/proc/meminfo") as file:
            lines = dict(line.split(":") for line in file)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE


def _places(shards: Sequence[Shard]) -> tuple[Int64s, int]:
    page = mmap.PAGESIZE
    sizes = np.array([-(-shard.size_bytes // page) * page for shard in shards], np.int64)
    ends = np.cumsum(sizes)
    return ends - sizes, int(ends[-1]) if len(shards) else 0


@lru_cache(maxsize=1)
def _libc() -> ctypes.CDLL:
    return _typed(ctypes.CDLL(None, use_errno=True))


@lru_cache(maxsize=1)
def _libc_locked() -> ctypes.CDLL:
    """The same, for calls too short to give up the interpreter's lock."""
    return _typed(ctypes.PyDLL(None))


def _typed(libc: ctypes.CDLL) -> ctypes.CDLL:
    size, address, number = ctypes.c_size_t, ctypes.c_void_p, ctypes.c_int
    libc.mmap.restype = address
    libc.mmap.argtypes = (address, size, number, number, number, ctypes.c_int64)
    libc.munmap.argtypes = (address, size)
    libc.madvise.argtypes = (address, size, number)
    return libc


def _reserve(size: int) -> int:
    """Addresses that nothing lies behind yet: no memory is taken."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    base: int | None = _libc().mmap(None, size, mmap.PROT_READ, flags, -1, 0)
    if base is None or base == _FAILED:
        raise OSError(ctypes.get_errno(), f"cannot reserve {size} bytes of address space")
    return base


def _map_at(address: int, size: int, fd: int) -> None:
    flags = mmap.MAP_SHARED | _MAP_FIXED
    if _libc().mmap(address, size, mmap.PROT_READ, flags, fd, 0) != address:
        raise OSError(ctypes.get_errno(), "cannot map a shard")


def _writable(memory: Memory) -> Bytes:
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0) | _MAP_FIXED
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    if _libc().mmap(memory.base, memory.size, protection, flags, -1, 0) != memory.base:
        raise OSError(ctypes.get_errno(), "cannot take memory for narrow columns")
    block = (ctypes.c_uint8 * memory.size).from_address(memory.base)
    return np.frombuffer(cast(Any, block), np.uint8)
