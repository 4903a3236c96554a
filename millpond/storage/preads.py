"""Many reads of local files by `preadv`, in parallel where that pays."""

import errno
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from millpond.storage.oserrors import explain
from millpond.storage.pool import each
from millpond.storage.ranges import Read, cut
from millpond.storage.values import Buffers

# A read in flight: large enough that one thread alone streams, small enough to share out.
PIECE = 8 << 20
# Reads of one job, which opens its file once.
JOB = 64
# Below both of these, handing over to threads costs more than it saves from a page cache.
FEW, SMALL = 16, 1 << 20


class Piece(NamedTuple):
    """A place in a file, and the memory that its bytes go to."""

    path: str
    offset: int
    memory: memoryview


def read_files(reads: Sequence[Read]) -> Buffers:
    """The bytes of each read, shorter only where the file ends."""
    buffers = [memory_of(read.length) for read in reads]
    pieces: list[Piece] = []
    owners: list[int] = []
    for i, read in enumerate(reads):
        for at, length in cut(read.length, PIECE):
            pieces.append(Piece(read.path, read.offset + at, buffers[i][at : at + length]))
            owners.append(i)
    counts = read_pieces(pieces)
    lengths = [len(piece.memory) for piece in pieces]
    return buffers if counts == lengths else shortened(buffers, owners, lengths, counts)


def memory_of(size: int) -> memoryview:
    """Memory to be overwritten: unlike a bytearray's, it is not cleared first."""
    return np.empty(size, np.uint8).data


def shortened(
    buffers: Buffers, owners: Sequence[int], lengths: Sequence[int], counts: Sequence[int]
) -> Buffers:
    """The buffers, each ended at its first piece that the file did not fill."""
    filled = [0] * len(buffers)
    ended = [False] * len(buffers)
    for owner, length, count in zip(owners, lengths, counts, strict=True):
        if not ended[owner]:
            filled[owner] += count
            ended[owner] = count < length
    return [buffer[:n] for buffer, n in zip(buffers, filled, strict=True)]


def read_pieces(pieces: Sequence[Piece]) -> list[int]:
    """Fill the memory of each piece; the number of bytes that each got."""
    jobs = _jobs(pieces)
    total = sum(len(piece.memory) for piece in pieces)
    few = len(pieces) <= FEW and total <= SMALL
    done = [_job(job) for job in jobs] if few else each(_job, jobs)
    return [count for counts in done for count in counts]


def read_in_turn(pieces: Sequence[Piece]) -> list[int]:
    """As `read_pieces`, in this thread alone."""
    return [count for job in _jobs(pieces) for count in _job(job)]


def _jobs(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """Neighbouring pieces of one file, at most `JOB` of them and about `PIECE` bytes."""
    jobs: list[list[Piece]] = []
    size = 0
    for piece in pieces:
        last = jobs[-1] if jobs else []
        full = size + len(piece.memory) > PIECE or len(last) == JOB
        if not last or full or last[0].path != piece.path:
            jobs.append([])
            size = 0
        jobs[-1].append(piece)
        size += len(piece.memory)
    return jobs


def _job(job: list[Piece]) -> list[int]:
    """Read pieces of one file. A stale handle of a network file system is opened anew, once."""
    path = job[0].path
    try:
        try:
            return _read(path, job)
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
            return _read(path, job)
    except OSError as error:
        raise explain(error, path, "read") from error


def _read(path: str, job: list[Piece]) -> list[int]:
    fd = os.open(path, os.O_RDONLY)
    try:
        return [pread_full(fd, piece.memory, piece.offset) for piece in job]
    finally:
        os.close(fd)


def pread_full(fd: int, memory: memoryview, offset: int) -> int:
    """Fill `memory` from `offset`; fewer bytes than its length only at the end of the file."""
    done = os.preadv(fd, [memory], offset)
    count = done  # Most reads end here; a signal or a server may cut one short.
    while count and done < len(memory):
        count = os.preadv(fd, [memory[done:]], offset + done)
        done += count
    return done
