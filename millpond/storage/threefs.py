"""3FS: files of a mount, read in batches through user-space rings where the client is there.

Everything but reading many ranges and removing scratch is as on any shared file
system. Without the client package, for files that it does not take, and for reads that
fail in a ring, `preadv` reads instead. Verified against a fake of the client and its
published interface only.
"""

import logging
import os
import re
import threading
import uuid
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any

from millpond.errors import MillpondError, MissingExtra
from millpond.lazy import extra
from millpond.storage.local import LocalStorage, plain_ranges, size_of
from millpond.storage.oserrors import explain, explained
from millpond.storage.paths import check_scratch, plain
from millpond.storage.pool import each
from millpond.storage.preads import memory_of, read_files, read_in_turn, shortened
from millpond.storage.ranges import Read, cut, merge, split
from millpond.storage.usrbio import (
    AGAIN,
    BUFFER,
    OURS,
    Batch,
    OpenFile,
    OpenFiles,
    Ring,
    RingBroken,
    batches,
)
from millpond.storage.values import Buffers, Range

log = logging.getLogger(__name__)

VIRTUAL = "3fs-virt"
_KIND = "fuse.hf3fs"
# A quarter of a ring's buffer, so that a long range fills several rings at once.
PIECE = BUFFER // 4
# Files of one batch: sixteen threads of them stay below the usual limit of 1024 open files.
FILES = 32
# The client itself tries again for up to a minute; preadv may be served by another replica.
WAIT_S = 30.0


def find_client() -> Any | None:
    """The 3FS client package, if it can be imported."""
    try:
        return extra("hf3fs_fuse.io", extra="3fs", what="reading 3FS through its rings")
    except MissingExtra:
        return None


def find_mount(path: str, client: Any | None = None, mountinfo: str | None = None) -> str | None:
    """The mount point of the 3FS that `path` lies on; None if it lies elsewhere.

    The client package decides where it can be imported. Otherwise the table of mounts
    does; `mountinfo` is its text, this process's own by default.
    """
    if client is not None:
        found: str | None = client.extract_mount_point(path)
        return found
    table = _mount_table() if mountinfo is None else mountinfo
    return _mount_in(table, os.path.realpath(path)) if _KIND in table else None


def any_mount() -> bool:
    """Is a 3FS mounted on this machine?"""
    return _KIND in _mount_table()


def _mount_table() -> str:
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except FileNotFoundError:  # Not Linux, so not 3FS.
        return ""


def _mount_in(mountinfo: str, path: str) -> str | None:
    best, kind, name = "", "", ""
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        fields, types = left.split(" "), right.split(" ")
        if len(fields) < 5 or len(types) < 2:
            continue
        point = _unescape(fields[4])
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        # Of two mounts on one point the later one is on top.
        if inside and len(point) >= len(best):
            best, kind, name = point, types[0], _unescape(types[1])
    if kind != _KIND:
        return None
    return best if name == VIRTUAL or os.path.isdir(os.path.join(best, VIRTUAL)) else None


def _unescape(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), field)


class ThreeFsStorage(LocalStorage):
    """The files of a machine that has 3FS mounts; files elsewhere are read as any others.

    `client` is the client package, or None without it; `mount_of` says on which mount an
    absolute path lies, or None.
    """

    def __init__(
        self,
        client: Any | None,
        *,
        mount_of: Callable[[str], str | None] | None = None,
        wait_s: float = WAIT_S,
    ) -> None:
        self._client, self._wait_s = client, wait_s
        self._find = mount_of or (lambda path: find_mount(path, client))
        self._mounts: dict[str, str | None] = {}  # By folder: finding one asks the kernel.
        self._without_rings: set[str] = set()
        self._start()

    def _start(self) -> None:
        self._pid = os.getpid()
        self._files, self._thread = OpenFiles(self._client), threading.local()

    def read_many(self, ranges: Sequence[Range]) -> Buffers:
        """The bytes of each range, in the order asked; short only at the end of a file.

        One submit and one wait for each batch of up to 1024 merged reads.
        """
        if self._pid != os.getpid():
            # After a fork. What the parent opened stays open, unused: a number that is
            # never given to another file cannot be taken for one that is registered.
            self._start()
        wanted = plain_ranges(ranges)
        reads = merge(wanted, size_of)
        mounts = {path: self._mount(path) for path in {read.path for read in reads}}
        buffers = [memoryview(b"")] * len(reads)
        for mount in set(mounts.values()):
            mine = [i for i, read in enumerate(reads) if mounts[read.path] == mount]
            some = reads if len(mine) == len(reads) else [reads[i] for i in mine]
            rings = mount is not None and self._ring(mount) is not None
            done = self._by_rings(mount, some) if mount and rings else read_files(some)
            for i, buffer in zip(mine, done, strict=True):
                buffers[i] = buffer
        return split(wanted, reads, buffers)

    def remove_scratch(self, folder: str) -> None:
        """Remove a folder of Millpond's own at once, on the server. There is no undo."""
        local = check_scratch(plain(folder))
        with explained(local, "remove"):
            mount = self._mount(local)
            if mount and os.path.isdir(local) and not os.path.islink(local):
                place = os.path.join(mount, VIRTUAL, "rm-rf", uuid.uuid4().hex)
                try:
                    os.symlink(os.path.realpath(local), place)
                except OSError as error:
                    log.info("%s is removed file by file: %s", local, error)
        # The server says nothing where it did not remove all.
        super().remove_scratch(local)

    def _mount(self, path: str) -> str | None:
        folder = os.path.dirname(path)
        try:
            return self._mounts[folder]
        except KeyError:  # Not asked first: another thread may clear it in between.
            found = self._find(path)
        if len(self._mounts) > 10_000:
            self._mounts.clear()
        self._mounts[folder] = found
        return found

    def _by_rings(self, mount: str, reads: Sequence[Read]) -> Buffers:
        # In columns, and one block of memory for all: what is done for each read by itself
        # costs more than the read, at millions of them a second.
        columns: tuple[Sequence[Any], ...] = tuple(zip(*reads, strict=True)) or ((),) * 4
        paths, offsets, lengths, _ = columns
        # One block for all: a batch fills a stretch of it, and is copied in one go.
        places = [0, *accumulate(lengths)]
        memory = memory_of(places[-1])
        buffers = [memory[at:end] for at, end in pairwise(places)]
        owners: Sequence[int] = range(len(reads))
        if max(lengths, default=0) > PIECE or not all(lengths):
            paths, offsets, lengths, owners = _cut_long(reads)
        work = batches(Batch(paths, offsets, lengths, memory), FILES)
        counts = [n for some in each(lambda one: self._fill(mount, one), work) for n in some]
        if counts == list(lengths):
            return buffers
        return shortened(buffers, owners, lengths, counts)

    def _fill(self, mount: str, batch: Batch) -> Sequence[int]:
        """Fill the memory of the batch; the number of bytes that each read got."""
        files = self._acquire(set(batch.paths))
        counts = [0] * len(batch.paths)
        try:
            waiting = [i for i, path in enumerate(batch.paths) if path in files]
            for _ in range(2):  # What may pass is asked of a ring once more.
                ring = self._ring(mount) if waiting else None
                waiting = self._round(ring, batch, waiting, files, counts) if ring else []
        finally:
            for file in files.values():
                self._files.release(file)
        if counts == list(batch.lengths):
            return counts
        # Ends of files, reads without luck, and files that the client did not take.
        short = [i for i, length in enumerate(batch.lengths) if counts[i] < length]
        rest = read_in_turn(batch.pieces(short, counts))
        for i, more in zip(short, rest, strict=True):
            counts[i] += more
        return counts

    def _round(
        self,
        ring: Ring,
        batch: Batch,
        waiting: list[int],
        files: dict[str, OpenFile],
        counts: list[int],
    ) -> list[int]:
        """One round of the reads numbered `waiting`; those that should be tried again."""
        whole = len(waiting) == len(counts)
        wanted = batch if whole else batch.only(waiting)
        fds = {path: file.fd for path, file in files.items()}
        try:
            results = ring.read(wanted, fds, self._wait_s)
        except RingBroken as error:
            log.info("a ring gave up (%s); preadv reads instead", error)
            return []
        if whole and results == list(wanted.lengths):
            ring.copy(0, batch.memory)
            counts[:] = results
            return []
        at, again = 0, []
        pieces = batch.pieces(waiting, counts)
        for i, piece, result in zip(waiting, pieces, results, strict=True):
            if result < 0:
                _check(result, piece.path)
                again += [i] if -result in AGAIN else []
            elif result > 0:
                ring.copy(at, piece.memory[:result])
                counts[i] = result
            at += len(piece.memory)
        return again

    def _acquire(self, paths: set[str]) -> dict[str, OpenFile]:
        """Those of the files that rings can read, in use until they are released."""
        files: dict[str, OpenFile] = {}
        try:
            for path in sorted(paths):
                with explained(path, "read"):
                    file = self._files.acquire(path)
                if file is not None:
                    files[path] = file
        except MillpondError:
            for file in files.values():
                self._files.release(file)
            raise
        return files

    def _ring(self, mount: str) -> Ring | None:
        """This thread's ring. None: there is none to be had on this mount, now and later."""
        if self._client is None or mount in self._without_rings:
            return None
        rings: dict[str, Ring] = self._thread.__dict__.setdefault("rings", {})
        if mount not in rings or rings[mount].broken:
            rings.pop(mount, None)
            try:
                rings[mount] = Ring(self._client, mount)
            except (OSError, RuntimeError, ValueError) as error:
                log.warning("no ring on %s (%s): preadv reads instead", mount, error)
                self._without_rings.add(mount)
        return rings.get(mount)


def _check(result: int, path: str) -> None:
    """Raise what another way of reading would not change."""
    if -result in OURS:
        raise explain(OSError(-result, os.strerror(-result)), path, "read")


def _cut_long(reads: Sequence[Read]) -> tuple[list[str], list[int], list[int], list[int]]:
    """Columns of reads: no empty ones, long ones in pieces; the last says whose each is."""
    found = [
        (read.path, read.offset + at, length, i)
        for i, read in enumerate(reads)
        for at, length in cut(read.length, PIECE)
        if length
    ]
    return (
        [path for path, _, _, _ in found],
        [offset for _, offset, _, _ in found],
        [length for _, _, length, _ in found],
        [owner for _, _, _, owner in found],
    )
