"""This machine's file system, and any shared file system mounted on it.

Correct without trusting directory listings or times: a file is visible by a rename
or a hard link only, complete and synced before that. Staged files lie in a private,
hidden folder beside their target, so the rename never crosses file systems.
"""

import os
import shutil
import stat as modes
from collections.abc import Iterable, Iterator, Sequence

from millpond.errors import PathNotFound, StorageError
from millpond.storage.oserrors import explain, explained
from millpond.storage.paths import (
    check_scratch,
    glob_regex,
    glob_root,
    hidden,
    is_glob,
    plain,
    scheme,
)
from millpond.storage.preads import read_files
from millpond.storage.ranges import merge, split
from millpond.storage.staging import (
    link_if_absent,
    make_folder,
    remove_if_empty,
    staging_file,
    sync_folder,
)
from millpond.storage.values import Buffers, FileInfo, Range, Staged


class LocalStorage:
    """Files by path, `~/…` or `file://` URI. Given and returned paths are absolute."""

    looks = None

    def list(self, prefix: str) -> Iterator[FileInfo]:
        """All files at or below `prefix`, a folder, a file or a glob, sorted by path.

        Names that begin with a dot and `_manifest` are left out below a folder and
        behind a wildcard. Links to folders are followed, but never in a circle.
        """
        path = plain(prefix)
        with explained(path, "list"):
            # A name that exists is meant literally, even with brackets in it.
            if is_glob(path) and not os.path.lexists(path):
                matches = glob_regex(path).fullmatch
                # Hidden folders are walked for patterns that name one: `x/.h*/*`.
                every = any(hidden(part) for part in path.split("/"))
                shown = _walk(glob_root(path) or "/", every=every)
                found = [info for info in shown if matches(info.path)]
            elif (info := _info(path)) is not None:
                found = [info]
            else:
                found = list(_walk(path)) if os.path.isdir(path) else []
        return iter(sorted(found, key=lambda info: info.path))

    def stat(self, path: str) -> FileInfo | None:
        """The file as it is now; None where there is none, or a folder."""
        local = plain(path)
        with explained(local, "stat"):
            return _info(local)

    def read_many(self, ranges: Sequence[Range]) -> Buffers:
        """The bytes of each range, in the order asked; short only at the end of a file."""
        wanted = plain_ranges(ranges)
        reads = merge(wanted, size_of)
        return split(wanted, reads, read_files(reads))

    def stage(self, path: str, tag: str, *, below: str = "") -> Staged:
        """Begin to write `path` aside; the empty file `local` is there to be written.

        With `below`, the folders between that one and the file are made by `publish`.
        """
        target = plain(path)
        with explained(target, "stage"):
            return Staged(target, staging_file(target, tag, plain(below) if below else ""))

    def seal(self, staged: Staged) -> Staged:
        """Sync the file to the disk, and note its size."""
        with explained(staged.local, "seal"):
            fd = os.open(staged.local, os.O_RDONLY)
            try:
                os.fsync(fd)
                size = os.fstat(fd).st_size
            finally:
                os.close(fd)
        return Staged(staged.path, staged.local, size, staged.upload)

    def publish(self, staged: Sequence[Staged]) -> None:
        """Rename sealed files to their final names, and sync the folders.

        A file that is there already is replaced. The files appear one after the other;
        what must appear as a whole is named by a manifest (`storage.commit`).
        """
        for file in staged:
            with explained(file.path, "publish"):
                _check_sealed(file)
                make_folder(os.path.dirname(file.path))
                os.replace(file.local, file.path)
        folders = {os.path.dirname(file.path) for file in staged}
        for folder in sorted(folders):
            with explained(folder, "publish"):
                sync_folder(folder)
        remove_if_empty({os.path.dirname(file.local) for file in staged})

    def discard(self, staged: Sequence[Staged]) -> None:
        """Remove what was staged. The folder of the target stays, even if empty."""
        self.delete([file.local for file in staged])
        remove_if_empty({os.path.dirname(file.local) for file in staged})

    def put_if_absent(self, path: str, data: bytes) -> bool:
        """Create `path` with `data`, whole and synced, in one step; False if it exists."""
        target = plain(path)
        with explained(target, "create"):
            return link_if_absent(target, data)

    def check_atomic(self, path: str) -> None:
        """Nothing to check: a hard link, or exclusive creation, has one winner."""

    def delete(self, paths: Iterable[str]) -> None:
        """Remove files; those that are gone already are no error."""
        for path in paths:
            local = plain(path)
            try:
                os.unlink(local)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                raise explain(error, local, "delete") from error

    def remove_scratch(self, folder: str) -> None:
        """Remove a folder of Millpond's own and all below it; no error if it is gone."""
        local = check_scratch(plain(folder))
        with explained(local, "remove"):
            if os.path.lexists(local):
                shutil.rmtree(local)

    def local_path(self, path: str) -> str | None:
        """The absolute path, for a path of this machine; None for a URI of another store."""
        return plain(path) if scheme(path) in ("", "file") else None

    def words(self) -> dict[str, str]:
        """Nothing: a file needs no key."""
        return {}

    def strike(self, text: str) -> str:
        """The text as it is: there are no secrets."""
        return text


def _check_sealed(file: Staged) -> None:
    assert file.size_bytes >= 0, f"{file.path} was not sealed"
    try:
        size = os.stat(file.local).st_size
    except FileNotFoundError as error:
        raise StorageError(
            f"publish {file.path!r}: its staged file {file.local!r} is gone. "
            "It was published or discarded before, or another process cleaned up."
        ) from error
    if size != file.size_bytes:
        raise StorageError(
            f"publish {file.path!r}: {file.local!r} has {size} bytes, but {file.size_bytes} "
            "when it was sealed. Something wrote to it afterwards."
        )


def _info(path: str) -> FileInfo | None:
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not modes.S_ISREG(found.st_mode):
        return None
    # The inode too: 3FS and other shared file systems keep whole seconds, and a file is
    # replaced by a rename.
    version = f"{found.st_mtime_ns}.{found.st_ino}"
    return FileInfo(path, found.st_size, version, int(found.st_mtime))


def plain_ranges(ranges: Sequence[Range]) -> list[Range]:
    """The ranges with absolute paths. There are many ranges of few files, as a rule."""
    names = {path: plain(path) for path in {r.path for r in ranges}}
    return [r if names[r.path] == r.path else r._replace(path=names[r.path]) for r in ranges]


def size_of(path: str) -> int:
    """The size of a file that must exist, by its absolute path."""
    with explained(path, "read"):
        info = _info(path)
    if info is None:
        raise PathNotFound(path, "read")
    return info.size_bytes


def _walk(
    folder: str, *, every: bool = False, above: frozenset[tuple[int, int]] = frozenset()
) -> Iterator[FileInfo]:
    """All regular files below `folder`; nothing where it is gone by now."""
    try:
        here = os.stat(folder)
        entries = list(os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return
    identity = (here.st_dev, here.st_ino)
    if identity in above:  # A link led back to a folder that we are in.
        return
    for entry in entries:
        if hidden(entry.name) and not every:
            continue
        if entry.is_dir():
            yield from _walk(entry.path, every=every, above=above | {identity})
        elif (info := _info(entry.path)) is not None:
            yield info
