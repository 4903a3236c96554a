"""Batches of reads through 3FS's user-space rings (USRBIO).

A ring and its buffer belong to one thread of one process. A batch is laid out in the
buffer, prepared, submitted once and waited for once; completions come in any order.
What a ring cannot deliver, the caller reads by `preadv`.
"""

import ctypes
import errno
import logging
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np

from millpond.storage.preads import Piece

log = logging.getLogger(__name__)

# One thread with one ring reaches about 1.5 GiB/s (3FS#332): several rings of a moderate
# buffer beat one large one.
ENTRIES, BUFFER = 1024, 16 << 20
# Files that stay open and registered between batches.
OPEN_FILES = 256

LATE = -(1 << 30)  # No errno is as large.
AGAIN = {errno.EREMOTEIO, errno.EIO, errno.EAGAIN, errno.EINTR}
OURS = {errno.EACCES, errno.EBADF, errno.EINVAL}


class RingBroken(Exception):
    """The ring took or gave nothing; its reads must be done in another way."""


class Ring:
    """A ring with its shared buffer, for one thread of this process.

    `broken` is set when reads may still be under way after the wait for them ended.
    Such a ring is never used again: a late read would overwrite a later batch.
    """

    def __init__(self, client: Any, mount: str) -> None:
        # Not at the top: few machines have rings, and it loads much.
        from multiprocessing.shared_memory import SharedMemory

        shm = SharedMemory(create=True, size=BUFFER)
        parts: list[Any] = [shm]
        try:
            parts.append(client.make_iovec(shm, mount))
            parts.append(client.make_ioring(mount, ENTRIES, True, 0))
        except BaseException:
            _release(parts, os.getpid())
            raise
        finally:
            shm.unlink()  # The client daemon has opened it; the name is not needed any more.
        self._parts = parts
        self.pid, self.broken = os.getpid(), False
        weakref.finalize(self, _release, parts, self.pid)

    def read(self, batch: "Batch", fds: Mapping[str, int], wait_s: float) -> list[int]:
        """Run one batch. For each read the bytes that came, −errno, or `LATE`: not in time.

        The bytes lie in the buffer, one read after the other; `copy` gets them.
        """
        n, at = len(batch.paths), 0
        # The client keeps a bare pointer to the user data, so the numbers are held here.
        keys = list(range(n))
        opened = map(fds.__getitem__, batch.paths)
        _, iov, ring = self._parts
        prepare = ring.prepare
        try:
            for key, fd, offset, length in zip(
                keys, opened, batch.offsets, batch.lengths, strict=True
            ):
                end = at + length
                prepare(iov[at:end], True, fd, offset, key)
                at = end
            ring.submit()
            done = ring.wait(min_results=n, timeout=wait_s)
        except OSError as error:
            self.broken = True  # Some may be on their way already.
            raise RingBroken(f"{errno.errorcode.get(error.errno or 0)}") from error
        results = [LATE] * n
        for one in done:
            results[one.userdata] = one.result
        self.broken = len(done) < n
        return results

    def copy(self, at: int, memory: memoryview) -> None:
        """Copy from place `at` of the buffer, without holding back other threads."""
        # A lasting view would keep the shared memory from being closed.
        source = np.frombuffer(self._parts[0].buf, np.uint8, len(memory), at)
        np.copyto(np.frombuffer(memory, np.uint8), source)


def _release(parts: list[Any], pid: int) -> None:
    """Drop ring, then buffer registration, then memory; in a forked child, nothing."""
    if os.getpid() != pid:
        # The registration's destructor would take it from the parent, which still uses it.
        for part in parts:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(part))
        return
    while len(parts) > 1:
        parts.pop()
    for shm in parts:
        shm.close()
    parts.clear()


class OpenFile:
    """An open, registered file and the number of batches that read from it now."""

    __slots__ = ("fd", "identity", "retired", "users")

    def __init__(self, fd: int, identity: tuple[int, ...]) -> None:
        self.fd, self.identity = fd, identity
        self.users, self.retired = 0, False


class OpenFiles:
    """Files that are open and registered, the most recently used ones kept.

    A file that was replaced under its name is opened anew. Registration is taken back
    before a descriptor is closed: its number may be another file's a moment later.
    """

    def __init__(self, client: Any, capacity: int = OPEN_FILES) -> None:
        self._client, self._capacity = client, capacity
        self._lock = threading.Lock()
        self._files: OrderedDict[str, OpenFile] = OrderedDict()
        weakref.finalize(self, _close_all, client, self._files, os.getpid())

    def __len__(self) -> int:
        return len(self._files)

    def acquire(self, path: str) -> OpenFile | None:
        """The file, in use until `release`; None where the client does not take it."""
        found = os.stat(path)
        identity = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
        file = self._use(path, identity, None)
        if file is None:
            # Not under the lock: opening asks the servers, and many threads open at once.
            new = self._open(path, identity)
            file = self._use(path, identity, new) if new else None
        return file

    def release(self, file: OpenFile) -> None:
        """The caller reads no more from `file`."""
        with self._lock:
            file.users -= 1
            if file.retired and not file.users:
                self._close(file)
            self._shrink()

    def _use(self, path: str, identity: tuple[int, ...], new: OpenFile | None) -> OpenFile | None:
        with self._lock:
            file = self._files.get(path)
            if file is not None and file.identity == identity:
                if new is not None:
                    self._close(new)  # Another thread opened it in the meantime.
            elif new is not None:
                if file is not None:
                    self._retire(self._files.pop(path))
                file = self._files[path] = new
            else:
                return None
            file.users += 1
            self._files.move_to_end(path)
            self._shrink()
            return file

    def _shrink(self) -> None:
        surplus = len(self._files) - self._capacity
        if surplus > 0:
            idle = [path for path, file in self._files.items() if not file.users]
            for path in idle[:surplus]:
                self._retire(self._files.pop(path))

    def _open(self, path: str, identity: tuple[int, ...]) -> OpenFile | None:
        fd = os.open(path, os.O_RDONLY)
        try:
            self._register(fd)
        except OSError as error:
            os.close(fd)
            log.info("%s is read by preadv: its registration failed (%s)", path, error)
            return None
        return OpenFile(fd, identity)

    def _register(self, fd: int) -> None:
        try:
            self._client.register_fd(fd)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            # Somebody closed a file of this number without taking its registration back.
            self._client.deregister_fd(fd)
            self._client.register_fd(fd)

    def _retire(self, file: OpenFile) -> None:
        file.retired = True
        if not file.users:
            self._close(file)

    def _close(self, file: OpenFile) -> None:
        _close(self._client, file)


def _close(client: Any, file: OpenFile) -> None:
    client.deregister_fd(file.fd)
    os.close(file.fd)


def _close_all(client: Any, files: Mapping[str, OpenFile], pid: int) -> None:
    """Close what a storage that nobody has any more left open; in a forked child, nothing."""
    for file in files.values() if os.getpid() == pid else ():
        with suppress(OSError):
            _close(client, file)


class Batch(NamedTuple):
    """Reads for one round of a ring, in columns, and the memory that they fill in turn."""

    paths: Sequence[str]
    offsets: Sequence[int]
    lengths: Sequence[int]
    memory: memoryview

    def pieces(self, chosen: Sequence[int], done: Sequence[int]) -> list[Piece]:
        """What is left of the chosen reads where so many bytes of each are there already."""
        places = [0, *accumulate(self.lengths)]
        return [
            Piece(
                self.paths[i],
                self.offsets[i] + done[i],
                self.memory[places[i] + done[i] : places[i + 1]],
            )
            for i in chosen
        ]

    def only(self, chosen: Sequence[int]) -> "Batch":
        """The chosen reads, and no memory: it is not one stretch for them."""
        paths, offsets, lengths, _ = self
        return Batch(
            [paths[i] for i in chosen],
            [offsets[i] for i in chosen],
            [lengths[i] for i in chosen],
            memoryview(b""),
        )


def batches(whole: Batch, files: int) -> list[Batch]:
    """The reads of `whole` in batches that fit a ring, each of at most `files` files."""
    paths, offsets, lengths, memory = whole
    if len(paths) <= ENTRIES and len(memory) <= BUFFER and len(set(paths)) <= files:
        return [whole] if paths else []

    def batch(some: slice, filled: memoryview) -> Batch:
        return Batch(paths[some], offsets[some], lengths[some], filled)

    made: list[Batch] = []
    first = start = end = 0
    used: set[str] = set()
    for i, (path, length) in enumerate(zip(paths, lengths, strict=True)):
        crowded = path not in used and len(used) == files
        if i - first == ENTRIES or end + length - start > BUFFER or crowded:
            made.append(
                Batch(paths[first:i], offsets[first:i], lengths[first:i], memory[start:end])
            )
            first, start, used = i, end, set()
        used.add(path)
        end += length
    made.append(batch(slice(first, None), memory[start:end]))
    return made
