"""Where bytes live: the `Storage` protocol, and the choice of one by URI.

Nothing above this room knows which store it talks to. A file exists for readers
only after `publish`: writers stage aside, seal, and somebody publishes the whole
set. Credentials are read in this room and nowhere else.
"""

from collections.abc import Mapping

from millpond.errors import StorageError
from millpond.storage.files import RemoteFile, RemoteFiles, open_file
from millpond.storage.local import LocalStorage
from millpond.storage.object_keys import STORES
from millpond.storage.object_store import ObjectStorage
from millpond.storage.paths import plain, scheme
from millpond.storage.protocol import Storage, expect, put_new, read_ahead
from millpond.storage.threefs import ThreeFsStorage, any_mount, find_client
from millpond.storage.values import Buffers, FileInfo, OutputFile, Range, Staged

__all__ = [
    "STORES",
    "Buffers",
    "FileInfo",
    "LocalStorage",
    "ObjectStorage",
    "OutputFile",
    "Range",
    "RemoteFile",
    "RemoteFiles",
    "Staged",
    "Storage",
    "ThreeFsStorage",
    "expect",
    "open_file",
    "open_storage",
    "put_new",
    "read_ahead",
]


def open_storage(uri: str, options: Mapping[str, object] | None = None) -> Storage:
    """The storage that `uri` names, for all paths of its kind.

    `s3://`, `gs://`, `az://`, `http://` and `https://` are object stores, opened with
    `options` (see `ObjectStorage`); a plain path and `file://` are files of
    this machine and of what is mounted there, 3FS included.
    """
    kind = scheme(uri)
    if kind in STORES:
        return ObjectStorage(kind, options)
    if kind not in ("", "file"):
        known = ", ".join(f"{name}://" for name in ("file", *STORES))
        raise StorageError(f"{uri!r}: no storage is known for {kind}://. There are: {known}.")
    plain(uri)  # Refuses what names no file of this machine.
    client = find_client()
    return ThreeFsStorage(client) if client is not None or any_mount() else LocalStorage()
