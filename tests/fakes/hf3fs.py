"""A 3FS client for tests: `hf3fs_fuse.io` and `hf3fs_py_usrbio` over an ordinary folder.

Written from the published interface (docs/how-to/3fs.md lists what it rests on), so
that a mistake that a cluster would punish fails here too:

- completions come in another order than the reads were prepared in;
- `io_depth` > 0 runs full batches only: a short tail waits for ever; < 0 cuts them;
- reads behind the end are short, and holes are zeros unless flag 2 is set;
- two reads of a batch with overlapping target bytes fail all of it;
- a descriptor must be registered, once, and deregistered before it is closed: a stale
  registration goes on reading the old file under the reused number;
- a ring belongs to the thread that first prepared on it, and takes `entries` reads;
- a buffer whose registration (the link in `3fs-virt/iovs`) is gone gives −EINVAL;
- a link in `3fs-virt/rm-rf` removes the tree that it points to.

`Cluster.faults` is consumed by the reads in the order in which they are prepared: a
positive number makes that read −errno, `"short"` half as long, `"hang"` never done.
"""

import errno
import fcntl
import os
import shutil
import sys
import threading
import types
from collections import deque
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

VIRTUAL = "3fs-virt"


class Cluster:
    """What the daemon and the servers know, and the faults that they have in stock."""

    def __init__(self, mount: Path) -> None:
        self.mount = str(mount)
        for folder in ("iovs", "rm-rf"):
            (mount / VIRTUAL / folder).mkdir(parents=True)
        self.registered: dict[int, int] = {}  # Descriptor to a duplicate that keeps the file.
        self.faults: deque[int | str] = deque()
        self.refuse: dict[str, int] = {}  # Call ("register_fd", "make_ioring", …) to errno.
        self.removal = "works"  # Or "refused", or "ignored".
        self.calls: list[str] = []
        self.alive: set[str] = set()  # Buffers whose memory and registration exist.
        self.lock = threading.Lock()

    def call(self, name: str) -> None:
        with self.lock:
            self.calls.append(name)
        if name in self.refuse:
            raise OSError(self.refuse[name], os.strerror(self.refuse[name]))

    def links(self) -> list[str]:
        return os.listdir(f"{self.mount}/{VIRTUAL}/iovs")

    def register_fd(self, fd: int, flags: int = 0) -> None:
        self.call("register_fd")
        try:
            path = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            path = ""
        if self.extract_mount_point(path) is None:
            raise OSError(errno.EBADF, "not on 3FS")
        if fd in self.registered:
            raise OSError(errno.EINVAL, "registered already")
        self.registered[fd] = os.dup(fd)

    def deregister_fd(self, fd: int) -> None:
        self.call("deregister_fd")
        kept = self.registered.pop(fd, None)
        if kept is not None:
            os.close(kept)

    def extract_mount_point(self, path: str) -> str | None:
        full = os.path.realpath(path)
        return self.mount if (full + "/").startswith(self.mount + "/") else None

    def install(self, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
        """Make the client importable, and the folder `rm-rf` do what it does on 3FS."""
        native = types.ModuleType("hf3fs_py_usrbio")
        for name in ("register_fd", "deregister_fd", "extract_mount_point"):
            setattr(native, name, getattr(self, name))
        io = types.ModuleType("hf3fs_fuse.io")
        io.__dict__.update(native.__dict__, __name__="hf3fs_fuse.io")
        io.make_iovec = self.make_iovec  # type: ignore[attr-defined]
        io.make_ioring = self.make_ioring  # type: ignore[attr-defined]
        package = types.ModuleType("hf3fs_fuse")
        package.io = io  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "hf3fs_py_usrbio", native)
        monkeypatch.setitem(sys.modules, "hf3fs_fuse", package)
        monkeypatch.setitem(sys.modules, "hf3fs_fuse.io", io)
        monkeypatch.setattr(os, "symlink", self._symlink(os.symlink))
        return io

    def make_iovec(self, shm: Any, mount: str, block_size: int = 0, numa: int = -1) -> "iovec":
        self.call("make_iovec")
        id = str(uuid4())
        ending = f".b{block_size}" if block_size > 0 else ""
        link = f"{mount}/{VIRTUAL}/iovs/{id}{ending}"
        os.symlink(os.path.normpath(f"/dev/shm/{shm.name}"), link)
        UUID(id)
        return iovec(Slice(self, shm.buf, 0, len(shm.buf), block_size, link), link)

    def make_ioring(
        self,
        mount: str,
        entries: int,
        for_read: bool = True,
        io_depth: int = 0,
        priority: int | None = None,
        timeout: int | None = None,
        numa: int = -1,
        flags: int = 0,
    ) -> "ioring":
        self.call("make_ioring")
        assert mount == self.mount
        return ioring(Ring(self, entries, for_read, io_depth, flags))

    def _symlink(self, real: Any) -> Any:
        def symlink(target: str, link: str, *args: Any, **more: Any) -> None:
            if os.path.dirname(link) != f"{self.mount}/{VIRTUAL}/rm-rf":
                real(target, link, *args, **more)
            elif self.removal == "refused":
                raise OSError(errno.EPERM, "not permitted")
            elif self.removal == "works":
                assert os.path.isabs(target)
                assert os.path.realpath(target).startswith(self.mount + "/")
                shutil.rmtree(target)

        return symlink


class iovec:
    """The buffer as the Python package wraps it: its end takes the registration away."""

    def __init__(self, iov: "Slice", link: str) -> None:
        self.iov, self.link = iov, link

    def __del__(self) -> None:
        os.unlink(self.link)

    def __getitem__(self, key: slice) -> "Slice":
        return self.iov[key]


class Slice:
    """Bytes of the shared memory, and after a read what came of it."""

    def __init__(
        self, cluster: Cluster, buf: memoryview, start: int, size: int, block: int, link: str
    ) -> None:
        self.cluster, self.buf, self.start, self.size = cluster, buf, start, size
        self.block, self.link = block, link
        self.result, self.userdata = 0, None

    def __getitem__(self, key: slice) -> "Slice":
        start, stop, step = key.indices(self.size)
        if step != 1:
            raise ValueError("step not 1 when slicing iovec")
        size = max(stop - start, 0)
        return Slice(self.cluster, self.buf, self.start + start, size, self.block, self.link)

    def bytes(self) -> memoryview:
        return self.buf[self.start : self.start + self.size]


class ioring:
    """The ring as the Python package wraps it."""

    def __init__(self, ior: "Ring") -> None:
        self.ior = ior

    def prepare(self, iov: Any, *args: Any, **more: Any) -> "Ring":
        return self.ior.prepare(iov.iov if type(iov) is iovec else iov, *args, **more)

    def submit(self) -> "Ring":
        return self.ior.submit()

    def wait(self, *args: Any, **more: Any) -> list[Slice]:
        return self.ior.wait(*args, **more)


class Ring:
    """Reads that were prepared, those that are done, and those that never will be."""

    def __init__(
        self, cluster: Cluster, entries: int, for_read: bool, io_depth: int, flags: int
    ) -> None:
        self.cluster, self.entries, self.for_read = cluster, entries, for_read
        self.io_depth, self.flags = io_depth, flags
        self.thread: int | None = None
        self.prepared: list[tuple[Slice, int, int, int | str]] = []
        self.done: list[Slice] = []
        self.hanging = 0

    def prepare(self, iov: Slice, read: bool, fd: int, off: int, userdata: Any = None) -> "Ring":
        here = threading.get_ident()
        self.thread = self.thread or here
        assert self.thread == here, "a ring is prepared and submitted by one thread"
        cluster = self.cluster
        if "prepare" in cluster.refuse:
            cluster.call("prepare")
        if len(self.prepared) + len(self.done) + self.hanging >= self.entries:
            raise OSError(errno.EAGAIN, "the ring is full")
        if read != self.for_read or iov.size == 0 or iov.start + iov.size > len(iov.buf):
            raise OSError(errno.EINVAL, "direction, length or place")
        if fd not in cluster.registered:
            raise OSError(errno.EBADF, "not registered")
        if read and fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY:
            raise OSError(errno.EACCES, "opened for writing only")
        iov.userdata = userdata
        with cluster.lock:
            fault = cluster.faults.popleft() if cluster.faults else 0
        self.prepared.append((iov, fd, off, fault))
        return self

    def submit(self) -> "Ring":
        self.cluster.call("submit")
        ready = len(self.prepared)
        if self.io_depth > 0:
            ready -= ready % self.io_depth
        size = abs(self.io_depth) or ready or 1
        found, self.prepared = self.prepared[:ready], self.prepared[ready:]
        for first in range(0, ready, size):
            self._run_batch(found[first : first + size])
        return self

    def _run_batch(self, batch: list[tuple[Slice, int, int, int | str]]) -> None:
        registered = {link for link in {iov.link for iov, *_ in batch} if os.path.lexists(link)}
        overlapping = _overlap([iov for iov, *_ in batch])
        # Another order than the one of asking, and the same each time.
        for iov, fd, off, fault in batch[1::2][::-1] + batch[0::2]:
            if fault == "hang":
                self.hanging += 1
                continue
            gone = iov.link not in registered
            iov.result = -errno.EINVAL if overlapping or gone else self._run(iov, fd, off, fault)
            self.done.append(iov)

    def wait(
        self,
        *,
        max_results: int = 0,
        min_results: int = 0,
        timeout: timedelta | float | None = None,
    ) -> list[Slice]:
        self.cluster.call("wait")
        most = max(max_results, min_results, 1)
        out, self.done = self.done[:most], self.done[most:]
        # No time passes here: what is not done by now never will be.
        assert len(out) >= min_results or timeout is not None, "this would wait for ever"
        return out

    def _run(self, iov: Slice, fd: int, off: int, fault: int | str) -> int:
        if isinstance(fault, int) and fault:
            return -fault
        block = iov.block
        crosses = block and iov.start // block != (iov.start + iov.size - 1) // block
        if crosses:
            return -errno.EINVAL
        size = iov.size if fault != "short" else max(iov.size // 2, 1)
        kept = self.cluster.registered.get(fd)
        if kept is None:
            return -errno.EBADF
        if self.flags & 2 and _in_hole(kept, off):
            return -errno.ENODATA
        return os.preadv(kept, [iov.bytes()[:size]], off)


def _overlap(slices: list[Slice]) -> bool:
    spans = sorted((s.start, s.start + s.size) for s in slices)
    return any(a[1] > b[0] for a, b in pairwise(spans))


def _in_hole(fd: int, off: int) -> bool:
    try:
        return os.lseek(fd, off, os.SEEK_DATA) != off
    except OSError:  # No data behind `off`.
        return off < os.fstat(fd).st_size
