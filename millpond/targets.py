"""Where a write goes: one file, a folder with manifests, or a table. Each commits whole.

A target is asked three things: whether this very write is complete already, whether it
may begin, and to take the finished files. Nobody sees a file before that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from millpond.errors import OptionError, TargetNotEmpty
from millpond.plan import nodes as n
from millpond.plan.sinks import ENDINGS
from millpond.runtime.publish import Receipts, publish, rolled_forward
from millpond.storage import OutputFile, Storage
from millpond.storage.commit import Mode, check_target, commit, files_of, find_commit
from millpond.storage.manifest import Manifest, file_paths, newest_manifest


@dataclass(frozen=True, slots=True)
class WriteResult:
    """What a write made: files in order, rows and bytes in all."""

    files: tuple[str, ...]
    rows: int
    bytes: int


class Target(Protocol):
    """`commit_id` is in the names of the files; "" where they have no say in their names."""

    @property
    def commit_id(self) -> str: ...
    def complete(self) -> WriteResult | None: ...
    def check(self) -> None: ...
    def commit(self, files: Sequence[OutputFile]) -> WriteResult: ...


def written(files: Sequence[OutputFile], rows: int) -> WriteResult:
    size_bytes = sum(file.staged.size_bytes for file in files)
    return WriteResult(tuple(file.staged.path for file in files), rows, size_bytes)


@dataclass(frozen=True, slots=True)
class FileTarget:
    """One file: it appears by one rename. A receipt in the `data_root` says whose it is."""

    storage: Storage
    sink: n.DataSink
    receipts: Receipts | None
    fingerprint: str
    commit_id: str = ""

    def complete(self) -> WriteResult | None:
        receipt = self.receipts.find(self.sink.path) if self.receipts else None
        # Also where the plan is another by now: what was published halfway is made whole.
        if receipt is None or not rolled_forward(self.storage, receipt, self.sink.path):
            return None
        if not self.fingerprint or receipt.fingerprint != self.fingerprint:
            return None
        return written([OutputFile(file, -1) for file in receipt.files], receipt.rows)

    def check(self) -> None:
        if self.sink.mode == "error" and any(self.storage.list(self.sink.path)):
            raise TargetNotEmpty(self.sink.path, _where(self.sink))

    def commit(self, files: Sequence[OutputFile]) -> WriteResult:
        staged, rows = [file.staged for file in files], sum(file.rows for file in files)
        there = [file.path for file in self.storage.list(self.sink.path)]
        old = there if self.sink.mode == "overwrite" else []
        publish(self.storage, staged, old, rows, target=self.sink.path,
                fingerprint=self.fingerprint, receipts=self.receipts)  # fmt: skip
        return written(files, rows)


@dataclass(frozen=True, slots=True)
class FolderTarget:
    """A folder with manifests: the newest names its files (`storage/commit.py`)."""

    storage: Storage
    sink: n.DataSink
    mode: Mode
    fingerprint: str
    commit_id: str

    def complete(self) -> WriteResult | None:
        found = find_commit(self.storage, self.sink.path, self.commit_id)
        if not self.fingerprint or found is None:
            return None
        return self._result(found)

    def check(self) -> None:
        check_target(self.storage, self.sink.path, self.mode, _where(self.sink))
        if self.mode == "append":
            self._check_format()

    def _check_format(self) -> None:
        """A folder of two formats could be read by nobody."""
        present = newest_manifest(self.storage, self.sink.path)
        for file in present.files if present else ():
            for format, endings in ENDINGS.items():
                if format != self.sink.format and file.path.lower().endswith(endings):
                    raise OptionError(
                        f"{_where(self.sink)}: {self.sink.path!r} holds {format} files, such as "
                        f"{file.path!r}. Append with write_{format}(), write to another folder, "
                        "or pass mode='overwrite'."
                    )

    def commit(self, files: Sequence[OutputFile]) -> WriteResult:
        made = commit(
            self.storage, self.sink.path, files, commit_id=self.commit_id,
            schema=self.sink.schema, mode=self.mode, fingerprint=self.fingerprint,
        )  # fmt: skip
        return self._result(made)

    def _result(self, state: Manifest) -> WriteResult:
        root = self.sink.path
        mine = files_of(self.storage, root, state, self.commit_id)
        paths = file_paths(self.storage, root, replace(state, files=tuple(mine)))
        size_bytes = sum(file.size_bytes for file in mine)
        return WriteResult(tuple(paths), sum(file.rows for file in mine), size_bytes)


def _where(sink: n.DataSink) -> str:
    return f"write_{sink.format}({sink.path!r})"
