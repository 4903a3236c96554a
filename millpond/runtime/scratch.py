"""A private folder on a node, held by a lock for as long as its owner lives.

The kernel frees the lock of a process that was killed, so whoever comes next on the
node removes what nobody holds any more: nothing is left behind for long.
"""

import fcntl
import os
import shutil
import stat
import tempfile

from millpond.errors import StorageError


class Scratch:
    """The folder `name` of this user on this node. One owner at a time takes it up again."""

    def __init__(self, name: str, base: str | None = None) -> None:
        folder = _private(base or os.path.join(tempfile.gettempdir(), f"millpond-{os.geteuid()}"))
        self._lock_path = os.path.join(folder, f"{name}.lock")
        # Before sweeping: an owner that was restarted takes its files up again.
        self._lock = _locked(self._lock_path)
        _sweep(folder)
        self.path = _private(os.path.join(folder, name))

    def remove(self) -> None:
        """Remove the folder and all that lies in it."""
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


def _sweep(folder: str) -> None:
    """Remove what the dead have left."""
    for entry in [e for e in os.listdir(folder) if e.endswith(".lock")]:
        path = os.path.join(folder, entry)
        try:
            fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        except OSError:
            continue  # Another one sweeps, too.
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path.removesuffix(".lock"), ignore_errors=True)
            os.unlink(path)
        except OSError:
            pass  # Its owner lives.
        finally:
            os.close(fd)
