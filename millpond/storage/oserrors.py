"""What the operating system refused, as an error that says what to check."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from millpond.errors import DiskFull, MillpondError, PathNotFound, StorageError

_CHECKS = {
    errno.EACCES: "Check who owns it and the permissions of it and of every folder above it",
    errno.EPERM: "Check who owns it and the permissions of it and of every folder above it",
    errno.EROFS: "The file system is mounted read-only; choose another place or mount it writable",
    errno.ENOENT: "The file system makes no folder or file there; choose another place",
    errno.EISDIR: "It is a folder where a file is needed",
    errno.EEXIST: "A part of the path is a file where a folder is needed",
    errno.ENOTDIR: "A part of the path is a file where a folder is needed",
    errno.ENAMETOOLONG: "The name is too long for this file system; choose a shorter one",
    errno.EMFILE: "Too many files are open; raise the limit (ulimit -n)",
    errno.ENFILE: "Too many files are open on this machine; raise fs.file-max",
    errno.ELOOP: "Its symbolic links lead in a circle",
    errno.ESTALE: "The file was replaced on the server, or the share was mounted again",
    errno.EIO: "The device or the server of this file system failed; see the system log",
    errno.EFBIG: "A limit of files (ulimit -f, or of the file system) is reached; raise it",
    errno.ENOTCONN: "The file system is no longer mounted; mount it again",
}


def explain(error: OSError, path: str, where: str) -> MillpondError:
    """Our error for `error`, which happened at `path` while `where` (such as "write")."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        place = os.path.dirname(path) or path
        limit = "The quota is used up" if error.errno == errno.EDQUOT else "No space is left"
        return DiskFull(
            f"{where} {path!r}: {limit} below {place!r}. Free space, or write elsewhere."
        )
    if error.errno == errno.ENOENT and where != "stage":
        return PathNotFound(path, where)
    reason = os.strerror(error.errno) if error.errno else str(error)
    name = errno.errorcode.get(error.errno or 0, "no errno")
    check = _CHECKS.get(error.errno or 0, "Check the file system that holds it")
    return StorageError(f"{where} {path!r}: {reason} ({name}). {check}.")


def make_private(folder: str) -> None:
    """A folder that only this user may look into, and those above it, if they are not there."""
    with explained(folder, "stage"):
        os.makedirs(folder, mode=0o700, exist_ok=True)


@contextmanager
def explained(path: str, where: str) -> Iterator[None]:
    """Turn every `OSError` of the block into the error that `explain` gives."""
    try:
        yield
    except OSError as error:
        raise explain(error, path, where) from error
