"""Outputs that appear whole or not at all, whoever else writes to the same place.

A commit publishes its files under names that no other commit has, and then creates the
next manifest with put-if-absent. Before that moment readers of the manifest see the old
state, after it the new one. A commit that dies leaves files that no manifest names;
`collect` removes them.
"""

import logging
import re
import secrets
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from millpond.errors import MillpondError, NotAtomic, SchemaMismatch, StorageError, TargetNotEmpty
from millpond.schema import Schema
from millpond.storage.manifest import (
    DataFile,
    Manifest,
    file_paths,
    manifest_path,
    newest_manifest,
    read_manifest,
)
from millpond.storage.paths import STAGING
from millpond.storage.protocol import Storage, put_new
from millpond.storage.values import FileInfo, OutputFile, Staged

log = logging.getLogger(__name__)

Mode = Literal["error", "append", "overwrite"]

# A commit between its first file and its manifest may take this long, at most.
GRACE_S = 24 * 3600
_OURS = re.compile(r"\.mp-[0-9a-f]{16}(\.|$)")
# What the first commit in a place calls its files.
_PLAIN = re.compile(r"part-\d{5,}(-\d+)?\.[^/]+")


class Uncertain(StorageError):
    """The store failed in the moment of commit, and whether it took place is not known."""


def new_commit_id() -> str:
    """An id for one commit. It must be in the names of all files of it (`marked`)."""
    return secrets.token_hex(8)


def marked(name: str, commit_id: str) -> str:
    """A file's name with the id of its commit in it.

    >>> marked("part-00007.parquet", "9f3a" * 4)
    'part-00007.mp-9f3a9f3a9f3a9f3a.parquet'
    """
    stem, dot, ending = name.partition(".")
    return f"{stem}.mp-{commit_id}{dot}{ending}"


def commit_id_in(name: str) -> str:
    """The id that a file's name bears; "" if it bears none."""
    found = _OURS.search(name)
    return found.group()[4:20] if found else ""


def is_of_a_commit(path: str) -> bool:
    """Whether a file has a name that only commits give, where the first has not taken place."""
    name = path.rpartition("/")[2]
    return bool(commit_id_in(name) or _PLAIN.fullmatch(name))


def plain_name(path: str) -> str:
    """A file's path without the id of its commit, if Millpond gave it its name."""
    folder, slash, name = path.rpartition("/")
    without = _OURS.sub(r"\1", name)
    return folder + slash + without if _PLAIN.fullmatch(without) else path


def files_of(storage: Storage, root: str, manifest: Manifest, commit_id: str) -> list[DataFile]:
    """The files of a manifest that one commit has brought."""
    first = read_manifest(storage, root, 0)
    began = first is not None and first.id == commit_id and not first.files
    return [
        file
        for file in manifest.files
        if commit_id_in(file.path) == commit_id
        or (began and _PLAIN.fullmatch(file.path.rpartition("/")[2]))
    ]


def check_target(storage: Storage, root: str, mode: Mode, where: str) -> None:
    """Refuse early what `commit` would refuse: files that are there, a store that cannot append."""
    if mode == "append":
        storage.check_atomic(manifest_path(root, 0))
    if mode == "error":
        base = newest_manifest(storage, root)
        _check_empty(storage, root, base, where)
        if base is not None and (base.number or base.files):
            raise TargetNotEmpty(root, where)


def find_commit(storage: Storage, root: str, commit_id: str) -> Manifest | None:
    """The present state of `root`, if this commit is part of it."""
    newest = newest_manifest(storage, root)
    if newest is None or not newest.number:
        return None
    mine = newest.id == commit_id or files_of(storage, root, newest, commit_id)
    return newest if mine else None


def commit(
    storage: Storage,
    root: str,
    outputs: Sequence[OutputFile],
    *,
    commit_id: str,
    schema: Schema,
    mode: Mode = "error",
    fingerprint: str = "",
) -> Manifest:
    """Make `outputs` the content of `root` ("overwrite"), add them, or refuse ("error").

    The files bear the commit's id in their names; `part-00000.mp-ID.parquet` of the first
    commit in a place becomes `part-00000.parquet`, since no other commit names files so.

    Files of the same kind that lie in `root` without a manifest are its content too:
    "append" keeps them, "overwrite" removes them, "error" refuses. Concurrent appends
    all succeed. If the commit fails, its files are removed and the content is as it was;
    only after `Uncertain` it may be the old or the new one.

    On a store that ignores conditional writes, "append" is refused (`NotAtomic`); the
    other modes work, and a second writer at the same moment is noticed only if it was
    first to finish.
    """
    mine = tuple(_described(storage, root, output, commit_id) for output in outputs)
    made = Manifest(0, commit_id, mine, schema, fingerprint)
    staged = [output.staged for output in outputs]
    try:
        base = _begin(storage, root, mode, made)
        if base.number == 0 and base.id == commit_id and not base.files:
            made = replace(made, files=tuple(map(_plain_file, made.files)))
            staged = [replace(one, path=plain_name(one.path)) for one in staged]
        storage.publish([one for one in staged if not is_published(storage, one)])
        made = _create(storage, root, mode, base, made)
    except Uncertain:
        raise  # The manifest may be there: its files stay.
    except Exception:
        # Whatever went wrong, only files of this commit have its names.
        try:
            storage.discard(staged)
            storage.delete([one.path for one in staged])
        except MillpondError as error:  # What went wrong first is what matters.
            log.warning("files of a write to %s that failed were left: %s", root, error)
        raise
    if mode == "overwrite":
        _remove_replaced(storage, root, base, made)
    return made


def unneeded(
    storage: Storage, root: str, *, grace_s: float = GRACE_S, keep: int = 2, now_s: float = 0
) -> list[FileInfo]:
    """What dead commits left below `root`: staged files, and files that no manifest names.

    Only what bears a commit's id in its name, and is older than `grace_s`: a commit that is
    under way needs its files, for at most that long. What one of the `keep` newest
    manifests names stays, for those who still read an older state. Lists the root.
    """
    # Staging first: a file that is published after this line is too young to be removed.
    oldest = (now_s or time.time()) - grace_s
    leftovers = [
        info
        for pattern in (f"{STAGING}*/**", f"**/{STAGING}*/**")
        for info in storage.list(f"{_escaped(root)}/{pattern}")
    ]
    newest = newest_manifest(storage, root)
    if newest is not None:
        older = range(max(0, newest.number - keep + 1), newest.number)
        kept = [newest, *filter(None, (read_manifest(storage, root, number) for number in older))]
        named = {path for manifest in kept for path in file_paths(storage, root, manifest)}
        # Plain names are those of the first commit, which died if there is no other state.
        ours = is_of_a_commit if not newest.number and not newest.files else commit_id_in
        for info in storage.list(root):
            if info.path not in named and ours(info.path.rpartition("/")[2]):
                leftovers.append(info)
    return sorted(
        {info for info in leftovers if info.modified_s <= oldest}, key=lambda info: info.path
    )


def collect(
    storage: Storage, root: str, *, grace_s: float = GRACE_S, keep: int = 2, now_s: float = 0
) -> list[str]:
    """Remove what is `unneeded`; the paths that were removed."""
    removed = [
        info.path for info in unneeded(storage, root, grace_s=grace_s, keep=keep, now_s=now_s)
    ]
    storage.delete(removed)
    return removed


def _plain_file(file: DataFile) -> DataFile:
    return replace(file, path=plain_name(file.path))


def _described(storage: Storage, root: str, output: OutputFile, commit_id: str) -> DataFile:
    base = _base(storage, root)
    path = storage.local_path(output.staged.path) or output.staged.path
    assert path.startswith(base), f"{path} is not below {base}"
    name = path.removeprefix(base)
    assert f".mp-{commit_id}." in name, f"{name} does not bear the id of its commit"
    return DataFile(name, output.rows, output.staged.size_bytes, output.checksum)


def is_published(storage: Storage, staged: Staged) -> bool:
    """Whether an earlier attempt at this commit, which was killed, gave the file its name."""
    # What this run has uploaded itself is there; what a journal names may not be any more.
    if (staged.upload and staged.local) or storage.stat(staged.aside) is not None:
        return False
    there = storage.stat(staged.path)
    return there is not None and there.size_bytes == staged.size_bytes


def _begin(storage: Storage, root: str, mode: Mode, mine: Manifest) -> Manifest:
    """The state that this commit starts from; refused if `mode` does not allow it.

    A root without manifests gets number 0, before any file is published there. So files
    of a commit that is under way are never taken for content that somebody left.
    """
    base = newest_manifest(storage, root)
    if mode == "error":
        _check_empty(storage, root, base, "write")
    if base is None:
        first = Manifest(0, mine.id, _lying_there(storage, root, mine), Schema(()))
        _put_once(storage, manifest_path(root, 0), first, mode)
        base = newest_manifest(storage, root)
        assert base is not None, "manifest 0 was created"
    _check_state(root, mode, base, mine)
    return base


def _check_empty(storage: Storage, root: str, base: Manifest | None, where: str) -> None:
    files = (info.path.rpartition("/")[2] for info in storage.list(root))
    # Once a commit has begun here, its files are not in the way of another.
    begun = base is not None
    if any(not (begun and (_OURS.search(name) or _PLAIN.fullmatch(name))) for name in files):
        raise TargetNotEmpty(root, where)


def _check_state(root: str, mode: Mode, base: Manifest, mine: Manifest) -> None:
    if mode == "error" and (base.number or base.files):
        raise TargetNotEmpty(root, "write")
    if mode == "append" and base.number and base.schema != mine.schema:
        raise SchemaMismatch(
            f"write: {root!r} holds the columns ({base.schema}), and the new rows are "
            f"({mine.schema}). Select and cast to the same columns in the same order, or use "
            "mode='overwrite'."
        )


def _lying_there(storage: Storage, root: str, mine: Manifest) -> tuple[DataFile, ...]:
    """Files of the same kind that lie in `root` without a manifest: notes are no content."""
    endings = {file.path.partition(f".mp-{mine.id}")[2] for file in mine.files}
    base = _base(storage, root)
    return tuple(
        DataFile(info.path.removeprefix(base), -1, info.size_bytes)
        for info in storage.list(root)
        if not endings or info.path.endswith(tuple(endings))
    )


def _create(storage: Storage, root: str, mode: Mode, base: Manifest, mine: Manifest) -> Manifest:
    """Create the manifest after `base`, or after those that others have created since."""
    while True:
        kept = base.files if mode == "append" else ()
        made = replace(mine, number=base.number + 1, files=kept + mine.files)
        if _put(storage, root, made, mode):
            return made
        # Somebody was faster. Each time, a commit of theirs is complete: this ends.
        newest = newest_manifest(storage, root)
        assert newest is not None, "a manifest is never removed"
        base = newest
        _check_state(root, mode, base, mine)


def _put(storage: Storage, root: str, made: Manifest, mode: Mode) -> bool:
    path = manifest_path(root, made.number)
    try:
        if _put_once(storage, path, made, mode):
            return True
        there = read_manifest(storage, root, made.number)
    except NotAtomic:
        raise
    except StorageError as error:
        raise Uncertain(
            f"write {root!r}: whether manifest {made.number} was created is not known, because the "
            f"store failed in that moment. Its files were kept. Look at {path!r}: if its id is "
            f"{made.id!r}, the write is complete; if not, write again. ({error})"
        ) from error
    # An answer can be lost on its way; the id says whose manifest it is.
    return there is not None and there.id == made.id


def _put_once(storage: Storage, path: str, made: Manifest, mode: Mode) -> bool:
    if mode == "append":
        return storage.put_if_absent(path, made.to_json())
    # On a store that ignores conditions another may have done the same in the same
    # moment. Then what is there decides, so `put_new` is not believed at once.
    put_new(storage, path, made.to_json())
    return False


def _remove_replaced(storage: Storage, root: str, base: Manifest, made: Manifest) -> None:
    """Remove the files of the states before, so that a plain listing shows the new one."""
    replaced = set(base.files)
    try:
        for number in range(base.number + 1, made.number):
            between = read_manifest(storage, root, number)
            replaced |= set(between.files if between else ())
        gone = tuple(sorted(replaced - set(made.files), key=lambda file: file.path))
        storage.delete(file_paths(storage, root, replace(made, files=gone)))
    except MillpondError as error:
        # The commit stands. `collect` removes what bears a commit's id.
        log.warning("files that %s replaced could not all be removed: %s", root, error)


def _base(storage: Storage, root: str) -> str:
    return (storage.local_path(root) or root).rstrip("/") + "/"


def _escaped(root: str) -> str:
    """`root` so that no character of it is taken for a wildcard."""
    return re.sub(r"([*?\[])", r"[\1]", root.rstrip("/"))


def check_present(storage: Storage, root: str, manifest: Manifest) -> None:
    """Raise if a file of the manifest is missing or has another size than was committed."""
    for file, path in zip(manifest.files, file_paths(storage, root, manifest), strict=True):
        found = storage.stat(path)
        if found is None or found.size_bytes != file.size_bytes:
            has = "is missing" if found is None else f"has {found.size_bytes} bytes"
            raise StorageError(
                f"read {root!r}: {path!r} {has}, and manifest {manifest.number} says "
                f"{file.size_bytes} bytes. It was changed or removed after it was committed."
            )
