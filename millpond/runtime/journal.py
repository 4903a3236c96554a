"""Finished tasks by fingerprint, under `data_root`: a rerun computes only what is missing.

Each session writes segments of its own, numbered and never changed; readers take the
union of all. So sessions on one `data_root` neither wait for nor overwrite each other,
and a segment is there whole or not at all; its last line has a checksum of the others. A record
is believed only after its part was looked at. JSON alone is read; names in it are relative
and must stay below their root.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

from millpond.errors import PathNotFound, StorageError
from millpond.physical.stages import OutputFile, PartRef, Stage, TaskId, TaskResult, ToFile
from millpond.runtime.homes import KeptParts
from millpond.runtime.progress import Reused
from millpond.shuffle.index import PartsUnreadable, part_counts
from millpond.storage import FileInfo, Range, Staged, Storage, put_new
from millpond.storage.commit import commit_id_in
from millpond.storage.paths import beneath, check_name, is_remote, plain

_VERSION = 6
_MAX_RECORDS, _MAX_AGE_S = 1_000, 1.0

Record = dict[str, Any]


class StoredJournal:
    """The journal of one session, named `session`: no two sessions have one name.

    `is_staged` tells whether a staged output file is still there, sealed, to be
    published, with the bytes of its checksum. `announce` makes known, durably, which
    sessions' results are used, and says whether that was news: whoever clears the data root
    leaves those alone. `kept` are parts that lie on disks of their own, where the data root
    holds none.
    """

    def __init__(
        self,
        storage: Storage,
        root: str,
        session: str,
        is_staged: Callable[[Staged, str], bool],
        announce: Callable[[set[str]], bool] = lambda sessions: False,
        kept: KeptParts | None = None,
    ) -> None:
        self._storage, self._root, self._is_staged = storage, root.rstrip("/"), is_staged
        self._session, self._announce, self._number = session, announce, 0
        self.kept = kept
        self._waiting: list[Record] = []
        self._oldest_s = 0.0
        self._read: set[str] = set()  # Segments; they never change.
        self._records: dict[str, dict[int, dict[int, list[Record]]]] = {}

    # ---- writing ---------------------------------------------------------------------

    def record(self, stage: Stage, n_tasks: int, result: TaskResult) -> None:
        """Remember a result, if another session could read what it left."""
        record = self._to_json(stage, n_tasks, result)
        if record is None:
            return
        if not self._waiting:
            self._oldest_s = time.monotonic()
        self._waiting.append(record)
        if len(self._waiting) >= _MAX_RECORDS:
            self.flush()

    def tick(self, now_s: float) -> None:
        """Write records that are older than a second."""
        if self._waiting and now_s - self._oldest_s >= _MAX_AGE_S:
            self.flush()

    def flush(self) -> None:
        """Write the records that wait as one segment."""
        if not self._waiting:
            return
        data = segment(self._waiting)
        path = f"{self._root}/journal/{self._session}-{self._number:06d}.jsonl"
        if not put_new(self._storage, path, data):
            raise StorageError(
                f"{path!r} exists already, but only this session writes names that begin with "
                f"{self._session!r}. Give each session on one data_root its own name."
            )
        self._number += 1
        self._waiting.clear()

    def _to_json(self, stage: Stage, n_tasks: int, result: TaskResult) -> Record | None:
        record: Record = {
            "stage": stage.fingerprint,
            "n_tasks": n_tasks,
            "partition": result.task.partition,
            "attempt": result.task.attempt,
            "rows_in": result.rows_in,
            "rows": result.rows,
            "size_bytes": result.size_bytes,
            "value_bytes": result.value_bytes,
            "rows_hash": result.rows_hash,
            "written_hash": result.written_hash,
        }
        if result.part is not None:
            place = self._place(result.part)
            if place is None:
                return None  # In a folder that ends with the session.
            part = asdict(result.part) | place
            return record | {"part": {k: v for k, v in part.items() if k not in _OF_THE_RUN}}
        if not isinstance(stage.output, ToFile):
            return None
        files = [self._file_to_json(stage.output.directory, file) for file in result.files]
        return record | {"files": files} if files and None not in files else None

    def _file_to_json(self, folder: str, file: OutputFile) -> Record | None:
        path = self._relative(folder, file.staged.path)
        aside = self._relative(folder, file.staged.aside)
        if path is None or aside is None:
            return None
        sizes = {"size": file.staged.size_bytes, "rows": file.rows, "checksum": file.checksum}
        uploaded, values = bool(file.staged.upload), file.values
        where = {"path": path, "aside": aside, "uploaded": uploaded}
        return {**where, "values": values, "told": file.told, **sizes}

    def _place(self, part: PartRef) -> Record | None:
        """Where a part lies: below the data root, or in a folder of a disk of its own."""
        name = None if part.node else self._relative(self._root, part.path)
        if name is not None:
            return {"path": name}
        found = self.kept.name_of(part) if self.kept else None
        return {"folder": found[0], "path": found[1]} if found else None

    def _relative(self, folder: str, path: str) -> str | None:
        """`path` as seen from `folder`; None if it does not lie below."""
        root = folder
        if not is_remote(folder):
            root, path = os.path.realpath(plain(folder)), os.path.realpath(plain(path))
        root = root.rstrip("/") + "/"
        return path[len(root) :] if path.startswith(root) else None

    # ---- reading ---------------------------------------------------------------------

    def find(self, stage: Stage) -> Reused | None:
        """The results of this stage that are recorded and still there."""
        self._refresh()
        if self._announce(self._sessions(stage)):
            self._refresh()  # What was cleared until then was cleared in ignorance.
        found = [
            Reused(n_tasks, dict(self._checked(stage, partitions)))
            for n_tasks, partitions in self._records.get(stage.fingerprint, {}).items()
        ]
        best = max(found, key=lambda reused: len(reused.results), default=None)
        return best if best is not None and best.results else None

    def _refresh(self) -> None:
        """Read the segments that were written since the last call, by whichever session."""
        listed = {file.path for file in segments(self._storage, self._root)}
        for path in sorted(listed - self._read):
            with suppress(PathNotFound):  # It was cleared away since.
                (data,) = self._storage.read_many([Range(path, 0, -1)])
                for record in records(bytes(data)):
                    self._add(record, path)
        if self._read - listed:
            self._forget(self._read - listed)
        self._read = listed

    def _forget(self, cleared: set[str]) -> None:
        for partitions in (p for sizes in self._records.values() for p in sizes.values()):
            for partition, records in partitions.items():
                partitions[partition] = [r for r in records if r["segment"] not in cleared]

    def _sessions(self, stage: Stage) -> set[str]:
        """Those whose results for this stage there are records of."""
        sizes = self._records.get(stage.fingerprint, {})
        every = (record for size in sizes.values() for some in size.values() for record in some)
        return {session_of(record["segment"]) for record in every} - {self._session}

    def _add(self, record: Record, segment: str) -> None:
        try:
            stage, n_tasks = str(record["stage"]), int(record["n_tasks"])
            partition = int(record["partition"])
        except (ValueError, TypeError, KeyError):
            return  # Not ours: what it would have told is computed again.
        if 0 <= partition < n_tasks:
            record["segment"] = segment
            partitions = self._records.setdefault(stage, {}).setdefault(n_tasks, {})
            partitions.setdefault(partition, []).append(record)

    def _checked(
        self, stage: Stage, partitions: dict[int, list[Record]]
    ) -> Iterator[tuple[int, TaskResult]]:
        for partition, records in partitions.items():
            for record in reversed(records):
                result = self._result(stage, partition, record)
                if result is not None:
                    yield partition, result
                    break

    def _result(self, stage: Stage, partition: int, record: Record) -> TaskResult | None:
        """What a record tells, in the numbers of this run; None if it is not there any more."""
        try:
            result = TaskResult(
                TaskId(stage.id, partition, int(record["attempt"])),
                rows_in=int(record["rows_in"]),
                rows=int(record["rows"]),
                size_bytes=int(record["size_bytes"]),
                value_bytes=int(record["value_bytes"]),
                rows_hash=_hash(record["rows_hash"]),
                written_hash=_hash(record["written_hash"]),
            )
            if isinstance(stage.output, ToFile):
                return self._with_files(result, stage.output, record["files"])
            return self._with_part(result, record["part"])
        except (KeyError, TypeError, ValueError, StorageError, PartsUnreadable):
            return None

    def _with_part(self, result: TaskResult, record: Record) -> TaskResult:
        stage, partition, attempt = result.task
        node, read = "", self._read_ranges
        if "folder" in record:
            found = self.kept.take_up(str(record["folder"])) if self.kept else None
            if self.kept is None or found is None:
                raise StorageError(f"no machine of this session has {record['folder']!r}.")
            node, read = found[0], self.kept.fetch
            path = f"{found[1]}/{_plain(str(record['path']))}"
        else:
            path = self._beneath(self._root, str(record["path"]))
        numbers = {name: int(record[name]) for name in _NUMBERS}
        part = PartRef(
            stage=stage, task=partition, attempt=attempt, node=node, path=path, **numbers
        )
        rows, sizes = part_counts(part, read)
        return replace(result, part=part, partition_rows=rows, partition_bytes=sizes)

    def _with_files(
        self, result: TaskResult, output: ToFile, records: list[Record]
    ) -> TaskResult | None:
        files, folder, commit = [], output.directory, commit_id_in(output.name)
        for record in records:
            path, aside = (self._beneath(folder, str(record[name])) for name in ("path", "aside"))
            local, upload = ("", aside) if record["uploaded"] else (aside, "")
            staged = Staged(path, local, int(record["size"]), upload)
            rows, checksum = int(record["rows"]), str(record["checksum"])
            # The same rows may have been written twice: each commit has its own files.
            if commit_id_in(path) != commit or not self._is_staged(staged, checksum):
                return None
            values = tuple(None if v is None else str(v) for v in record["values"])
            files.append(OutputFile(staged, rows, checksum, values, str(record["told"])))
        return replace(result, files=tuple(files))

    def _beneath(self, folder: str, name: str) -> str:
        if not is_remote(folder):
            return beneath(plain(folder), name)
        check_name(folder, name)
        return f"{folder.rstrip('/')}/{name}"

    def _read_ranges(self, ref: PartRef, ranges: Sequence[tuple[int, int]]) -> Sequence[Any]:
        return list(self._storage.read_many([Range(ref.path, at, n) for at, n in ranges]))


def _plain(name: str) -> str:
    if any(part in ("", ".", "..") for part in name.split("/")):
        raise StorageError(f"{name!r} in a journal would lead out of its folder.")
    return name


def segment(records: Sequence[Record]) -> bytes:
    """The records as the bytes of a segment."""
    lines = "".join(json.dumps(record) + "\n" for record in records).encode()
    return lines + json.dumps({"version": _VERSION, "checksum": _checksum(lines)}).encode() + b"\n"


def records(segment: bytes) -> list[Record]:
    """The records of a segment; none if a bit of it changed, or another version wrote it."""
    before, _, last = segment.removesuffix(b"\n").rpartition(b"\n")
    lines = before + b"\n"
    try:
        said = json.loads(last)
        if (said["version"], said["checksum"]) != (_VERSION, _checksum(lines)):
            return []
        read = [json.loads(line) for line in lines.splitlines()]
    except (ValueError, TypeError, KeyError, RecursionError):
        return []  # Not ours: what it would have told is computed again.
    return [record for record in read if isinstance(record, dict)]


def _checksum(lines: bytes) -> str:
    return hashlib.blake2b(lines, digest_size=16).hexdigest()


def segments(storage: Storage, root: str) -> list[FileInfo]:
    """All segments of the journal of a data root, by session and number."""
    listed = storage.list(f"{root.rstrip('/')}/journal")
    return [info for info in listed if info.path.endswith(".jsonl")]


def session_of(segment: str) -> str:
    """The session that wrote a segment."""
    return segment.rpartition("/")[2].rpartition("-")[0]


def _hash(told: Any) -> int | None:
    return None if told is None else int(told) % 2**64


_OF_THE_RUN = {"stage", "task", "attempt", "node"}
_NUMBERS = ("size_bytes", "n_partitions", "n_runs", "index_offset", "index_checksum", "rows")
