"""The files of Iceberg's own metadata, by our storages: one way to each store, one set of keys.

Found by its name in the properties of a catalogue (`py-io-impl`), which also hold what
`open_storage` needs; properties are kept in memory and in no file.
"""

from __future__ import annotations

import io
import secrets
import sys
from typing import Any

from pyiceberg.io import FileIO, InputFile, OutputFile

from millpond.errors import PathNotFound
from millpond.storage import Range, Storage, open_storage

PREFIX = "millpond."


class StorageIO(FileIO):  # type: ignore[misc]
    """Opens `location`s as they are spelt; metadata files are small and read at once."""

    def _storage(self, location: str) -> Storage:
        given = {n[len(PREFIX) :]: v for n, v in self.properties.items() if n.startswith(PREFIX)}
        return open_storage(location, given)

    def new_input(self, location: str) -> InputFile:
        path = location.removeprefix("file://")
        return _Input(path, self._storage(path))

    def new_output(self, location: str) -> OutputFile:
        path = location.removeprefix("file://")
        return _Output(path, self._storage(path))

    def delete(self, location: str | InputFile | OutputFile) -> None:
        path = location if isinstance(location, str) else location.location
        path = path.removeprefix("file://")
        self._storage(path).delete([path])


class _Input(InputFile):  # type: ignore[misc]
    def __init__(self, location: str, storage: Storage) -> None:
        super().__init__(location)
        self._storage = storage

    def __len__(self) -> int:
        info = self._storage.stat(self.location)
        if info is None:
            raise FileNotFoundError(self.location)
        return info.size_bytes

    def exists(self) -> bool:
        return self._storage.stat(self.location) is not None

    def open(self, seekable: bool = True) -> Any:
        try:
            (data,) = self._storage.read_many([Range(self.location, 0, -1)])
        except PathNotFound:
            raise FileNotFoundError(self.location) from None
        return io.BytesIO(data)


class _Output(OutputFile):  # type: ignore[misc]
    def __init__(self, location: str, storage: Storage) -> None:
        super().__init__(location)
        self._storage = storage

    def __len__(self) -> int:
        return len(self.to_input_file())

    def exists(self) -> bool:
        return bool(self.to_input_file().exists())

    def to_input_file(self) -> InputFile:
        return _Input(self.location, self._storage)

    def create(self, overwrite: bool = False) -> Any:
        if not overwrite and self.exists():
            raise FileExistsError(self.location)
        return _Written(self.location, self._storage)


class _Written(io.BytesIO):
    """Bytes that become the file when they are closed; nothing if an error ended the writing.

    Who writes Avro closes in any case, so an error under way is known by being a new one.
    """

    def __init__(self, location: str, storage: Storage) -> None:
        super().__init__()
        self._location, self._storage = location, storage
        self._before = sys.exception()

    def close(self) -> None:
        if self.closed:
            return
        data = self.getvalue()
        super().close()
        if sys.exception() is self._before:
            self._put(data)

    def __del__(self) -> None:
        """Nothing: what nobody closed is not finished, and `BytesIO` would close it here."""

    def _put(self, data: bytes) -> None:
        staged = self._storage.stage(self._location, f"iceberg-{secrets.token_hex(8)}")
        try:
            with open(staged.local, "wb") as file:
                file.write(data)
            staged = self._storage.seal(staged)
            self._storage.publish([staged])
        except BaseException:
            self._storage.discard([staged])
            raise
