"""Reads of objects: in few long requests, in parallel, and never of two versions."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from millpond.errors import StorageError
from millpond.storage.pool import THREADS, each
from millpond.storage.preads import memory_of
from millpond.storage.ranges import Read, cut
from millpond.storage.values import Buffers, FileInfo

# One connection gives some 50 to 100 MB/s, so what is longer is read by several. But each
# request costs a server as much as some MiB of a body: those of 64 MiB cost it half of what
# those of 16 MiB do (benchmarks/object_store.py ranges).
PIECE, LONGEST = 16 << 20, 64 << 20
# Larger bodies go, as they come, to memory that numpy asks for in huge pages: the client
# would put them together in small ones, 131,072 page faults for 512 MB instead of 2,000.
WHOLE = 4 << 20

_NOTHING = memoryview(b"")


class Fetched(NamedTuple):
    """The answer to one request: how many bytes, and the object as it was then.

    `data` holds the bytes, unless they were put where the caller said.
    """

    n_bytes: int
    info: FileInfo
    data: memoryview = _NOTHING


# Gets `length` bytes of a path from an offset; into the stretches of memory, if there are any.
Fetch = Callable[[str, int, int, Sequence[memoryview]], Fetched]


class Request(NamedTuple):
    """`length` bytes of `path` from `offset`, for the reads numbered from `first` on.

    They fill `memory`, one stretch after the other; where there is none, the one read takes
    the body as it is.
    """

    path: str
    offset: int
    length: int
    first: int
    memory: Sequence[memoryview]


def read_objects(reads: Sequence[Read], fetch: Fetch) -> Buffers:
    """The bytes of each read, by parallel calls of `fetch`; `reads` are as `merge` gives them."""
    buffers = [memory_of(read.length) if read.length > WHOLE else _NOTHING for read in reads]
    asked = requests(reads, buffers)
    answers = each(lambda request: _fetched(request, fetch), asked)
    sizes: dict[str, int] = {}
    versions: dict[str, str] = {}
    for request, answer in zip(asked, answers, strict=True):
        path = request.path
        if versions.setdefault(path, answer.info.version) != answer.info.version:
            raise replaced(path)
        sizes[path] = answer.info.size_bytes
        if not request.memory:
            buffers[request.first] = answer.data
    for i, read in enumerate(reads):
        if read.length:
            buffers[i] = buffers[i][: max(sizes[read.path] - read.offset, 0)]
    return buffers


def replaced(path: str) -> StorageError:
    """The error of who reads a file that is another one by now."""
    return StorageError(
        f"read {path}: it was replaced while it was being read. Read it again; for "
        "data that changes, write new files and name them in a manifest."
    )


def requests(reads: Sequence[Read], buffers: Buffers) -> list[Request]:
    """What to ask for: reads that touch are asked for together, and long ones in pieces."""
    total = sum(read.length for read in reads)
    piece = min(max(-(-total // THREADS), PIECE), LONGEST)
    made: list[Request] = []
    for first, end in _runs(reads, buffers):
        path, start = reads[first].path, reads[first].offset
        if not buffers[first]:
            made.append(Request(path, start, reads[first].length, first, ()))
            continue
        for at, length in cut(sum(len(buffer) for buffer in buffers[first:end]), piece):
            memory = _stretch(buffers[first:end], at, length)
            made.append(Request(path, start + at, length, first, memory))
    return made


def _runs(reads: Sequence[Read], buffers: Buffers) -> list[tuple[int, int]]:
    """First number and end of each run of reads that follow each other in one object."""
    runs: list[tuple[int, int]] = []
    for i, read in enumerate(reads):
        before = reads[i - 1] if i else None
        if not read.length:
            continue
        touches = before and (before.path, before.offset + before.length) == read[:2]
        if runs and touches and buffers[i] and buffers[i - 1]:
            runs[-1] = (runs[-1][0], i + 1)
        else:
            runs.append((i, i + 1))
    return runs


def _stretch(buffers: Sequence[memoryview], at: int, length: int) -> list[memoryview]:
    """The memory from place `at` on of all `buffers` together."""
    found: list[memoryview] = []
    for buffer in buffers:
        part = buffer[max(at, 0) : max(at + length, 0)]
        if part:
            found.append(part)
        at -= len(buffer)
    return found


def gather(chunks: Iterable[Any], memory: Sequence[memoryview]) -> int:
    """Copy the chunks of a body, as they come, to the stretches of `memory`; how many bytes."""
    room = [np.frombuffer(stretch, np.uint8) for stretch in memory][::-1]
    n_bytes = 0
    for chunk in chunks:
        source = np.frombuffer(chunk, np.uint8)
        n_bytes += len(source)
        while len(source):
            if not room:
                raise StorageError("more bytes came than the range has; check what lies between.")
            target = room.pop()
            n = min(len(source), len(target))
            np.copyto(target[:n], source[:n])
            source = source[n:]
            if n < len(target):
                room.append(target[n:])
    return n_bytes


def _fetched(request: Request, fetch: Fetch) -> Fetched:
    answer = fetch(request.path, request.offset, request.length, request.memory)
    wanted = max(min(request.length, answer.info.size_bytes - request.offset), 0)
    if answer.n_bytes != wanted:
        raise StorageError(
            f"read {request.path}: {answer.n_bytes} bytes came from offset {request.offset}, but "
            f"{wanted} were to come. The server or a proxy changed the answer; check what lies "
            "between."
        )
    return answer
