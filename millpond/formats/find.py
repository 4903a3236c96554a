"""Paths, folders and globs from a user → files, in a fixed order."""

from collections.abc import Callable, Sequence

from millpond.errors import PathNotFound
from millpond.storage import FileInfo, Storage


def find_files(
    paths: Sequence[str], storage: Callable[[str], Storage], where: str
) -> tuple[FileInfo, ...]:
    """The files of each path, in the order of the paths and sorted within one."""
    found: list[FileInfo] = []
    for path in paths:
        here = list(storage(path).list(path))
        if not here:
            raise PathNotFound(path, where)
        found += here
    return tuple(found)
