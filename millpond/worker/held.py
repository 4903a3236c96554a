"""Small parts that stay in the memory of the process that wrote them, instead of a file each.

To make a file takes longer than all else that a small task does beside its work, up to half a
millisecond. Bytes and checksums are those of the file, and so is the way to read them; a file
is made once another process is to read them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Sequence

from millpond.storage.oserrors import explained, make_private

PART_BYTES = 1 << 20  # A larger one costs more than its file.


class HeldParts:
    """By path, up to `most_bytes` of them. Threads may share it."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes, self._size_bytes = most_bytes, 0
        self._parts: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def hold(self, path: str, part: memoryview) -> bool:
        """Keep a copy of a part; False where a file has to."""
        with self._lock:
            if len(part) > PART_BYTES or self._size_bytes + len(part) > self._most_bytes:
                return False
            self._size_bytes += len(part)
            self._parts[path] = bytes(part)
        return True

    def read(self, path: str, ranges: Sequence[tuple[int, int]]) -> list[memoryview] | None:
        """The bytes of each (offset, length), short only at the end; None if not held."""
        found = self._parts.get(path)
        if found is None:
            return None
        part = memoryview(found)
        return [part[offset : offset + length] for offset, length in ranges]

    def write(self, paths: Iterable[str]) -> None:
        """Make files of those that are held: another process is to read them."""
        if not self._parts:
            return
        with self._lock:
            for path in self._parts.keys() & paths:
                with explained(path, "write"):
                    _make(path, self._parts[path])
                self._drop(path)

    def forget(self, path: str) -> bool:
        """The part of that path, or all beneath it, is of no use any more; whether any was held."""
        with self._lock:
            found = [held for held in self._parts if f"{held}/".startswith(f"{path}/")]
            for held in found:
                self._drop(held)
        return bool(found)

    def _drop(self, path: str) -> None:
        self._size_bytes -= len(self._parts.pop(path))


def _make(path: str, part: bytes) -> None:
    make_private(os.path.dirname(path))
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(part)
