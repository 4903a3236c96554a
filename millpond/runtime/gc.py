"""Clearing a data root: what no session that lives, and no rerun, can need.

A session that lives is never touched: neither what it wrote nor what it reuses. It says
so in a file (`presence`) before it relies on anything, and then looks whether the
journal still has it; here the journal goes first, files are listed, those of the sessions
are read after that, and only then do parts go. So whoever comes second gives way, and two
clearings at once are safe.

Each finder is a place to look; further kinds of leftovers are further finders.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from glob import escape

from millpond.errors import PathNotFound
from millpond.runtime.journal import segments, session_of
from millpond.runtime.presence import DEAD_S, Seen, clock_s, sessions
from millpond.storage import FileInfo, Range, Storage, open_storage
from millpond.storage.commit import GRACE_S, unneeded
from millpond.storage.manifest import newest_manifest
from millpond.storage.paths import STAGING, plain, scheme
from millpond.storage.scratch import abandoned, remove_abandoned


@dataclass(frozen=True, slots=True)
class Freed:
    """Files and bytes that went (or would go), in all and by kind."""

    files: int = 0
    size_bytes: int = 0
    kinds: dict[str, tuple[int, int]] = field(default_factory=dict)

    def plus(self, kind: str, size_bytes: int, files: int = 1) -> "Freed":
        n, size = self.kinds.get(kind, (0, 0))
        kinds = {**self.kinds, kind: (n + files, size + size_bytes)}
        return Freed(self.files + files, self.size_bytes + size_bytes, kinds)


@dataclass(frozen=True, slots=True)
class Leftover:
    """A file to remove, unless the `session` that left it lives or is used; its kind in words."""

    kind: str
    file: FileInfo
    session: str = ""


@dataclass(frozen=True, slots=True)
class Root:
    """A data root as it was found. `cutoff_s`: what is older may not be resumed any more."""

    storage: Storage
    path: str
    now_s: int
    cutoff_s: int | None
    seen: dict[str, Seen]
    gone: frozenset[str] = frozenset()  # Removed by now, or it would be.

    def needed(self, session: str) -> bool:
        """Does a session that lives rely on what `session` left, or is it that one?"""
        living = [seen for seen in self.seen.values() if seen.alive]
        return any(session == seen.session or session in seen.uses for seen in living)

    def expired(self, file: FileInfo) -> bool:
        return self.cutoff_s is not None and file.modified_s <= self.cutoff_s

    def files(self, folder: str) -> Iterator[FileInfo]:
        return self.storage.list(f"{self.path}/{folder}")


Finder = Callable[[Root], Iterator[Leftover]]


def gc(
    data_root: str,
    *,
    older_than: float | None = None,
    dry_run: bool = False,
    storage_options: dict[str, str] | None = None,
) -> Freed:
    """Remove what no session that lives, and no rerun, can need from `data_root`.

    That is: parts and staged files that no journal names, half-written files, superseded
    receipts, and the scratch of dead sessions on this machine. With `older_than`
    (seconds), also finished work whose journal was last written before that: it will be
    computed again. `dry_run` only counts. Lists the data root and reads its journal.

    The path may be an output folder, too: then staged files go, and files of killed writes
    that neither of its two newest manifests names, if older than a day or `older_than`.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as root:
    ...     with millpond.init(data_root=root, shape="staged") as sp:
    ...         rows = sp.from_items([1, 2]).sort("item").take_all()
    ...     kept, all = (gc(root, older_than=age).kinds.get("parts", (0, 0)) for age in (None, 0))
    >>> kept[0], all[0]
    (0, 1)
    """
    path = data_root.rstrip("/") if "://" in data_root else plain(data_root)
    storage = open_storage(path, storage_options)
    if next(iter(storage.list(path)), None) is None:
        raise PathNotFound(path, "gc")
    if newest_manifest(storage, path) is not None:
        return _of_output(storage, path, older_than, dry_run)
    now_s = clock_s(storage, path)
    cutoff_s = None if older_than is None else int(now_s - older_than)
    root = Root(storage, path, now_s, cutoff_s, sessions(storage, path, now_s))
    freed = Freed()
    for finders in _PHASES:
        found = [leftover for finder in finders for leftover in finder(root)]
        # Not before the files were listed: a session that began since is seen now.
        root = replace(root, seen=sessions(storage, path, now_s))
        found = [one for one in found if not one.session or not root.needed(one.session)]
        paths = [one.file.path for one in found]
        root = replace(root, gone=root.gone.union(paths))
        for one in found:
            freed = freed.plus(one.kind, one.file.size_bytes)
        if not dry_run:
            storage.delete(paths)
    if not dry_run:
        _remove_empty(root)
    return _with_scratch(freed, dry_run)


def _of_output(storage: Storage, path: str, older_than: float | None, dry_run: bool) -> Freed:
    """A folder with manifests: what dead commits have left there."""
    grace_s = GRACE_S if older_than is None else older_than
    found = unneeded(storage, path, grace_s=grace_s)
    freed = Freed()
    for file in found:
        kind = "staged files" if STAGING in file.path else "files of no manifest"
        freed = freed.plus(kind, file.size_bytes)
    if not dry_run:
        storage.delete([file.path for file in found])
    return freed


# ---- what is looked for --------------------------------------------------------------


def expired_segments(root: Root) -> Iterator[Leftover]:
    """All of a dead session's journal, once the last of it is too old."""
    files = segments(root.storage, root.path)
    young = {session_of(file.path) for file in files if not root.expired(file)}
    for file in files:
        session = session_of(file.path)
        if session not in young:
            yield Leftover("journal segments", file, session)


def parts(root: Root) -> Iterator[Leftover]:
    """Of dead sessions: parts that no journal names, and rows of computed frames."""
    named = {path for kind, path in _recorded(root) if kind == "part"}
    for file in root.files("parts"):
        inside = file.path[len(root.path) + 1 :]
        session = inside.split("/")[1].partition("-")[0]
        if inside not in named:
            yield Leftover("parts", file, session)
    for file in root.files("kept"):
        yield Leftover("kept frames", file, file.path[len(root.path) + 1 :].split("/")[1])


def staged_files(root: Root) -> Iterator[Leftover]:
    """Output files that dead sessions wrote aside, and that no journal names."""
    named = {os.path.basename(path) for kind, path in _recorded(root) if kind == "file"}
    dead = [seen for seen in root.seen.values() if not seen.alive]
    for target in sorted({target for seen in dead for target in seen.targets}):
        if scheme(target) != scheme(root.path):
            continue  # Of a store that was not opened: `gc` of the output itself clears there.
        for file in root.storage.list(f"{escape(target.rstrip('/'))}/**/{STAGING}*/*"):
            name = os.path.basename(file.path).removeprefix("tmp_")  # Which DuckDB adds.
            session = name.partition("-")[0]
            if session in root.seen and name not in named:
                yield Leftover("staged files", file, session)


def half_written(root: Root) -> Iterator[Leftover]:
    """Small files of the data root itself whose writer died in the middle."""
    if root.storage.local_path(root.path) is None:
        return  # An object appears whole or not at all.
    for folder in ("journal", "sessions", "events", "published/*"):
        for file in root.storage.list(f"{escape(root.path)}/{folder}/{STAGING}-*/*"):
            if root.now_s - file.modified_s >= DEAD_S:
                yield Leftover("half-written files", file)


def receipts(root: Root) -> Iterator[Leftover]:
    """Receipts that a newer one of their target replaces; with a cutoff, finished old ones."""
    by_target: dict[str, list[FileInfo]] = {}
    for file in root.files("published"):
        by_target.setdefault(os.path.dirname(file.path), []).append(file)
    for files in by_target.values():
        for file in files[:-1]:
            yield Leftover("receipts", file)
        if root.expired(files[-1]) and _is_finished(root.storage, files[-1]):
            yield Leftover("receipts", files[-1])


def old_events(root: Root) -> Iterator[Leftover]:
    for file in root.files("events"):
        if root.expired(file):
            yield Leftover("events", file)


def dead_sessions(root: Root) -> Iterator[Leftover]:
    """The files that said that a session lived; last, because they say where to look."""
    for file in root.files("sessions"):
        seen = root.seen.get(os.path.basename(file.path).partition(".")[0])
        if seen is not None and not seen.alive:
            yield Leftover("session files", file)


# The journal before the parts that it names: see the top.
_PHASES: Sequence[Sequence[Finder]] = (
    (expired_segments,),
    (parts, staged_files, half_written, receipts, old_events),
    (dead_sessions,),
)


def _recorded(root: Root) -> Iterator[tuple[str, str]]:
    """("part", path below the root) and ("file", staged name) of all records that there are."""
    for file in segments(root.storage, root.path):
        if file.path in root.gone:
            continue
        with suppress(PathNotFound):  # Another clearing was here.
            data = bytes(root.storage.read_many([Range(file.path, 0, file.size_bytes)])[0])
            for line in data.splitlines():
                with suppress(ValueError, KeyError, TypeError):
                    record = json.loads(line)
                    if "part" in record:
                        yield "part", str(record["part"]["path"])
                    for one in record.get("files", ()):
                        yield "file", str(one["aside"])


def _is_finished(storage: Storage, receipt: FileInfo) -> bool:
    """Whether nothing that the receipt names still waits for its name."""
    try:
        data = bytes(storage.read_many([Range(receipt.path, 0, receipt.size_bytes)])[0])
        asides = [file["upload"] or file["local"] for file in json.loads(data)["files"]]
        return all(storage.stat(str(aside)) is None for aside in asides)
    except (ValueError, KeyError, TypeError, PathNotFound):
        return True


def _remove_empty(root: Root) -> None:
    """Folders of dead sessions that have nothing left in them; object stores have none."""
    local = root.storage.local_path(root.path)
    for kind in ("parts", "kept") if local else ():
        top = os.path.join(str(local), kind)
        for folder, _, _ in os.walk(top, topdown=False):
            session = os.path.relpath(folder, top).split("/")[0].partition("-")[0]
            if folder != top and not root.needed(session):
                with suppress(OSError):  # Not empty.
                    os.rmdir(folder)


def _with_scratch(freed: Freed, dry_run: bool) -> Freed:
    """What dead sessions left on this machine, which need not be those of one data root."""
    for folder in abandoned():
        sizes = [
            os.lstat(os.path.join(at, name)).st_size
            for at, _, names in os.walk(folder)
            for name in names
        ]
        freed = freed.plus("scratch", sum(sizes), len(sizes))
        if not dry_run:
            remove_abandoned(folder)
    return freed
