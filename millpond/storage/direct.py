"""Large files written in blocks past the page cache, where the file system allows it.

Buffered writes of gigabytes cost up to ten times the CPU of direct ones (the kernel
reclaims pages for them) and throw the input out of the cache. Direct ones want aligned
memory, offsets and lengths: `BlockFile` collects what it is given in one reused,
page-aligned buffer, and writes it while the next one fills. The file is ordinary; only
the way to the disk differs. `read_direct` is the way back. Figures: benchmarks/exchange.py.
"""

import errno
import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from typing import TypeAlias

import numpy as np
import pyarrow as pa

from millpond.errors import MillpondError
from millpond.storage.oserrors import explain, explained

Bytes: TypeAlias = bytes | bytearray | memoryview

BLOCK_BYTES = 4 << 20  # Direct writes stop gaining here; a multiple of every block size.
SMALL_BYTES = 256 << 10
GRID = 4096  # Pages, and the blocks of any disk.
_DECAY_MS = 100  # Arrow has 1000: 30 MB more, of a limit of 256 MB.
_KEPT_MS = 60_000
_O_DIRECT = getattr(os, "O_DIRECT", 0)


class BlockFile:
    """A new file, written from its beginning to its end, in a thread of its own.

    The first `direct_after` bytes go through the page cache, and so does the last block
    that is not full: a small file stays where its reader finds it. All else goes past
    the cache. None: nothing does. With `apart=False` the caller's own thread writes, for
    one who has many files and threads of his own. What is no more than a block, `hold` may
    take over: then there is no file.
    """

    def __init__(
        self,
        path: str,
        *,
        direct_after: int | None = 0,
        block_bytes: int = BLOCK_BYTES,
        apart: bool = True,
        hold: Callable[[str, memoryview], bool] | None = None,
    ) -> None:
        assert block_bytes % GRID == 0
        self._apart = apart
        self.path, self.position = path, 0
        self._direct_after, self._is_direct = direct_after, False
        self._fd, self._hold = -1, hold
        if hold is None:
            self._make()
        self._block, self._filled = page_aligned(block_bytes), 0
        self._spare: memoryview | None = None  # The block that is being written, or was.
        self._thread: ThreadPoolExecutor | None = None
        self._writing: Future[None] | None = None

    def append(self, data: Bytes) -> None:
        """Add `data` at the end. Raises `DiskFull` where no space is left, perhaps later."""
        rest = memoryview(data).cast("B")
        self.position += len(rest)
        while len(rest):
            room = len(self._block) - self._filled
            piece, rest = rest[:room], rest[room:]
            self._block[self._filled : self._filled + len(piece)] = piece
            self._filled += len(piece)
            if self._filled == len(self._block):
                self._hand_over()

    def close(self) -> None:
        """Write what is left and close. The file is complete, not synced."""
        self._wait()
        rest = self._block[: self._filled]
        if self._fd >= 0 or self._hold is None or not self._hold(self.path, rest):
            self._make()
            self._set_direct(False)  # The tail is not a whole number of disk blocks.
            self._write(rest)
        self._release()

    def abort(self) -> None:
        """Close, and leave no file."""
        with suppress(MillpondError, OSError):
            self._wait()
        self._release()
        with suppress(FileNotFoundError):
            os.unlink(self.path)

    def _make(self) -> None:
        if self._fd < 0:
            with explained(self.path, "write"):
                flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
                self._fd = os.open(self.path, flags, 0o600)

    def _hand_over(self) -> None:
        """Have the full block written, and fill the other one meanwhile."""
        self._make()
        self._wait()
        if self._direct_after is not None and self.position > self._direct_after:
            self._set_direct(True)
        if not self._apart:
            self._write(self._block)
            self._filled = 0
            return
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="block-file")
            self._spare = page_aligned(len(self._block))
        self._writing = self._thread.submit(self._write, self._block)
        assert self._spare is not None
        self._block, self._spare, self._filled = self._spare, self._block, 0

    def _wait(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _write(self, rest: memoryview) -> None:
        while len(rest):
            try:
                rest = rest[os.write(self._fd, rest) :]
            except OSError as error:
                if error.errno != errno.EINVAL or not self._is_direct:
                    raise explain(error, self.path, "write") from error
                # A short write left us off the block grid, or the file system took the
                # flag but not the write: go on through the cache, for good.
                self._set_direct(False)
                self._direct_after = None

    def _set_direct(self, on: bool) -> None:
        if on == self._is_direct or not _O_DIRECT:
            return
        flags = fcntl.fcntl(self._fd, fcntl.F_GETFL)
        try:
            fcntl.fcntl(self._fd, fcntl.F_SETFL, flags | _O_DIRECT if on else flags & ~_O_DIRECT)
            self._is_direct = on
        except OSError:  # tmpfs and some network file systems refuse.
            self._direct_after = None

    def _release(self) -> None:
        if self._thread is not None:
            self._thread.shutdown()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._block = memoryview(b"")
            self._spare = None


def read_direct(path: str, ranges: Sequence[tuple[int, int]]) -> list[memoryview]:
    """The bytes of each (offset, length), past the page cache where the range is large.

    Short only at the end of the file. A range is one read of a whole number of pages, so
    neighbours should come as one range. Raises as `Storage.read_many` does.
    """
    with explained(path, "read"):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return [_read(fd, offset, length) for offset, length in ranges]
        finally:
            os.close(fd)


def is_cached(path: str, offset: int) -> bool:
    """Whether the page at `offset` can be read without waiting for the disk; True if unknown."""
    nowait = getattr(os, "RWF_NOWAIT", 0)
    if not nowait:
        return True
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.preadv(fd, [bytearray(1)], offset, nowait)
    except BlockingIOError:
        return False
    except OSError:  # Not a file system that can tell.
        return True
    finally:
        os.close(fd)
    return True


def _read(fd: int, offset: int, length: int) -> memoryview:
    start = offset - offset % GRID
    memory = page_aligned(-(-(offset + length) // GRID) * GRID - start)
    done = read_into(fd, start, memory)
    return memory[offset - start : min(offset - start + length, max(done, offset - start))]


def read_into(fd: int, offset: int, memory: memoryview, *, direct: bool = True) -> int:
    """Fill `memory`, fewer bytes only at the end of the file; how many.

    Past the page cache if `direct`, if it is enough to be worth it, and if memory, offset
    and length are whole pages (see `page_aligned`). One thread at a time per descriptor.
    """
    # Below some size the cache's own read-ahead does better than single direct reads.
    large = len(memory) >= SMALL_BYTES and _on_grid(offset, memory)
    direct, done = direct and large, 0
    if direct:
        # A direct read of what was written a moment ago would wait for it to reach the disk.
        done = _cached(fd, offset, memory)
        direct = done < len(memory) and _flag(fd, _O_DIRECT)
    while done < len(memory):
        try:
            count = os.preadv(fd, [memory[done:]], offset + done)
        except OSError as error:
            if error.errno != errno.EINVAL or not direct:
                raise
            direct = _flag(fd, 0)
            continue
        done += count
        if not count or (direct and count % GRID):  # The end; direct reads stay on the grid.
            break
    if direct:
        _flag(fd, 0)
    return done


def _cached(fd: int, offset: int, memory: memoryview) -> int:
    """Fill `memory` from the page cache as far as that has it, in whole pages; how many bytes."""
    nowait = getattr(os, "RWF_NOWAIT", 0)
    with suppress(OSError):  # Nothing is cached, or the file system cannot tell.
        count = os.preadv(fd, [memory], offset, nowait) if nowait else 0
        return count if count == len(memory) else count - count % GRID
    return 0


def _on_grid(offset: int, memory: memoryview) -> bool:
    address = np.frombuffer(memory, np.uint8).ctypes.data
    return not (offset % GRID or len(memory) % GRID or address % GRID)


@cache
def reused_memory() -> pa.MemoryPool:
    """Where rows are copied to that are soon dropped again.

    jemalloc gives out again what was freed a moment ago; Arrow's own choice, mimalloc, gives
    much of it back to the system, and fresh pages cost more than the copy: a seventh of all
    CPU seconds of benchmarks/partition.py, a fifth of those of benchmarks/random_shuffle.py.
    """
    with suppress(NotImplementedError):  # Not in every build of Arrow.
        # Soon enough is given back what nobody asks for again, within a tenth of a second.
        pa.jemalloc_set_decay_ms(_DECAY_MS)
        return pa.jemalloc_memory_pool()
    return pa.default_memory_pool()


@contextmanager
def reused_memory_kept() -> Iterator[None]:
    """What is freed of `reused_memory` does not go back to the system meanwhile, as far as threads
    begin then; at the end all of it does.

    For rows that wait by the hundred MB, are written, and make room for the next: without it
    the system clears every page of them again, a tenth of all CPU seconds of
    benchmarks/partition.py.
    """
    pool = reused_memory()
    with suppress(NotImplementedError):
        pa.jemalloc_set_decay_ms(_KEPT_MS)
    try:
        yield
    finally:
        with suppress(NotImplementedError):
            pa.jemalloc_set_decay_ms(_DECAY_MS)
        pool.release_unused()


def page_aligned(size_bytes: int) -> memoryview:
    """Memory to be overwritten, as direct reads and writes want it.

    Used again: memory fresh from the system costs a page fault per 4 KiB, 1.2 CPU seconds per
    GB and ten times the read itself.
    """
    buffer = pa.allocate_buffer(size_bytes + GRID, memory_pool=reused_memory())
    first = -buffer.address % GRID
    return memoryview(buffer).cast("B")[first : first + size_bytes]


def _flag(fd: int, direct: int) -> bool:
    """Switch direct reading on or off; whether it is on."""
    flags = fcntl.fcntl(fd, fcntl.F_GETFL) & ~_O_DIRECT
    with suppress(OSError):
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | direct)
        return bool(direct)
    return False
