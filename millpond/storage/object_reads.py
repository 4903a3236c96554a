"""Reads of objects: cut to pieces that stream well, in parallel, and never of two versions."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from millpond.errors import StorageError
from millpond.storage.pool import each
from millpond.storage.preads import memory_of
from millpond.storage.ranges import Read, cut
from millpond.storage.values import Buffers

# One connection gives some 50 to 100 MB/s, so a long range is read by several.
PIECE = 16 << 20


class Fetched(NamedTuple):
    """The answer to one request: bytes, and size and version of the whole object."""

    data: memoryview
    size_bytes: int
    version: str


# Gets `length` bytes of a path from an offset; into the memory, if that is given.
Fetch = Callable[[str, int, int, memoryview | None], Fetched]


class _Job(NamedTuple):
    """One request: a whole read, or a piece of one that is gathered in `memory`."""

    owner: int
    path: str
    offset: int
    length: int
    memory: memoryview | None


def read_objects(reads: Sequence[Read], fetch: Fetch) -> Buffers:
    """The bytes of each read, by parallel calls of `fetch`."""
    buffers = [memoryview(b"")] * len(reads)
    jobs: list[_Job] = []
    for i, read in enumerate(reads):
        pieces = cut(read.length, PIECE) if read.length else []
        memory = memory_of(read.length) if len(pieces) > 1 else None
        for at, length in pieces:
            part = memory[at : at + length] if memory is not None else None
            jobs.append(_Job(i, read.path, read.offset + at, length, part))
        if memory is not None:
            buffers[i] = memory

    answers = each(lambda job: _fetched(job, fetch), jobs)
    _check_versions(jobs, answers)
    ends = [0] * len(reads)
    for job, answer in zip(jobs, answers, strict=True):
        if job.memory is None:
            buffers[job.owner] = answer.data
        rest = max(answer.size_bytes - reads[job.owner].offset, 0)
        ends[job.owner] = min(rest, len(buffers[job.owner]))
    return [buffer[:end] for buffer, end in zip(buffers, ends, strict=True)]


def gather(chunks: Iterable[Any], memory: memoryview) -> memoryview:
    """Copy the chunks of a body into `memory`, as they come; the part that they fill."""
    target, at = np.frombuffer(memory, np.uint8), 0
    for chunk in chunks:
        source = np.frombuffer(chunk, np.uint8)
        if at + len(source) > len(target):
            raise StorageError("more bytes came than the range has; check what lies between.")
        np.copyto(target[at : at + len(source)], source)
        at += len(source)
    return memory[:at]


def _fetched(job: _Job, fetch: Fetch) -> Fetched:
    answer = fetch(job.path, job.offset, job.length, job.memory)
    wanted = max(min(job.length, answer.size_bytes - job.offset), 0)
    if len(answer.data) != wanted:
        raise StorageError(
            f"read {job.path}: {len(answer.data)} bytes came from offset {job.offset}, but "
            f"{wanted} were to come. The server or a proxy changed the answer; check what lies "
            "between."
        )
    return answer


def _check_versions(jobs: Sequence[_Job], answers: Sequence[Fetched]) -> None:
    versions: dict[str, str] = {}
    for job, answer in zip(jobs, answers, strict=True):
        if versions.setdefault(job.path, answer.version) != answer.version:
            raise StorageError(
                f"read {job.path}: it was replaced while it was being read. Read it again; for "
                "data that changes, write new files and name them in a manifest."
            )
