"""A private folder on a node, held by a lock for as long as its owner lives.

The kernel frees the lock of a process that was killed, so whoever comes next on the
node removes what nobody holds any more: nothing is left behind for long. All temporary
files outside a data root lie in such folders: spilled rows, parts, files on their way
to an object store.
"""

import fcntl
import os
import shutil
import stat
import tempfile
from contextlib import suppress

from millpond.errors import StorageError


def base_folder() -> str:
    """Where this user's scratch lies on this node."""
    return os.path.join(tempfile.gettempdir(), f"millpond-{os.geteuid()}")


class Scratch:
    """The folder `name` of this user on this node. One owner at a time takes it up again."""

    def __init__(self, name: str, base: str | None = None) -> None:
        folder = _private(base or base_folder())
        self._lock_path = os.path.join(folder, f"{name}.lock")
        # Before sweeping: an owner that was restarted takes its files up again.
        self._lock = _locked(self._lock_path)
        for dead in abandoned(folder):
            remove_abandoned(dead)
        self.path = _private(os.path.join(folder, name))
        self._pid = os.getpid()

    def remove(self) -> None:
        """Remove the folder and all that lies in it; a forked child leaves it to its parent."""
        if os.getpid() != self._pid:
            return
        shutil.rmtree(self.path, ignore_errors=True)
        os.unlink(self._lock_path)
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
    """The folders on this node whose owners are dead."""
    folder = base or base_folder()
    names = os.listdir(folder) if os.path.isdir(folder) else []
    owned = [name.removesuffix(".lock") for name in names if name.endswith(".lock")]
    found = []
    for path in (os.path.join(folder, name) for name in owned):
        fd = _free_lock(path)
        if fd is not None:
            os.close(fd)
            found.append(path)
    return found


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
