"""Which reads serve which ranges: neighbours are merged, large reads are cut.

Pure functions over numbers. Every store plans with them and then reads in its own way.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

from millpond.storage.values import Buffers, Range

# 64 KiB: below it, reading the gap costs less than another request, on disks too.
GAP = 64 << 10
# A view keeps the whole buffer of its read alive, so merging has an end.
MERGED = 64 << 20


class Read(NamedTuple):
    """`length` bytes of `path` from `offset`, which hold the ranges numbered `members`."""

    path: str
    offset: int
    length: int
    members: tuple[int, ...]


def merge(
    ranges: Sequence[Range], size: Callable[[str], int], *, gap: int = GAP, limit: int = MERGED
) -> list[Read]:
    """The reads that give all `ranges`; `size` is asked where one is open or very long."""
    closed = [_close(r, size) if not 0 <= r.length <= MERGED else r for r in ranges]
    paths, offsets = [r.path for r in closed], [r.offset for r in closed]
    if min(offsets, default=0) < 0:
        raise _no_range(closed[offsets.index(min(offsets))])
    # By path and then by place: two sorts of plain values are a third of one by both.
    order = sorted(range(len(closed)), key=offsets.__getitem__)
    order.sort(key=paths.__getitem__)
    reads: list[Read] = []
    members: list[int] = []
    path, start, end = "", 0, 0
    for i in order:
        name, offset, length = closed[i]
        # What overlaps is one read whatever its size: its bytes move once.
        if (
            (offset < end or (offset <= end + gap and end - start < limit))
            and name == path
            and members
        ):
            end = max(end, offset + length)
            members.append(i)
            continue
        if members:
            reads.append(Read(path, start, end - start, tuple(members)))
        members, path, start, end = [i], name, offset, offset + length
    if members:
        reads.append(Read(path, start, end - start, tuple(members)))
    return reads


def _close(wanted: Range, size: Callable[[str], int]) -> Range:
    """An open range ended with its file. A very long one too: memory for it may not be there."""
    if wanted.length < -1:
        raise _no_range(wanted)
    rest = max(size(wanted.path) - wanted.offset, 0)
    length = rest if wanted.length < 0 else min(wanted.length, rest)
    return Range(wanted.path, wanted.offset, length)


def _no_range(wanted: Range) -> ValueError:
    return ValueError(f"{wanted} is no range: offset ≥ 0 and length ≥ -1 are needed")


def split(ranges: Sequence[Range], reads: Sequence[Read], buffers: Sequence[memoryview]) -> Buffers:
    """The bytes of each range, as views of the buffers of the reads that hold them.

    A buffer may be shorter than its read, where the file ends; so may then its views.
    """
    views = [memoryview(b"")] * len(ranges)
    for read, buffer in zip(reads, buffers, strict=True):
        for i in read.members:
            at = ranges[i].offset - read.offset
            views[i] = buffer[at:] if ranges[i].length < 0 else buffer[at : at + ranges[i].length]
    return views


def cut(length: int, piece: int) -> list[tuple[int, int]]:
    """`length` as consecutive (offset, length) of at most `piece` each, about equal."""
    if length <= piece:
        return [(0, length)]
    n = -(-length // piece)
    edges = [length * i // n for i in range(n + 1)]
    return [(a, b - a) for a, b in pairwise(edges)]
