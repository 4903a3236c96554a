"""The index of a part: which segments there are, believed only after it was verified.

Whatever cannot be read, or is not what was written, is a `Bad` here: all that are found
end in one `PartsUnreadable`, so that one round of recomputing repairs them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from millpond.errors import MillpondError
from millpond.physical.stages import PartRef
from millpond.shuffle import part
from millpond.shuffle.part import Buffer, Segment

# (offset, length) of a part -> the bytes of each, short only at the end of the file.
Ranges: TypeAlias = Sequence[tuple[int, int]]
ReadRanges: TypeAlias = Callable[[PartRef, Ranges], Sequence[Buffer]]

# Up to here a reader takes the whole index of a part: one checksum, and no second trip
# for readers of other partitions in the same process to miss.
_WHOLE_INDEX_BYTES = 64 << 10


class PartsUnreadable(Exception):
    """These parts could not be read (`damaged` False), or are not what was written."""

    def __init__(self, refs: tuple[PartRef, ...], damaged: bool, reason: str) -> None:
        super().__init__(reason)
        self.refs, self.damaged, self.reason = refs, damaged, reason


@dataclass(frozen=True, slots=True)
class Bad:
    """What is wrong with a part."""

    ref: PartRef
    damaged: bool
    reason: str


def part_counts(ref: PartRef, read_ranges: ReadRanges) -> tuple[bytes, bytes]:
    """Rows and bytes per partition, as in `TaskResult`. Raises `PartsUnreadable`."""
    entries = index_of(ref, read_ranges)
    if isinstance(entries, Bad):
        raise PartsUnreadable((ref,), entries.damaged, entries.reason)
    return part.counts(entries)


# ---- segments ------------------------------------------------------------------------


def index_of(ref: PartRef, read_ranges: ReadRanges) -> part.Entries | Bad:
    length = part.index_length(ref.n_partitions, ref.n_runs)
    if ref.index_offset + length != ref.size_bytes:
        return Bad(ref, True, f"{ref.path}: its size and its index disagree")
    found = read_from(ref, index_places(ref), read_ranges)
    if isinstance(found, Bad):
        return found
    head, index = found
    if bytes(head) != part.header(ref.n_partitions):
        return Bad(ref, True, f"{ref.path}: not a part of {ref.n_partitions} partitions")
    if len(index) != length or part.index_checksum(index) != ref.index_checksum:
        return Bad(ref, True, f"{ref.path}: its index is not what was written")
    return part.entries_of(index, ref.n_partitions, ref.n_runs)


def index_places(ref: PartRef) -> Ranges:
    length = part.index_length(ref.n_partitions, ref.n_runs)
    # One byte more than there should be shows a file that is too long.
    return [(0, part.HEADER_BYTES), (ref.index_offset, length + 1)]


def _takes_whole(ref: PartRef, whole: bool) -> bool:
    return whole or part.index_length(ref.n_partitions, ref.n_runs) <= _WHOLE_INDEX_BYTES


def _within(ref: PartRef, partitions: range) -> range:
    return range(partitions.start, min(partitions.stop, ref.n_partitions))


def places(ref: PartRef, partitions: range, whole: bool) -> Ranges:
    """What `segments_of` reads."""
    partitions = _within(ref, partitions)
    if not partitions or not ref.n_runs:
        return []
    return index_places(ref) if _takes_whole(ref, whole) else [_entries_place(ref, partitions)]


def segments_of(
    ref: PartRef, partitions: range, read_ranges: ReadRanges, whole: bool
) -> list[Segment] | Bad:
    """The segments of `partitions` in file order; empty ones are verified here and left out."""
    partitions = _within(ref, partitions)
    if not partitions or not ref.n_runs:
        return []
    if _takes_whole(ref, whole):
        entries = index_of(ref, read_ranges)
        if not isinstance(entries, Bad):
            entries = entries[partitions.start : partitions.stop]
    else:
        entries = _some_entries(ref, partitions, read_ranges)
    if isinstance(entries, Bad):
        return entries
    table = entries.tolist()
    segments = [
        Segment(partition, run, *table[row][run])
        for run in range(ref.n_runs)
        for row, partition in enumerate(partitions)
    ]
    wrong = next((s for s in segments if not _plausible(s, ref)), None)
    if wrong:
        return Bad(ref, True, f"{name_of(ref, wrong)}: its index entry is damaged")
    return [s for s in segments if s.length]


def _entries_place(ref: PartRef, partitions: range) -> tuple[int, int]:
    stride = part.index_length(1, ref.n_runs)
    return ref.index_offset + partitions.start * stride, len(partitions) * stride


def _some_entries(ref: PartRef, partitions: range, read_ranges: ReadRanges) -> part.Entries | Bad:
    place = _entries_place(ref, partitions)
    found = read_from(ref, [place], read_ranges)
    if isinstance(found, Bad):
        return found
    if len(found[0]) != place[1]:
        return Bad(ref, True, f"{ref.path}: ends within its index")
    return part.entries_of(found[0], len(partitions), ref.n_runs)


def _plausible(segment: Segment, ref: PartRef) -> bool:
    """Whether the entry may be asked for; what it holds, its checksum will tell."""
    if segment.length == 0:
        return segment.rows == 0 and part.segment_is_whole(segment, b"")
    inside = part.HEADER_BYTES <= segment.offset < segment.end <= ref.index_offset
    return inside and segment.length > 0 and segment.rows > 0


# ---- what is bad ---------------------------------------------------------------------


def read_from(
    ref: PartRef, ranges: Sequence[tuple[int, int]], read_ranges: ReadRanges
) -> Sequence[Buffer] | Bad:
    try:
        return read_ranges(ref, ranges)
    except (OSError, MillpondError) as error:
        return Bad(ref, False, f"{ref.path}: {error}")


def bad_ones(results: Sequence[object]) -> list[Bad]:
    return [result for result in results if isinstance(result, Bad)]


def raise_if(bad: Sequence[Bad]) -> None:
    if bad:
        refs = tuple(dict.fromkeys(one.ref for one in bad))
        # A lost part is no proof against the disk or memory that wrote it: only when all
        # of them are damaged is it said so.
        damaged = all(one.damaged for one in bad)
        raise PartsUnreadable(refs, damaged, "; ".join(dict.fromkeys(b.reason for b in bad)))


def name_of(ref: PartRef, segment: Segment) -> str:
    return f"{ref.path}: partition {segment.partition}, run {segment.run}"
