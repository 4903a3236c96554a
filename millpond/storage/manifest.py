"""Manifests: small numbered JSON files that name the data files of an output.

`<root>/_manifest/00000001.json` is the first state of an output, the highest number the
present one. Number 0 names what lay there before the first commit began, often nothing.
A manifest is created once, never changed and never removed, so a number means one state
for ever.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from millpond.errors import FileUnreadable, PathNotFound, StorageError
from millpond.schema import Schema
from millpond.storage.paths import MANIFESTS, beneath, check_name
from millpond.storage.protocol import Storage
from millpond.storage.values import Range

FORMAT = 1
_NAME = re.compile(r"(\d{8,})\.json")


@dataclass(frozen=True, slots=True)
class DataFile:
    """One file of an output. `rows` is -1 and `checksum` empty for files found, not written."""

    path: str  # Relative to the root of the output.
    rows: int
    size_bytes: int
    checksum: str = ""


@dataclass(frozen=True, slots=True)
class Manifest:
    """One state of an output: all of its files. `id` is unique to the commit that made it."""

    number: int
    id: str
    files: tuple[DataFile, ...]
    schema: Schema
    fingerprint: str = ""

    @property
    def rows(self) -> int:
        """Rows in all files; -1 if a file is among them whose rows were never counted."""
        return -1 if any(f.rows < 0 for f in self.files) else sum(f.rows for f in self.files)

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    def to_json(self) -> bytes:
        """The text of the manifest's file."""
        files = [
            {"path": f.path, "rows": f.rows, "bytes": f.size_bytes, "checksum": f.checksum}
            for f in self.files
        ]
        content = {
            "millpond_manifest": FORMAT,
            "number": self.number,
            "id": self.id,
            "fingerprint": self.fingerprint,
            "schema": [[field.name, field.type] for field in self.schema],
            "files": files,
        }
        return (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode()


def manifest_path(root: str, number: int) -> str:
    """Where the manifest `number` of the output at `root` is."""
    return f"{root.rstrip('/')}/{MANIFESTS}/{number:08}.json"


def newest_manifest(storage: Storage, root: str) -> Manifest | None:
    """The present state of the output at `root`; None if no commit ever began there.

    Number 0 without files says that nothing has been committed yet.

    The listing is a hint: a shared file system may show an old one. The numbers after
    the highest one in it are asked for by name.
    """
    number = max(_listed(storage, root), default=-1)
    found = read_manifest(storage, root, number) if number >= 0 else None
    if number >= 0 and found is None:
        raise PathNotFound(manifest_path(root, number), "read")
    while (later := read_manifest(storage, root, number + 1)) is not None:
        found, number = later, number + 1
    return found


def read_manifest(storage: Storage, root: str, number: int) -> Manifest | None:
    """The manifest `number`, or None if there is none."""
    path = manifest_path(root, number)
    if storage.stat(path) is None:
        return None
    text = bytes(storage.read_many([Range(path, 0, -1)])[0])
    try:
        return _parse(json.loads(text), number)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FileUnreadable(
            f"{path!r} is no manifest of an output ({type(error).__name__}: {error}). It was cut "
            "off or changed. Without it the state of the output is unknown: restore it, or move "
            "it away to go back to the state before."
        ) from error


def file_paths(storage: Storage, root: str, manifest: Manifest) -> list[str]:
    """The full paths of the files of a manifest; names that lead out of `root` are refused."""
    local = storage.local_path(root)
    for file in manifest.files:
        if local is None:
            check_name(root, file.path)
        else:
            beneath(local, file.path)
    base = root.rstrip("/") if local is None else local
    return [f"{base}/{file.path}" for file in manifest.files]


def _listed(storage: Storage, root: str) -> Iterator[int]:
    for info in storage.list(f"{root.rstrip('/')}/{MANIFESTS}"):
        if found := _NAME.fullmatch(info.path.rpartition("/")[2]):
            yield int(found[1])


def _parse(content: Mapping[str, Any], number: int) -> Manifest:
    version = content["millpond_manifest"]
    if version != FORMAT:
        raise StorageError(
            f"manifest {number} has the format {version}, and this Millpond reads {FORMAT}. "
            "It was written by another version; upgrade Millpond."
        )
    if content["number"] != number:
        raise ValueError(f"it says that it is number {content['number']}")
    files = tuple(
        DataFile(str(f["path"]), int(f["rows"]), int(f["bytes"]), str(f["checksum"]))
        for f in content["files"]
    )
    schema = Schema.of([(str(name), str(kind)) for name, kind in content["schema"]])
    return Manifest(number, str(content["id"]), files, schema, str(content["fingerprint"]))
