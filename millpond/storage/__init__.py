"""Where bytes live: the `Storage` protocol, and the choice of one by URI.

Nothing above this room knows which store it talks to. A file exists for readers
only after `publish`: writers stage aside, seal, and somebody publishes the whole
set. Credentials are read in this room and nowhere else.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from millpond.errors import StorageError
from millpond.storage.local import LocalStorage
from millpond.storage.object_keys import STORES
from millpond.storage.object_store import ObjectStorage
from millpond.storage.paths import scheme
from millpond.storage.values import Buffers, FileInfo, Range, Staged

__all__ = [
    "Buffers",
    "FileInfo",
    "LocalStorage",
    "ObjectStorage",
    "Range",
    "Staged",
    "Storage",
    "open_storage",
]


class Storage(Protocol):
    """What every store can do. Paths are full paths or URIs of that store."""

    def list(self, prefix: str) -> Iterator[FileInfo]:
        """All files at or below `prefix`, sorted by path; hidden and staged ones left out."""

    def stat(self, path: str) -> FileInfo | None:
        """The file as it is now; None where there is none."""

    def read_many(self, ranges: Sequence[Range]) -> Buffers:
        """The bytes of each range, in the order asked; short only at the end of a file."""

    def stage(self, path: str, tag: str) -> Staged:
        """Begin to write `path` aside. `tag` (task and attempt) keeps attempts apart."""

    def seal(self, staged: Staged) -> Staged:
        """Make what was written durable (synced, or uploaded), still unseen by readers."""

    def publish(self, staged: Sequence[Staged]) -> None:
        """Give sealed files their final names."""

    def discard(self, staged: Sequence[Staged]) -> None:
        """Remove what was staged; nothing is left of it."""

    def put_if_absent(self, path: str, data: bytes) -> bool:
        """Create `path` with `data` in one step; False, and no change, if it exists."""

    def delete(self, paths: Iterable[str]) -> None:
        """Remove files; those that are gone already are no error."""

    def local_path(self, path: str) -> str | None:
        """Where this machine may open `path` as an ordinary file; None where it may not."""


def open_storage(uri: str, options: Mapping[str, object] | None = None) -> Storage:
    """The storage that `uri` names, for all paths of its kind.

    `s3://`, `gs://`, `az://`, `http://` and `https://` are object stores, opened with
    `options` (see `ObjectStorage`); a plain path and `file://` are this machine's files.
    """
    kind = scheme(uri)
    if kind in STORES:
        return ObjectStorage(kind, options)
    if kind not in ("", "file"):
        known = ", ".join(f"{name}://" for name in ("file", *STORES))
        raise StorageError(f"{uri!r}: no storage is known for {kind}://. There are: {known}.")
    return LocalStorage()
