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
from time import monotonic
from typing import Any, TypeVar

from millpond.errors import MillpondError, PathNotFound, StorageError
from millpond.lazy import extra
from millpond.storage.paths import is_glob
from millpond.storage.protocol import Storage
from millpond.storage.values import FileInfo, Range

T = TypeVar("T")

# A query asks for size and time of each file several times while it is planned.
REMEMBER_S = 2.0
_TOKEN = re.compile(r"millpond-failure-[0-9a-f]{16}")


class RemoteFile:
    """A file to read, as Python's own are. Its position is each thread's own.

    DuckDB moves to a place and reads there in two calls, from many threads, and lets
    others run in between: with one position for all, threads read each other's places.
    """

    mode = "rb"
    closed = False

    def __init__(self, storage: Storage, info: FileInfo) -> None:
        self._storage, self._info = storage, info
        self._own = threading.local()

    def seek(self, offset: int, whence: int = 0) -> int:
        start = (0, self.tell(), self._info.size_bytes)[whence]
        self._own.position = start + offset
        return int(self._own.position)

    def tell(self) -> int:
        return int(getattr(self._own, "position", 0))

    def read(self, length: int | None = -1) -> bytes:
        at = self.tell()
        rest = max(self._info.size_bytes - at, 0)
        length = rest if length is None or length < 0 else min(length, rest)
        view = self._storage.read_many([Range(self._info.path, at, length)])[0]
        if len(view) != length:
            raise StorageError(
                f"read {self._info.path}: it has become shorter while it was being read. "
                "Read it again, and write new files instead of changing old ones."
            )
        self._own.position = at + length
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
        """Nothing is held open."""


def open_file(storage: Storage, path: str) -> str | RemoteFile:
    """What a library may open `path` by: its path on this machine, or a file to read."""
    local = storage.local_path(path)
    if local is not None:
        return local
    info = storage.stat(path)
    if info is None:
        raise PathNotFound(path, "read")
    return RemoteFile(storage, info)


class RemoteFiles:
    """The paths of one scheme, as an fsspec file system that a library can register.

    What fails in here passes through the library as text; `failure_in` finds our own
    error again.
    """

    def __init__(self, storage: Storage, scheme: str) -> None:
        self._storage, self._scheme = storage, scheme
        self._lock = threading.Lock()
        self._infos: dict[str, tuple[float, FileInfo]] = {}
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
        return _Told(RemoteFile(self._storage, self._info(path)), self._told)

    def _glob(self, path: str) -> list[str]:
        full = self._full(path)
        if is_glob(full):
            infos = list(self._storage.list(full))
        else:  # DuckDB asks for each name of a list: no listing of what may lie below it.
            found = self._storage.stat(full)
            infos = [found] if found else []
        now = monotonic()
        with self._lock:
            self._infos.update({info.path: (now, info) for info in infos})
        return [info.path for info in infos]

    def _info(self, path: str) -> FileInfo:
        full, now = self._full(path), monotonic()
        with self._lock:
            asked, info = self._infos.get(full, (0.0, None))
            if len(self._infos) > 100_000:
                self._infos.clear()
        if info is None or now - asked > REMEMBER_S:
            info = self._storage.stat(full)
            if info is None:
                raise PathNotFound(full, "read")
            with self._lock:
                self._infos[full] = (now, info)
        return info

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

    def __init__(self, file: RemoteFile, told: Callable[..., Any]) -> None:
        super().__init__(file._storage, file._info)
        self._told = told

    def read(self, length: int | None = -1) -> bytes:
        found: bytes = self._told(super().read, length)
        return found
