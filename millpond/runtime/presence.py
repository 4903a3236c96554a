"""Which sessions of a data root live, on any storage: each keeps a small file of its own fresh.

A lock is no use between machines, so a session is taken for dead when its file is ten
minutes old by the store's own clock; or at once, on the machine where it ran, when its
process is gone. The file also names what the session relies on:
sessions whose results it reuses, and folders that it writes files beside.
"""

import json
import os
import secrets
import threading
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from millpond.errors import MillpondError, PathNotFound
from millpond.storage import FileInfo, Range, Storage, put_new

FRESH_S, DEAD_S = 60.0, 600


class Presence:
    """The file of one session, from `begin` to `end`; written anew once a minute."""

    def __init__(self, storage: Storage, root: str, session: str) -> None:
        self._storage, self._folder, self._session = storage, _folder(root), session
        self._uses: set[str] = set()
        self._targets: set[str] = set()
        self._number = 0
        self._lock = threading.Lock()
        self._ended = threading.Event()

    def begin(self) -> None:
        self._write()
        threading.Thread(target=self._keep_fresh, name="millpond-presence", daemon=True).start()

    def announce(self, *, uses: Iterable[str] = (), targets: Iterable[str] = ()) -> bool:
        """Durably, before it is relied on: sessions, folders. False if both were known."""
        new_uses, new_targets = set(uses) - self._uses, set(targets) - self._targets
        if new_uses or new_targets:
            self._uses |= new_uses
            self._targets |= new_targets
            self._write()
        return bool(new_uses or new_targets)

    def end(self) -> None:
        """The session ended well: nothing of it is for others to clear."""
        self._ended.set()
        with self._lock, suppress(MillpondError):  # What stays is taken for dead in ten minutes.
            self._storage.delete([self._path(self._number - 1)])

    def _keep_fresh(self) -> None:
        while not self._ended.wait(FRESH_S):
            with suppress(MillpondError):  # The next one may succeed; there are ten.
                self._write()

    def _write(self) -> None:
        with self._lock:
            if self._ended.is_set():
                return
            told = {
                "process": [_machine(), os.getpid(), _started(os.getpid())],
                "uses": sorted(self._uses),
                "targets": sorted(self._targets),
            }
            while not put_new(self._storage, self._path(self._number), json.dumps(told).encode()):
                self._number += 1
            if self._number:
                self._storage.delete([self._path(self._number - 1)])
            self._number += 1

    def _path(self, number: int) -> str:
        return f"{self._folder}/{self._session}.{number:08d}.json"


@dataclass(frozen=True, slots=True)
class Seen:
    """A session as its file tells: whether it lives, and what it relies on."""

    session: str
    alive: bool
    path: str
    uses: frozenset[str] = frozenset()
    targets: frozenset[str] = frozenset()


def sessions(storage: Storage, root: str, now_s: int) -> dict[str, Seen]:
    """All sessions that have a file below `root`. `now_s` is the store's time."""
    newest: dict[str, FileInfo] = {}
    for info in storage.list(_folder(root)):
        name = info.path.rpartition("/")[2].partition(".")[0]
        if not name.startswith("clock-"):
            newest[name] = info  # They come sorted by number.
    return {name: _seen(storage, name, info, now_s) for name, info in newest.items()}


def clock_s(storage: Storage, root: str) -> int:
    """The store's time, from a file written now."""
    path = f"{_folder(root)}/clock-{secrets.token_hex(8)}.json"
    put_new(storage, path, b"{}")
    try:
        info = storage.stat(path)
    finally:
        storage.delete([path])
    if info is None:
        raise PathNotFound(path, "gc")
    return info.modified_s


def _seen(storage: Storage, name: str, info: FileInfo, now_s: int) -> Seen:
    alive = now_s - info.modified_s < DEAD_S
    try:
        told = json.loads(bytes(storage.read_many([Range(info.path, 0, info.size_bytes)])[0]))
        uses, targets = (frozenset(map(str, told[what])) for what in ("uses", "targets"))
        machine, pid, started = told["process"]
        gone = machine == _machine() != "" and started != _started(int(pid))
    except PathNotFound:  # It has just written the next one.
        return Seen(name, True, info.path)
    except (ValueError, KeyError, TypeError):
        return Seen(name, alive, info.path)
    return Seen(name, alive and not gone, info.path, uses, targets)


def _machine() -> str:
    """Where numbers of processes mean the same: this boot and its namespace; "" if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When a process of this machine began, in its own clock; "" if there is none."""
    try:
        state, *told = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return ""
    return "" if state == "Z" else told[18]


def _folder(root: str) -> str:
    return f"{root.rstrip('/')}/sessions"
