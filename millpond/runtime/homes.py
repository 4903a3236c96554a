"""Where parts lie on one node's own disk: in its session's folder, and in those of dead sessions.

A session whose data root is no folder that all nodes see (an object store) keeps its parts on
the disks of the machines that wrote them, in folders that outlive it if its work was not done.
The next session finds them by name, in its journal, and takes a folder up whose owner is dead.
"""

import os
from collections.abc import Sequence
from typing import Any, Protocol

from millpond.physical.stages import PartRef
from millpond.storage import LocalStorage, Range
from millpond.storage.paths import beneath
from millpond.storage.scratch import Scratch


class KeptParts(Protocol):
    """What a journal needs to know of parts that lie on disks of their own."""

    def name_of(self, part: PartRef) -> tuple[str, str] | None:
        """The folder of a part, and its name there; None if it does not lie in one of ours."""

    def take_up(self, folder: str) -> tuple[str, str] | None:
        """The node, and the path there, of the `folder` that a dead session left."""

    def fetch(self, ref: PartRef, ranges: Sequence[tuple[int, int]]) -> Sequence[Any]:
        """Byte ranges of a part; OSError or an error of ours if it cannot be read."""


class Homes:
    """The folder for parts of a session on this node, and those that it took up."""

    def __init__(self, own: Scratch) -> None:
        self._own = own
        self._others: dict[str, Scratch] = {}
        self._storage = LocalStorage()
        self.path = own.path

    def name_of(self, part: PartRef) -> tuple[str, str] | None:
        return name_in(os.path.basename(self.path), part)

    def take_up(self, folder: str) -> tuple[str, str] | None:
        if folder not in self._others:
            found = Scratch.take_up(folder)
            if found is None:
                return None
            self._others[folder] = found
        return "", self._others[folder].path

    def fetch(self, ref: PartRef, ranges: Sequence[tuple[int, int]]) -> Sequence[Any]:
        return self.read(ref.path, ranges)

    def read(self, path: str, ranges: Sequence[tuple[int, int]]) -> Sequence[Any]:
        """Byte ranges of a file in one of these folders, and of no other."""
        others = (each.path for each in self._others.values())
        home = next((other for other in others if path.startswith(f"{other}/")), self.path)
        inside = beneath(home, os.path.relpath(path, home))
        return self._storage.read_many([Range(inside, at, n) for at, n in ranges])

    def close(self, *, keep: bool) -> None:
        """Remove all, or `keep` the parts for the next session, if there are any."""
        every = [*self._others.values(), self._own]
        keep = keep and any(files for each in every for _, _, files in os.walk(each.path))
        for each in every:
            if keep:
                each.leave()
            else:
                each.remove()


def name_in(folder: str, part: PartRef) -> tuple[str, str] | None:
    """`folder`, and the name of a part there; None if it does not lie there."""
    _, found, name = part.path.rpartition(f"/{folder}/")
    return (folder, name) if found else None
