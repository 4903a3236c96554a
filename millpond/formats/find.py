"""Paths, folders and globs from a user → files, in a fixed order, and hive columns."""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from urllib.parse import unquote

from millpond.errors import FileUnreadable, PathNotFound, SchemaMismatch, StorageError, warn
from millpond.formats.scan import State
from millpond.schema import Schema
from millpond.storage import FileInfo, Range, Storage
from millpond.storage.commit import is_of_a_commit
from millpond.storage.manifest import Manifest, file_paths, newest_manifest
from millpond.storage.paths import glob_root, is_glob, scheme

# What lies beside data in a folder, and is none; of names in lower case.
_NO_DATA = re.compile(
    r"(readme|licen[cs]e|notice|authors|changelog|success)(\..*)?|.*\.(md|html?|log|ya?ml|crc|md5|sha\d+)"
)
_END_BYTES, _ENDS_AT_ONCE = 64 << 10, 256


@dataclass(frozen=True, slots=True)
class Found:
    """Files, and for each the values of the `key=value` folders below the path given.

    `state` and `schema` are those of the one output that was asked for, if it has manifests; it
    may be without files. `plain_keys` says that no key is written otherwise in the names of
    folders: `a%20b=1`.
    """

    files: tuple[FileInfo, ...]
    hive: tuple[tuple[tuple[str, str], ...], ...]
    schema: Schema | None = None
    plain_keys: bool = True
    state: State | None = None


def find_files(
    paths: Sequence[str], storage: Callable[[str], Storage], where: str, *, recursive: bool,
    endings: tuple[str, ...] = (), others: tuple[str, ...] = (),
) -> Found:  # fmt: skip
    """The files of each path, in the order of the paths and sorted within one.

    A folder with manifests has the files that the newest names, in its order. Below another
    folder, names that begin with `_` are left out, folders other than `key=value` ones are
    entered only if `recursive`, and so are documents and what ends like `others`, files of other
    formats. If any of the rest has one of `endings`, all must: `FileUnreadable` otherwise.
    """
    files: list[FileInfo] = []
    hive: list[tuple[tuple[str, str], ...]] = []
    plain_keys, state, schema = True, None, None
    for path in paths:
        store = storage(path)
        before = len(files)
        root, listed = store.local_path(path) or path.rstrip("/"), list(store.list(path))
        # A folder may be called `a[1]`; what is there is meant literally.
        glob = is_glob(path) and not (listed and listed[0].path.startswith(f"{root}/"))
        newest = None if glob else _newest(store, root, listed)
        if newest is not None and not (newest.number or newest.files):
            listed, newest = _without_unfinished(listed, where), None
        committed = committed_files(store, root, listed, newest, where) if newest else None
        if committed is not None and len(paths) == 1:
            state, schema = State(root, committed[1].number), committed[1].schema
            if not committed[0]:
                return Found((), (), schema, state=state)
        if committed is not None:
            listed = committed[0]
        elif not glob:
            entered = _entered(root, listed, recursive, where)
            listed = _of_format(root, entered, endings, others, where)
        for file in listed:
            pairs = _pairs(_below(glob_root(root) if glob else root, file.path)[0])
            files.append(file)
            hive.append(tuple((unquote(name), unquote(value)) for name, value in pairs))
            plain_keys = plain_keys and not any("%" in name for name, _ in pairs)
        if len(files) == before:
            raise PathNotFound(path, where)
    _check_keys(files, hive, where)
    return Found(tuple(files), tuple(hive), schema, plain_keys, state)


def _entered(root: str, listed: Sequence[FileInfo], recursive: bool, where: str) -> list[FileInfo]:
    """The files of a folder without manifests, or the file that `root` is."""
    entered: list[FileInfo] = []
    deeper = ""
    for file in listed:
        folders, name = _below(root, file.path)
        if file.path == root:
            return [file]
        if not name.startswith("_") and (recursive or all("=" in folder for folder in folders)):
            entered.append(file)
        deeper = deeper or (file.path if folders else "")
    if not entered and deeper and not recursive:
        raise FileUnreadable(
            f"{where}: the files of {root!r} lie in folders below it, such as {deeper!r}. "
            "Pass recursive=True to enter those that are not named key=value."
        )
    return entered


def _of_format(
    root: str, entered: list[FileInfo], endings: tuple[str, ...], others: tuple[str, ...],
    where: str,
) -> list[FileInfo]:  # fmt: skip
    """Those that are data, as `find_files` says."""
    if not endings or [file.path for file in entered] == [root]:
        return entered
    data: list[FileInfo] = []
    unknown: list[FileInfo] = []
    for file in entered:
        name = file.path.rpartition("/")[2].lower()
        if name.endswith(endings):
            data.append(file)
        elif not name.endswith(others) and not _NO_DATA.fullmatch(name):
            unknown.append(file)
    if entered and not data and not unknown:
        raise FileUnreadable(
            f"{where}: no file in {root!r} ends in {', '.join(endings)}; there is "
            f"{entered[0].path!r}. Name the files, or all of them by {root + '/*'!r}."
        )
    if data and unknown:
        raise FileUnreadable(
            f"{where}: {root!r} has {unknown[0].path!r} beside files such as {data[0].path!r}, and "
            "its name does not tell whether to read it. Name the files by a pattern, such as "
            f"{root + '/**/*' + endings[0]!r}."
        )
    return data or unknown


def with_ends(found: Found, storage: Callable[[str], Storage]) -> Found:
    """The same, the version of each file on a file system with a hash of its last 64 KiB.

    `rsync -t` and `cp -p` set times back, and many shared file systems keep whole seconds. A
    store's etag tells by itself.
    """
    files, stores = list(found.files), dict[int, tuple[Storage, list[int]]]()
    for i, file in enumerate(files):
        store = storage(file.path)
        if store.local_path(file.path) is not None:
            stores.setdefault(id(store), (store, []))[1].append(i)
    for store, places in stores.values():
        for at in range(0, len(places), _ENDS_AT_ONCE):
            some = places[at : at + _ENDS_AT_ONCE]
            for i, end in zip(some, store.read_many([_end(files[i]) for i in some]), strict=True):
                told = hashlib.blake2b(end, digest_size=8).hexdigest()
                files[i] = replace(files[i], version=f"{files[i].version}.{told}")
    return replace(found, files=tuple(files))


def _end(file: FileInfo) -> Range:
    length = min(file.size_bytes, _END_BYTES)
    return Range(file.path, file.size_bytes - length, length)


def _newest(store: Storage, root: str, listed: Sequence[FileInfo]) -> Manifest | None:
    """The newest manifest of a folder; None of one file, and of a web server."""
    if any(info.path == root for info in listed) or scheme(root) in ("http", "https"):
        return None
    return newest_manifest(store, root)


def _without_unfinished(listed: list[FileInfo], where: str) -> list[FileInfo]:
    """The files of a folder whose first commit has not taken place, but for those of that."""
    finished = [info for info in listed if not is_of_a_commit(info.path)]
    if len(finished) < len(listed):
        warn(
            f"{where}: {len(listed) - len(finished)} files of a write that is under way or was "
            "killed are not read. Run that script again, or write to another folder."
        )
    return finished


def committed_files(
    store: Storage, root: str, listed: Sequence[FileInfo], newest: Manifest, where: str
) -> tuple[list[FileInfo], Manifest]:
    """The files that the newest manifest of a folder names.

    Raises `StorageError` for a file that is missing or has another size. Files beside
    those are left out, with a warning.
    """
    known = {info.path: info for info in listed}
    paths = file_paths(store, root, newest)
    files = [known.get(path) or store.stat(path) for path in paths]
    for path, info, said in zip(paths, files, newest.files, strict=True):
        if info is None or info.size_bytes != said.size_bytes:
            has = "is missing" if info is None else f"has {info.size_bytes} bytes"
            raise StorageError(
                f"{where}: {path!r} {has}, and manifest {newest.number} says {said.size_bytes} "
                "bytes. It was changed or removed after it was committed: restore it, or write "
                "the output again."
            )
    named = set(paths)
    others = [p for p in known if p not in named and not p.rpartition("/")[2].startswith("_")]
    if others:
        warn(
            f"{where}: {len(others)} files beside those that were committed are not read, such as "
            f"{others[0]!r}. They belong to a write that is under way or was killed (`millpond "
            "gc` removes those), or came there in another way: read them by their own names."
        )
    return [info for info in files if info is not None], newest


def _below(root: str, path: str) -> tuple[list[str], str]:
    """The folders of a file below `root`, and the file's own name."""
    if path == root:
        return [], path.rpartition("/")[2]
    *folders, name = path.removeprefix(root.rstrip("/")).strip("/").split("/")
    return folders, name


def _pairs(folders: Sequence[str]) -> list[tuple[str, str]]:
    pairs = [folder.partition("=") for folder in folders if "=" in folder]
    return [(name, value) for name, _, value in pairs]


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
