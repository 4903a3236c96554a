"""Files of any storage, for libraries that open files by themselves: DuckDB and Arrow.

Such a library reads remote Parquet, CSV and JSON with the same decoder as local files,
so types never differ by where a file lies; every byte comes through `read_many`.
"""

import re
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

from millpond.errors import MillpondError, PathNotFound, StorageError
from millpond.lazy import extra
from millpond.storage.looks import END_BYTES, Look, Looks
from millpond.storage.paths import is_glob
from millpond.storage.protocol import Storage
from millpond.storage.values import FileInfo

T = TypeVar("T")

_TOKEN = re.compile(r"millpond-failure-[0-9a-f]{16}")


class RemoteFile:
    """A file to read, as Python's own are. Its position is each thread's own.

    DuckDB moves to a place and reads there in two calls, from many threads, and lets
    others run in between: with one position for all, threads read each other's places.
    What Python keeps for a thread (`threading.local`) would not do: with DuckDB 1.4 it is
    gone after each call from a thread that Python did not start.
    """

    mode = "rb"
    closed = False

    def __init__(self, looks: Looks, look: Look) -> None:
        self._looks, self._look = looks, look
        self._places: dict[int, int] = {}

    def seek(self, offset: int, whence: int = 0) -> int:
        start = (0, self.tell(), self._look.info.size_bytes)[whence]
        self._places[threading.get_ident()] = start + offset
        return start + offset

    def tell(self) -> int:
        return self._places.get(threading.get_ident(), 0)

    def read(self, length: int | None = -1) -> bytes:
        at, info = self.tell(), self._look.info
        rest = max(info.size_bytes - at, 0)
        length = rest if length is None or length < 0 else min(length, rest)
        seen = at - self._look.offset
        if seen >= 0 and seen + length <= len(self._look.data):
            view = self._look.data[seen : seen + length]
        else:
            view = self._looks.read_same(info, at, length)
        self.seek(at + length)
        return bytes(view)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def flush(self) -> None:
        """Nothing was written."""

    def close(self) -> None:
        """Nothing is held open, but what was seen of it."""
        self._look = self._look._replace(data=memoryview(b""))


def open_file(storage: Storage, path: str) -> str | RemoteFile:
    """What a library may open `path` by: its path on this machine, or a file to read."""
    local = storage.local_path(path)
    if local is not None:
        return local
    looks = looks_of(storage)
    return RemoteFile(looks, looks.look(path))


def looks_of(storage: Storage) -> Looks:
    assert storage.looks is not None, "a store has either local paths or looks"
    return storage.looks


class RemoteFiles:
    """The paths of one scheme, as an fsspec file system that a library can register.

    What fails in here passes through the library as text; `failure_in` finds our own
    error again.
    """

    def __init__(self, storage: Storage, scheme: str) -> None:
        self._storage, self._scheme = storage, scheme
        self._looks = looks_of(storage)
        self._lock = threading.Lock()
        self._failures: OrderedDict[str, MillpondError] = OrderedDict()

    def filesystem(self) -> Any:
        """An `fsspec.AbstractFileSystem` for reading."""
        fsspec = extra("fsspec", extra="s3", what=f"reading {self._scheme}://")
        methods = {
            "protocol": (self._scheme,),
            "cachable": False,
            "open": lambda _, path, mode="rb", **more: self._told(self._open, path, mode),
            "info": lambda _, path, **more: self._told(self._described, path),
            "size": lambda _, path: self._told(self._info, path).size_bytes,
            "modified": lambda _, path: self._told(self._modified, path),
            "exists": lambda _, path, **more: self._told(self._exists, path),
            "isfile": lambda _, path: self._told(self._exists, path),
            "isdir": lambda _, path: False,
            "glob": lambda _, path, **more: self._told(self._glob, path),
        }
        return type("MillpondFiles", (fsspec.AbstractFileSystem,), methods)()

    def failure_in(self, text: str) -> MillpondError | None:
        """The error of ours that a library's message passes on; None if there is none."""
        found = _TOKEN.search(text)
        with self._lock:
            return self._failures.get(found.group()) if found else None

    def _told(self, work: Callable[..., T], *given: Any) -> T:
        try:
            return work(*given)
        except MillpondError as error:
            token = f"millpond-failure-{secrets.token_hex(8)}"
            with self._lock:
                self._failures[token] = error
                while len(self._failures) > 100:
                    self._failures.popitem(last=False)
        raise OSError(token)

    def _open(self, path: str, mode: str) -> "_Told":
        if mode.strip("b") != "r":
            raise StorageError(f"open {self._full(path)}: through here, files are only read.")
        look = self._told(self._looks.look, self._full(path))
        return _Told(self._looks, look, self._told)

    def _glob(self, path: str) -> list[str]:
        full = self._full(path)
        if is_glob(full):
            infos = list(self._storage.list(full))
            self._looks.expect(infos, end_bytes=END_BYTES)
            return [info.path for info in infos]
        # DuckDB asks for each name of a list: no listing of what may lie below it.
        return [full] if self._looks.renew(full) or self._exists(full) else []

    def _info(self, path: str) -> FileInfo:
        return self._looks.look(self._full(path)).info

    def _exists(self, path: str) -> bool:
        try:
            self._info(path)
        except PathNotFound:
            return False
        return True

    def _described(self, path: str) -> dict[str, Any]:
        info = self._info(path)
        return {"name": info.path, "size": info.size_bytes, "type": "file", "etag": info.version}

    def _modified(self, path: str) -> datetime:
        return datetime.fromtimestamp(self._info(path).modified_s, UTC)

    def _full(self, path: str) -> str:
        return path if "://" in path else f"{self._scheme}://{path}"


class _Told(RemoteFile):
    """A file whose failures are kept for `failure_in`."""

    def __init__(self, looks: Looks, look: Look, told: Callable[..., Any]) -> None:
        super().__init__(looks, look)
        self._told = told

    def read(self, length: int | None = -1) -> bytes:
        found: bytes = self._told(super().read, length)
        return found
