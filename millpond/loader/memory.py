"""A range of addresses in which numpy sees files and fetched buffers, and output memory.

All that talks to the system's memory calls lives here: reserve, map, advise, release.
"""

import ctypes
import math
import mmap
import os
import sys
import weakref
from collections import deque
from functools import lru_cache
from typing import Any, cast

import numpy as np
import numpy.typing as npt

Int64s = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

# Bytes of a row from which on finding its pages costs more than a look ahead.
_TOUCHED = 512
_MAP_FIXED = 0x10  # The same on Linux and macOS; the module mmap does not have it.
_PROCESS_MADVISE = 440  # The same number on all processors.
_MOST_RANGES = 1024
_FAILED = ctypes.c_void_p(-1).value


class Memory:
    """A reserved range of addresses, and gathers from what is readable of it.

    The range is given back when the last array that looks into it is gone.
    """

    def __init__(self, size: int) -> None:
        self.size = -(-max(size, 8) // mmap.PAGESIZE) * mmap.PAGESIZE
        self.base = _reserve(self.size)
        # Not at exit: a thread that still gathers would end the process with a signal.
        weakref.finalize(self, libc().munmap, self.base, self.size).atexit = False
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
        if width >= _TOUCHED:
            self._touch(addresses, width)
        # Fancy indexing: `take` would first copy a view whose items overlap.
        items: npt.NDArray[Any] = view[addresses >> (step.bit_length() - 1)]
        return items

    def ragged(self, starts: Int64s, ends: Int64s) -> Bytes:
        """A join of slices: measured 2 to 4 times faster than any gather by index."""
        if starts.size and int((ends - starts).sum()) >= _TOUCHED * starts.size:
            self._touch(starts[starts < ends], 1)
        flat, pairs = self._slices, zip(starts.tolist(), ends.tolist(), strict=True)
        # A bytearray, because torch takes writable memory only.
        return np.frombuffer(bytearray().join([flat[a:b] for a, b in pairs]), np.uint8)

    def _touch(self, addresses: Int64s, width: int) -> None:
        """Read a byte of each page of each row, all rows first: what the copies wait for at
        random rows is the translation of addresses, of which the processor does several at
        once when nothing else stands between them. 1.3 to 1.5 times the rows a second."""
        for first in range(0, width, mmap.PAGESIZE):
            self.bytes[addresses + first]
        if width >= mmap.PAGESIZE:
            self.bytes[addresses + (width - 1)]

    def copy_rows(self, addresses: Int64s, width: int, out: Bytes) -> None:
        """Rows of `width` bytes into `out`: for rows so large that memory is the cost."""
        flat, into = self._slices, memoryview(cast(Any, out.reshape(-1)))
        for i, at in enumerate(addresses.tolist()):
            into[i * width : (i + 1) * width] = flat[at : at + width]


class Pool:
    """Output memory for large rows, used again once nobody looks at it.

    A fresh block of this size costs a page fault every 4 KiB: twice the time of the
    gather itself at 64 KiB a row. The reference count tells when a block is free, so
    this is for interpreters that count them.
    """

    LEAST_WIDTH = 16 << 10
    _BLOCKS = 8

    def __init__(self) -> None:
        self._blocks: deque[Bytes] = deque(maxlen=self._BLOCKS)

    def take(self, size: int) -> Bytes:
        """Any thread may call it: who has taken a block off the queue has it alone."""
        other: list[tuple[Bytes, int]] = []
        while len(other) < self._BLOCKS:
            try:
                block, count = _next(self._blocks)
            except IndexError:
                break
            # One large call must not hold its memory for the small ones that follow.
            if count == _FREE and size <= block.size <= 2 * size:
                found = block[:size]
                self._blocks.extend([*(block for block, _ in other), block])
                return found
            other.append((block, count))
        fresh = np.empty(size, np.uint8)
        self._blocks.extend([*(block for block, count in other if count != _FREE), fresh])
        return fresh[:size]


def _next(blocks: deque[Bytes]) -> tuple[Bytes, int]:
    """The first block, off the queue, and how often it is counted."""
    block = blocks.popleft()
    return block, sys.getrefcount(block)


# How often a block is counted that nobody else knows, in this interpreter. Where counts
# mean nothing (free-threaded builds), no block is ever free.
_COUNTS = getattr(sys, "_is_gil_enabled", lambda: True)()
_FREE = _next(deque([np.empty(0, np.uint8)]))[1] if _COUNTS else -1


def available_bytes() -> int:
    """Memory that the system could give without swapping; all of it where it does not say."""
    try:
        with open("/proc/meminfo") as file:
            lines = dict(line.split(":") for line in file)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE


@lru_cache(maxsize=1)
def libc() -> ctypes.CDLL:
    return _typed(ctypes.CDLL(None, use_errno=True))


@lru_cache(maxsize=1)
def libc_locked() -> ctypes.CDLL:
    """The same, for calls too short to give up the interpreter's lock."""
    return _typed(ctypes.PyDLL(None))


def will_need(begins: Int64s, sizes: Int64s) -> None:
    """Ask for the pages of ranges of this process's addresses; `begins` are whole pages.

    In calls of many ranges where the system has one: alone, each is a few microseconds, but
    who submits a request waits for the disk when its queue is full, and must not keep the
    interpreter's lock then; nor ask for the lock again after each.
    """
    ranges = np.column_stack([begins, sizes]).astype(np.uint64)
    process, call = _own_process(os.getpid()), libc().syscall
    for first in range(0, len(ranges), _MOST_RANGES):
        part = ranges[first : first + _MOST_RANGES]
        done = -1
        if process >= 0:
            done = call(
                _PROCESS_MADVISE, process, part.ctypes.data, len(part), mmap.MADV_WILLNEED, 0
            )
        if done != part[:, 1].sum():
            madvise = libc_locked().madvise
            for begin, size in part.tolist():
                madvise(begin, size, mmap.MADV_WILLNEED)


@lru_cache(maxsize=1)
def _own_process(pid: int) -> int:
    """What names this process to `process_madvise`; -1 where there is no such call."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return -1


def _typed(libc: ctypes.CDLL) -> ctypes.CDLL:
    size, address, number = ctypes.c_size_t, ctypes.c_void_p, ctypes.c_int
    libc.mmap.restype = address
    libc.mmap.argtypes = (address, size, number, number, number, ctypes.c_int64)
    libc.munmap.argtypes = (address, size)
    libc.madvise.argtypes = (address, size, number)
    libc.syscall.restype = ctypes.c_ssize_t
    libc.syscall.argtypes = (ctypes.c_long, number, address, size, number, ctypes.c_uint)
    return libc


def _reserve(size: int) -> int:
    """Addresses that nothing lies behind yet: no memory is taken."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    base: int | None = libc().mmap(None, size, mmap.PROT_READ, flags, -1, 0)
    if base is None or base == _FAILED:
        raise OSError(ctypes.get_errno(), f"cannot reserve {size} bytes of address space")
    return base


def map_file(address: int, size: int, fd: int) -> None:
    flags = mmap.MAP_SHARED | _MAP_FIXED
    if libc().mmap(address, size, mmap.PROT_READ, flags, fd, 0) != address:
        raise OSError(ctypes.get_errno(), "cannot map a shard")


def make_writable(memory: Memory) -> Bytes:
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0) | _MAP_FIXED
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    if libc().mmap(memory.base, memory.size, protection, flags, -1, 0) != memory.base:
        raise OSError(ctypes.get_errno(), "cannot take memory for narrow columns")
    block = (ctypes.c_uint8 * memory.size).from_address(memory.base)
    return np.frombuffer(cast(Any, block), np.uint8)
