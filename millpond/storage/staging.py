"""Files written aside on a file system: private folders, hard links, syncs."""

import errno
import os
import secrets
import stat as modes
from collections.abc import Iterable

from millpond.errors import StorageError
from millpond.storage import paths

# What file systems without hard links answer: FAT, some FUSE mounts, some SMB servers.
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}


def staging_folder(folder: str) -> str:
    """Where this user writes files aside that will lie in `folder`."""
    # One per user: the folder is private, and a team may share the folder above it.
    return os.path.join(folder, f"{paths.STAGING}-{os.geteuid()}")


def staging_file(target: str, tag: str, below: str = "") -> str:
    """A new, empty file in the staging folder beside `target`, or in that of `below`."""
    folder = staging_folder(below or os.path.dirname(target))
    local = os.path.join(folder, paths.staging_name(target, tag))
    for attempt in range(10):
        try:
            _make_private(folder)
            # It exists from now on, so that a neighbour who is done does not find the
            # folder empty and remove it. The mode is the usual one; the folder is private.
            os.close(os.open(local, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o666))
        except FileNotFoundError:
            if attempt == 9:
                raise
        else:
            break
    return local


def make_folder(folder: str) -> None:
    """Make `folder` and those above it where they are missing, durably."""
    made = _missing(folder)
    if made:
        os.makedirs(folder, exist_ok=True)
    for new in made:  # A folder is durable when the one above it is synced.
        sync_folder(os.path.dirname(new))


def _make_private(folder: str) -> None:
    make_folder(os.path.dirname(folder))
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        found = os.lstat(folder)
        foreign = found.st_uid != os.geteuid() and found.st_mode & 0o022
        if not modes.S_ISDIR(found.st_mode) or foreign:
            raise StorageError(
                f"{folder!r} is not a private folder of this user, and files that are being "
                "written would lie in it. Find out who made it, and remove it."
            ) from None


def _missing(folder: str) -> list[str]:
    missing = []
    while not os.path.isdir(folder) and folder != os.path.dirname(folder):
        missing.append(folder)
        folder = os.path.dirname(folder)
    return missing[::-1]


def sync_folder(folder: str) -> None:
    """Make the names in `folder` durable, where the file system can."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    except OSError as error:
        # FUSE and SMB mounts without the call: nothing else can be done there.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF):
            raise
    finally:
        os.close(fd)


def remove_if_empty(folders: Iterable[str]) -> None:
    """Remove those of the folders that are empty; others stay as they are."""
    for folder in folders:
        try:
            os.rmdir(folder)
        except OSError:
            continue  # Not empty, gone already, or not ours to remove: all are fine.


def link_if_absent(target: str, data: bytes) -> bool:
    """Create `target` with `data` if no file has the name. It is never seen half-written."""
    local = staging_file(target, f"put-{secrets.token_hex(8)}")
    try:
        with open(local, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        created = _link(local, target, data)
    finally:
        os.unlink(local)
        remove_if_empty([os.path.dirname(local)])
    if created:
        sync_folder(os.path.dirname(target))
    return created


def _link(local: str, target: str, data: bytes) -> bool:
    try:
        os.link(local, target)
    except OSError as error:
        # The server of a network file system may have made the link and its answer been
        # lost; the client asks again and hears "exists". The count of links knows better.
        if os.stat(local).st_nlink == 2:
            return True
        if error.errno == errno.EEXIST:
            return False
        if error.errno in _NO_LINKS:
            return _create(target, data)
        raise
    return True


def _create(target: str, data: bytes) -> bool:
    """Without hard links: still one winner, but its file grows while it is written."""
    try:
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return False
    try:
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        os.unlink(target)
        raise
    return True
