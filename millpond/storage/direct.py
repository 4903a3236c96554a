"""Large files written in blocks past the page cache, where the file system allows it.

Buffered writes of gigabytes cost up to ten times the CPU of direct ones (the kernel
reclaims pages for them) and throw the input out of the cache. Direct ones want aligned
memory, offsets and lengths: `BlockFile` collects what it is given in one reused,
page-aligned buffer. The file is ordinary; only the way to the disk differs.
"""

import errno
import fcntl
import mmap
import os
from contextlib import suppress
from typing import TypeAlias

from millpond.storage.oserrors import explain, explained

Bytes: TypeAlias = bytes | bytearray | memoryview

BLOCK_BYTES = 4 << 20  # Direct writes stop gaining here; a multiple of every block size.
_O_DIRECT = getattr(os, "O_DIRECT", 0)


class BlockFile:
    """A new file, written from its beginning to its end.

    The first `direct_after` bytes go through the page cache, where the reader of a
    small file will find them; what follows goes past it. None: all of it is cached.
    """

    def __init__(
        self, path: str, *, direct_after: int | None = None, block_bytes: int = BLOCK_BYTES
    ) -> None:
        assert block_bytes % mmap.PAGESIZE == 0
        self.path, self.position = path, 0
        self._direct_after, self._is_direct = direct_after, False
        with explained(path, "write"):
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self._block, self._filled = memoryview(mmap.mmap(-1, block_bytes)), 0

    def append(self, data: Bytes) -> None:
        """Add `data` at the end. Raises `DiskFull` where no space is left."""
        rest = memoryview(data).cast("B")
        self.position += len(rest)
        while len(rest):
            room = len(self._block) - self._filled
            piece, rest = rest[:room], rest[room:]
            self._block[self._filled : self._filled + len(piece)] = piece
            self._filled += len(piece)
            if self._filled == len(self._block):
                self._write_block()

    def close(self) -> None:
        """Write what is left and close. The file is complete, not synced."""
        self._set_direct(False)  # The tail is not a whole number of disk blocks.
        self._write_block()
        self._release()

    def abort(self) -> None:
        """Close, and leave no file."""
        self._release()
        with suppress(FileNotFoundError):
            os.unlink(self.path)

    def _write_block(self) -> None:
        written = self.position - self._filled
        if self._direct_after is not None and written >= self._direct_after:
            self._set_direct(self._filled == len(self._block))
        rest, self._filled = self._block[: self._filled], 0
        while len(rest):
            rest = rest[self._write(rest) :]

    def _write(self, data: memoryview) -> int:
        try:
            return os.write(self._fd, data)
        except OSError as error:
            if error.errno == errno.EINVAL and self._is_direct:
                # A short write left us off the block grid, or the file system took the
                # flag but not the write: go on through the cache, for good.
                self._set_direct(False)
                self._direct_after = None
                return 0
            raise explain(error, self.path, "write") from error

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
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._block = memoryview(b"")
