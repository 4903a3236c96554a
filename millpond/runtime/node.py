"""What one node of a cluster does for a session: keeps its parts and serves their bytes.

Nothing here knows how calls travel; a runtime wraps `NodeService` in whatever it has.
"""

import os
import platform
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import pyarrow as pa

from millpond.engine.duckdb import VERSION as DUCKDB
from millpond.errors import MillpondError
from millpond.runtime.calls import Calls, Dropped
from millpond.runtime.homes import Homes
from millpond.storage.paths import beneath
from millpond.storage.scratch import Scratch
from millpond.version import VERSION
from millpond.worker import WorkerOptions


@dataclass(frozen=True, slots=True)
class Versions:
    """What must agree between all processes of a run: rows and hashes depend on it."""

    python: str
    millpond: str
    duckdb: str
    pyarrow: str

    def __str__(self) -> str:
        return (
            f"Python {self.python}, Millpond {self.millpond}, "
            f"DuckDB {self.duckdb}, pyarrow {self.pyarrow}"
        )


def versions() -> Versions:
    """Those of this process; of Python, the minor version."""
    python = ".".join(platform.python_version_tuple()[:2])
    return Versions(python, VERSION, DUCKDB, pa.__version__)


def sizes(paths: Sequence[str]) -> list[int | None]:
    """How large these files are on this machine; None for what is not there."""
    found: list[int | None] = []
    for path in paths:
        try:
            found.append(os.stat(path).st_size)
        except OSError:
            found.append(None)
    return found


Answer = list[bytes] | str  # The ranges of a part, or why it cannot be read.


def parts_folder(service: str) -> str:
    """The name of the folder where the service of this name keeps parts."""
    return f"{service}-parts"


class NodeService:
    """A session's folder on a node. `shared_parts`: parts go to `options.parts`, as given.

    `wanted` are the versions of the session, which each worker process checks. `kept`: what
    lies there outlives a session that was killed.
    """

    def __init__(
        self,
        options: WorkerOptions,
        name: str,
        shared_parts: bool,
        wanted: Versions,
        kept: bool = False,
    ) -> None:
        self._scratch, self._wanted = Scratch(name), wanted
        self._homes = Homes(Scratch(parts_folder(name), kept=kept))
        self._options = options if shared_parts else replace(options, parts=self._homes.path)
        self._parts = self._options.parts
        self._calls = Calls(os.path.join(self._scratch.path, "calls"))
        os.makedirs(self._calls.folder, exist_ok=True)  # It is there after a restart.

    def versions(self) -> Versions:
        return versions()

    def worker_setup(self, pid: int) -> tuple[WorkerOptions, Versions, str]:
        """What the worker process `pid` of this node is built from, and must agree with.

        And the folder of the node's calls.
        """
        scratch = os.path.join(self._scratch.path, f"process-{pid}")
        return replace(self._options, scratch=scratch), self._wanted, self._calls.folder

    def drop(self, calls: Sequence[str]) -> Dropped:
        """Take these calls where they run on this node, and let none begin here."""
        return self._calls.drop(calls)

    def read(self, wanted: Sequence[tuple[str, Sequence[tuple[int, int]]]]) -> list[Answer]:
        """Byte ranges of parts of this node, and of no other file; for a part, or what failed."""
        return [self._read(path, ranges) for path, ranges in wanted]

    def _read(self, path: str, ranges: Sequence[tuple[int, int]]) -> Answer:
        try:
            found = self._homes.read(path, ranges)
        except MillpondError as error:
            return str(error)
        return [bytes(data) for data in found]

    def forget(self, run: str) -> None:
        """Remove the parts of a run."""
        shutil.rmtree(beneath(self._parts, run), ignore_errors=True)

    def sizes(self, paths: Sequence[str]) -> list[int | None]:
        """How large these files are, as seen from this node; None for what is not there."""
        return sizes(paths)

    def take_up(self, folder: str) -> str | None:
        """Where the parts are that a dead session left on this machine in `folder`, if it did."""
        found = self._homes.take_up(folder)
        return found[1] if found else None

    def close(self, keep: bool = False) -> None:
        """Remove the folders and all that lies there, or `keep` parts for the next session."""
        with suppress(OSError):
            self._calls.close()
        with suppress(OSError):
            self._homes.close(keep=keep)
        with suppress(OSError):
            self._scratch.remove()
