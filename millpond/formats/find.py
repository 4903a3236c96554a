"""Paths, folders and globs from a user → files, in a fixed order, and hive columns."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import unquote

from millpond.errors import PathNotFound, SchemaMismatch
from millpond.storage import FileInfo, Storage
from millpond.storage.paths import glob_root, is_glob

NO_VALUE = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True, slots=True)
class Found:
    """Files, and for each the values of the `key=value` folders below the path given."""

    files: tuple[FileInfo, ...]
    hive: tuple[tuple[tuple[str, str], ...], ...]


def find_files(
    paths: Sequence[str], storage: Callable[[str], Storage], where: str, *, recursive: bool
) -> Found:
    """The files of each path, in the order of the paths and sorted within one.

    Below a folder, names that begin with `_` are left out, and folders other than
    `key=value` ones are entered only if `recursive`.
    """
    files: list[FileInfo] = []
    hive: list[tuple[tuple[str, str], ...]] = []
    for path in paths:
        store = storage(path)
        before = len(files)
        for file in store.list(path):
            root = store.local_path(path) or path
            folders, name = _below(root, file.path)
            named = is_glob(path) or file.path == root
            entered = recursive or all("=" in folder for folder in folders)
            if named or (entered and not name.startswith("_")):
                files.append(file)
                hive.append(tuple(_pairs(folders)))
        if len(files) == before:
            raise PathNotFound(path, where)
    _check_keys(files, hive, where)
    return Found(tuple(files), tuple(hive))


def _below(root: str, path: str) -> tuple[list[str], str]:
    """The folders of a file that the given path did not name, and the file's own name."""
    if path == root:
        return [], path.rpartition("/")[2]
    prefix = glob_root(root) if is_glob(root) else root.rstrip("/")
    *folders, name = path.removeprefix(prefix).strip("/").split("/")
    return folders, name


def _pairs(folders: Sequence[str]) -> list[tuple[str, str]]:
    pairs = [folder.partition("=") for folder in folders if "=" in folder]
    return [(unquote(name), unquote(value)) for name, _, value in pairs]


def _check_keys(
    files: Sequence[FileInfo], hive: Sequence[tuple[tuple[str, str], ...]], where: str
) -> None:
    for file, pairs in zip(files, hive, strict=True):
        names, first = [name for name, _ in pairs], [name for name, _ in hive[0]]
        if names != first:
            raise SchemaMismatch(
                f"{where}: {files[0].path} lies in folders of {', '.join(first) or 'no key'}, and "
                f"{file.path} of {', '.join(names) or 'no key'}. All files need the same keys."
            )
