"""A private folder on a node, held by a lock for as long as its owner lives.

The kernel frees the lock of a process that was killed, so whoever comes next on the
node removes what nobody holds any more: nothing is left behind for long. All temporary
files outside a data root lie in such folders: spilled rows, parts, files on their way
to an object store.

A folder may be `kept`: then it stays for three days after its owner has died, for the
next session that wants its parts.
"""

import fcntl
import os
import re
import shutil
import stat
import tempfile
import time
from contextlib import suppress

from millpond.errors import StorageError

KEPT_S = 3 * 24 * 3600.0
_KEPT = b"kept"  # What the lock file of a kept folder holds.


def base_folder() -> str:
    """Where this user's scratch lies on this node."""
    return os.path.join(tempfile.gettempdir(), f"millpond-{os.geteuid()}")


class Scratch:
    """The folder `name` of this user on this node. One owner at a time takes it up again."""

    def __init__(self, name: str, base: str | None = None, *, kept: bool = False) -> None:
        folder = _private(base or base_folder())
        # Before sweeping: an owner that was restarted takes its files up again.
        self._lock = _locked(os.path.join(folder, f"{name}.lock"))
        if kept:
            os.pwrite(self._lock, _KEPT, 0)
        for dead in abandoned(folder):
            remove_abandoned(dead)
        self.path = _private(os.path.join(folder, name))
        self._pid = os.getpid()

    @classmethod
    def take_up(cls, name: str, base: str | None = None) -> "Scratch | None":
        """The kept folder of an owner that is dead; None if there is none, or it lives."""
        path = os.path.join(base or base_folder(), name)
        if not re.fullmatch(r"[0-9A-Za-z-]+", name) or not os.path.isdir(path):
            return None
        lock = _free_lock(path)
        if lock is None or not _is_kept(lock, path):
            os.close(lock) if lock is not None else None
            return None
        found = cls.__new__(cls)
        found._lock, found.path, found._pid = lock, _private(path), os.getpid()
        os.utime(path)
        return found

    def leave(self) -> None:
        """Give the folder up as it is: whoever takes it up next finds it, if it is kept."""
        if os.getpid() == self._pid:
            os.close(self._lock)

    def remove(self) -> None:
        """Remove the folder and all that lies in it; a forked child leaves it to its parent."""
        if os.getpid() != self._pid:
            return
        shutil.rmtree(self.path, ignore_errors=True)
        os.unlink(f"{self.path}.lock")
        os.close(self._lock)


def _private(folder: str) -> str:
    os.makedirs(folder, mode=0o700, exist_ok=True)
    found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise StorageError(
            f"{folder!r} is not a private folder of this user, and rows would lie in it. "
            "Find out who made it, and remove it, or set TMPDIR to another place."
        )
    return folder


def _locked(path: str) -> int:
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX)
        if os.fstat(fd).st_nlink:
            return fd
        os.close(fd)  # A neighbour swept it between the two calls.


def abandoned(base: str | None = None) -> list[str]:
    """The folders on this node whose owners are dead, and that are kept no longer."""
    folder = base or base_folder()
    names = os.listdir(folder) if os.path.isdir(folder) else []
    owned = [name.removesuffix(".lock") for name in names if name.endswith(".lock")]
    found = []
    for path in (os.path.join(folder, name) for name in owned):
        fd = _free_lock(path)
        if fd is not None:
            if not _is_kept(fd, path):
                found.append(path)
            os.close(fd)
    return found


def _is_kept(lock: int, folder: str) -> bool:
    """Is it for the next session, and was anything written there in the last three days?"""
    if os.pread(lock, len(_KEPT), 0) != _KEPT:
        return False
    below = list(os.walk(folder))
    newest_s = max((os.lstat(at).st_mtime for at, _, _ in below), default=0.0)
    return any(files for _, _, files in below) and time.time() - newest_s < KEPT_S


def remove_abandoned(folder: str) -> None:
    """Remove a folder that nobody holds, and its lock."""
    fd = _free_lock(folder)
    if fd is None:
        return  # Its owner took it up again, or another one sweeps, too.
    try:
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(FileNotFoundError):
            os.unlink(f"{folder}.lock")
    finally:
        os.close(fd)


def _free_lock(folder: str) -> int | None:
    """The lock of a folder, taken; None if there is none, or its owner lives."""
    try:
        fd = os.open(f"{folder}.lock", os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return None
    return fd
