"""Parts to rows: the segments of some partitions, read ahead, verified, in task order.

Where the bytes come from the caller says with one function, `read_ranges`: this
machine's files and other nodes look alike here. Whatever cannot be read, or is not
what was written, ends in one `PartsUnreadable` that names all parts found bad, so that
one round of recomputing repairs them; the worker turns it into `PartsLost`.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import NamedTuple, TypeAlias, TypeVar

import pyarrow as pa

from millpond.errors import MillpondError
from millpond.physical.stages import PartRef, PartRows
from millpond.shuffle import part
from millpond.shuffle.part import Buffer, Segment

# (offset, length) of a part -> the bytes of each, short only at the end of the file.
Ranges: TypeAlias = Sequence[tuple[int, int]]
ReadRanges: TypeAlias = Callable[[PartRef, Ranges], Sequence[Buffer]]
Answer: TypeAlias = Sequence[Buffer] | OSError | MillpondError


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """Parts on other nodes, where a call costs more than its bytes: one call brings many.

    `node` tells on which node a part is, "" if it is near; `read` gives an answer for each
    of some parts of one node.
    """

    node: Callable[[PartRef], str]
    read: Callable[[str, Sequence[tuple[PartRef, Ranges]]], Sequence[Answer]]


READ_BYTES = 8 << 20  # One read; past it a disk or a GET gains nothing.
INDEXES = 512  # In one call to another node.
AHEAD_BYTES = 64 << 20
READ_THREADS = 4

# Up to here a reader takes the whole index of a part: one checksum, and no second trip
# for readers of other partitions in the same process to miss.
_WHOLE_INDEX_BYTES = 64 << 10


class PartsUnreadable(Exception):
    """These parts could not be read (`damaged` False), or are not what was written."""

    def __init__(self, refs: tuple[PartRef, ...], damaged: bool, reason: str) -> None:
        super().__init__(reason)
        self.refs, self.damaged, self.reason = refs, damaged, reason


@dataclass(frozen=True, slots=True)
class _Bad:
    """What is wrong with a part."""

    ref: PartRef
    damaged: bool
    reason: str


class _Wanted(NamedTuple):
    """Rows `first : first + n` of a segment."""

    segment: Segment
    first: int
    n: int


class _Chunk(NamedTuple):
    """Segments of one part that are read together."""

    ref: PartRef
    wanted: tuple[_Wanted, ...]

    @property
    def size_bytes(self) -> int:
        return sum(w.segment.length for w in self.wanted)


def read_part_rows(
    rows: PartRows,
    schema: pa.Schema,
    read_ranges: ReadRanges,
    *,
    elsewhere: Elsewhere | None = None,
    ahead_bytes: int = AHEAD_BYTES,
    threads: int = READ_THREADS,
) -> Iterator[pa.RecordBatch]:
    """The rows that `rows` names: by part, then run, then partition.

    Raises `PartsUnreadable`. No row of a segment is given before the whole segment was
    verified. Batches are views of what was read, so they live as long as it does.
    """
    end = None if rows.n_parts is None else rows.first_part + rows.n_parts
    refs = rows.parts[rows.first_part : end]
    narrowed = rows.skip_rows > 0 or rows.n_rows is not None
    span = range(rows.first_partition, rows.first_partition + rows.n_partitions)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="part-reader")
    reading = _Reading(read_ranges, elsewhere, pool)
    try:
        # Counting rows to skip trusts entries whose segments nobody reads: then the
        # whole index is read, for its checksum.
        found = reading.each(
            refs,
            lambda ref: (ref, _places(ref, span, narrowed)),
            lambda ref, read: _segments(ref, span, read, narrowed),
            INDEXES,
        )
        _raise_if([bad for bad in found if isinstance(bad, _Bad)])
        segments = [(r, s) for r, s in zip(refs, found, strict=True) if not isinstance(s, _Bad)]
        chunks = _chunks(segments, rows.skip_rows, rows.n_rows)
        yield from _read_ahead(chunks, refs, schema, reading, ahead_bytes)
    finally:
        pool.shutdown(cancel_futures=True)


def check_part(ref: PartRef, read_ranges: ReadRanges) -> bool:
    """Whether the part is there with the size and index that `ref` names.

    Segments are not read: their checksums are in the index, and whoever reads them checks.
    """
    return not isinstance(_index(ref, read_ranges), _Bad)


def part_counts(ref: PartRef, read_ranges: ReadRanges) -> tuple[bytes, bytes]:
    """Rows and bytes per partition, as in `TaskResult`. Raises `PartsUnreadable`."""
    entries = _index(ref, read_ranges)
    if isinstance(entries, _Bad):
        raise PartsUnreadable((ref,), entries.damaged, entries.reason)
    return part.counts(entries)


# ---- near and elsewhere --------------------------------------------------------------

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class _Reading:
    """How bytes are had: near parts one by one in parallel, others by the node."""

    near: ReadRanges
    elsewhere: Elsewhere | None
    pool: ThreadPoolExecutor

    def each(
        self,
        items: Sequence[T],
        place: Callable[[T], tuple[PartRef, Ranges]],
        use: Callable[[T, ReadRanges], R],
        at_once: int,
    ) -> list[R]:
        return [had() for had in self.begin(items, place, use, at_once)]

    def begin(
        self,
        items: Sequence[T],
        place: Callable[[T], tuple[PartRef, Ranges]],
        use: Callable[[T, ReadRanges], R],
        at_once: int,
    ) -> list[Callable[[], R]]:
        """What `use` makes of each item and its bytes, under way; up to `at_once` by one call.

        A near one alone is read by whoever wants it: that is done before a thread has begun.
        """
        had: dict[int, Callable[[], R]] = {}
        groups: dict[str, list[int]] = {}
        for i, item in enumerate(items):
            ref, _ = place(item)
            node = self.elsewhere.node(ref) if self.elsewhere else ""
            if node:
                groups.setdefault(node, []).append(i)
            elif len(items) == 1:
                had[i] = partial(use, item, self.near)
            else:
                had[i] = self.pool.submit(use, item, self.near).result
        for node, group in groups.items():
            for start in range(0, len(group), at_once):
                some = group[start : start + at_once]
                these = [items[i] for i in some]
                call = self.pool.submit(self._call, node, these, place, use)
                had |= {i: partial(_taken, call, k) for k, i in enumerate(some)}
        return [had[i] for i in range(len(items))]

    def _call(
        self,
        node: str,
        items: Sequence[T],
        place: Callable[[T], tuple[PartRef, Ranges]],
        use: Callable[[T, ReadRanges], R],
    ) -> list[R | None]:
        assert self.elsewhere is not None
        wanted = [place(item) for item in items]
        try:
            answers = self.elsewhere.read(node, wanted)
        except (OSError, MillpondError) as error:
            answers = [error] * len(wanted)
        return [use(item, _given(answer)) for item, answer in zip(items, answers, strict=True)]


def _taken(call: Future[list[R | None]], k: int) -> R:
    """One result of a call, which forgets it: else all would stay until the last is used."""
    results = call.result()
    one, results[k] = results[k], None
    assert one is not None
    return one


def _given(answer: Answer) -> ReadRanges:
    def read(ref: PartRef, ranges: Ranges) -> Sequence[Buffer]:
        if isinstance(answer, OSError | MillpondError):
            raise answer
        return answer

    return read


# ---- the index: which segments there are ---------------------------------------------


def _index(ref: PartRef, read_ranges: ReadRanges) -> part.Entries | _Bad:
    length = part.index_length(ref.n_partitions, ref.n_runs)
    if ref.index_offset + length != ref.size_bytes:
        return _Bad(ref, True, f"{ref.path}: its size and its index disagree")
    found = _read(ref, _index_places(ref), read_ranges)
    if isinstance(found, _Bad):
        return found
    head, index = found
    if bytes(head) != part.header(ref.n_partitions):
        return _Bad(ref, True, f"{ref.path}: not a part of {ref.n_partitions} partitions")
    if len(index) != length or part.index_checksum(index) != ref.index_checksum:
        return _Bad(ref, True, f"{ref.path}: its index is not what was written")
    return part.entries_of(index, ref.n_partitions, ref.n_runs)


def _index_places(ref: PartRef) -> Ranges:
    length = part.index_length(ref.n_partitions, ref.n_runs)
    # One byte more than there should be shows a file that is too long.
    return [(0, part.HEADER_BYTES), (ref.index_offset, length + 1)]


def _takes_whole(ref: PartRef, whole: bool) -> bool:
    return whole or part.index_length(ref.n_partitions, ref.n_runs) <= _WHOLE_INDEX_BYTES


def _within(ref: PartRef, partitions: range) -> range:
    return range(partitions.start, min(partitions.stop, ref.n_partitions))


def _places(ref: PartRef, partitions: range, whole: bool) -> Ranges:
    """What `_segments` reads."""
    partitions = _within(ref, partitions)
    if not partitions or not ref.n_runs:
        return []
    return _index_places(ref) if _takes_whole(ref, whole) else [_entries_place(ref, partitions)]


def _segments(
    ref: PartRef, partitions: range, read_ranges: ReadRanges, whole: bool
) -> list[Segment] | _Bad:
    """The segments of `partitions` in file order; empty ones are verified here and left out."""
    partitions = _within(ref, partitions)
    if not partitions or not ref.n_runs:
        return []
    if _takes_whole(ref, whole):
        entries = _index(ref, read_ranges)
        if not isinstance(entries, _Bad):
            entries = entries[partitions.start : partitions.stop]
    else:
        entries = _some_entries(ref, partitions, read_ranges)
    if isinstance(entries, _Bad):
        return entries
    table = entries.tolist()
    segments = [
        Segment(partition, run, *table[row][run])
        for run in range(ref.n_runs)
        for row, partition in enumerate(partitions)
    ]
    wrong = next((s for s in segments if not _plausible(s, ref)), None)
    if wrong:
        return _Bad(ref, True, f"{_name(ref, wrong)}: its index entry is damaged")
    return [s for s in segments if s.length]


def _entries_place(ref: PartRef, partitions: range) -> tuple[int, int]:
    stride = part.index_length(1, ref.n_runs)
    return ref.index_offset + partitions.start * stride, len(partitions) * stride


def _some_entries(ref: PartRef, partitions: range, read_ranges: ReadRanges) -> part.Entries | _Bad:
    place = _entries_place(ref, partitions)
    found = _read(ref, [place], read_ranges)
    if isinstance(found, _Bad):
        return found
    if len(found[0]) != place[1]:
        return _Bad(ref, True, f"{ref.path}: ends within its index")
    return part.entries_of(found[0], len(partitions), ref.n_runs)


def _plausible(segment: Segment, ref: PartRef) -> bool:
    """Whether the entry may be asked for; what it holds, its checksum will tell."""
    if segment.length == 0:
        return segment.rows == 0 and part.segment_is_whole(segment, b"")
    inside = part.HEADER_BYTES <= segment.offset < segment.end <= ref.index_offset
    return inside and segment.length > 0 and segment.rows > 0


# ---- the segments --------------------------------------------------------------------


def _chunks(
    found: Sequence[tuple[PartRef, list[Segment]]], skip: int, limit: int | None
) -> Iterator[_Chunk]:
    """Cut the wanted rows into reads of about `READ_BYTES`, each within one part."""
    for ref, wanted in groupby(_wanted(found, skip, limit), key=lambda pair: pair[0]):
        held: list[_Wanted] = []
        size = 0
        for _, one in wanted:
            if held and size + one.segment.length > READ_BYTES:
                yield _Chunk(ref, tuple(held))
                held, size = [], 0
            held.append(one)
            size += one.segment.length
        yield _Chunk(ref, tuple(held))


def _wanted(
    found: Sequence[tuple[PartRef, list[Segment]]], skip: int, limit: int | None
) -> Iterator[tuple[PartRef, _Wanted]]:
    for ref, segments in found:
        for segment in segments:
            first = min(skip, segment.rows)
            skip -= first
            n = segment.rows - first if limit is None else min(segment.rows - first, limit)
            limit = None if limit is None else limit - n
            if n:
                yield ref, _Wanted(segment, first, n)


def _read_ahead(
    chunks: Iterator[_Chunk],
    refs: Sequence[PartRef],
    schema: pa.Schema,
    reading: _Reading,
    ahead_bytes: int,
) -> Iterator[pa.RecordBatch]:
    """Give batches in order while later chunks, up to `ahead_bytes` of them, are being read."""

    def use(chunk: _Chunk, read: ReadRanges) -> list[pa.RecordBatch] | _Bad:
        return _batches(chunk, schema, read)

    under_way: deque[tuple[_Chunk, Callable[[], list[pa.RecordBatch] | _Bad]]] = deque()
    size, waiting = 0, next(chunks, None)
    while waiting or under_way:
        # Many at a time, so that those of one node go into one call.
        if not under_way or 2 * size <= ahead_bytes:
            more: list[_Chunk] = []
            while waiting and (not (under_way or more) or size + waiting.size_bytes <= ahead_bytes):
                size += waiting.size_bytes
                more.append(waiting)
                waiting = next(chunks, None)
            largest = max((chunk.size_bytes for chunk in more), default=READ_BYTES)
            at_once = max(1, READ_BYTES // largest)
            under_way += zip(more, reading.begin(more, _spans, use, at_once), strict=True)
        chunk, had = under_way.popleft()
        batches = had()
        if isinstance(batches, _Bad):
            others = [later() for _, later in under_way]
            _raise_if([batches, *_bad_ones(others), *_look_again(refs, reading)])
        else:
            yield from batches
        size -= chunk.size_bytes
        del batches, had  # Else they would hold this chunk's memory during the next read.


def _spans(chunk: _Chunk) -> tuple[PartRef, Ranges]:
    spans = _merged([w.segment for w in chunk.wanted])
    return chunk.ref, [(start, end - start) for start, end in spans]


def _batches(
    chunk: _Chunk, schema: pa.Schema, read_ranges: ReadRanges
) -> list[pa.RecordBatch] | _Bad:
    """Read a chunk, verify each of its segments, and decode the wanted rows."""
    spans = _merged([w.segment for w in chunk.wanted])
    found = _read(*_spans(chunk), read_ranges)
    if isinstance(found, _Bad):
        return found
    views = {span: memoryview(data) for span, data in zip(spans, found, strict=True)}
    batches: list[pa.RecordBatch] = []
    for segment, first, n in chunk.wanted:
        start, end = next(span for span in spans if span[0] <= segment.offset < span[1])
        data = views[start, end][segment.offset - start : segment.end - start]
        if len(data) != segment.length or not part.segment_is_whole(segment, data):
            return _Bad(chunk.ref, True, f"{_name(chunk.ref, segment)}: bad checksum")
        decoded = part.decode_segment(data, schema)
        if sum(batch.num_rows for batch in decoded) != segment.rows:
            return _Bad(chunk.ref, True, f"{_name(chunk.ref, segment)}: wrong number of rows")
        batches += _narrowed(decoded, first, n)
    return batches


def _merged(segments: Sequence[Segment]) -> list[tuple[int, int]]:
    """Adjacent segments as one (start, end) each."""
    spans: list[tuple[int, int]] = []
    for segment in segments:
        if spans and spans[-1][1] == segment.offset:
            spans[-1] = (spans[-1][0], segment.end)
        else:
            spans.append((segment.offset, segment.end))
    return spans


def _narrowed(batches: list[pa.RecordBatch], first: int, n: int) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        kept = batch.slice(first, n)
        first = max(0, first - batch.num_rows)
        n -= kept.num_rows
        if kept.num_rows == batch.num_rows:
            yield kept
        elif kept.num_rows:
            yield _copied(kept)


def _copied(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Nested columns from their own beginning: DuckDB refuses a slice of a struct in them."""
    columns = [pa.concat_arrays([c]) if c.type.num_fields else c for c in batch.columns]
    return pa.RecordBatch.from_arrays(columns, schema=batch.schema)


# ---- what is bad ---------------------------------------------------------------------


def _read(
    ref: PartRef, ranges: Sequence[tuple[int, int]], read_ranges: ReadRanges
) -> Sequence[Buffer] | _Bad:
    try:
        return read_ranges(ref, ranges)
    except (OSError, MillpondError) as error:
        return _Bad(ref, False, f"{ref.path}: {error}")


def _look_again(refs: Sequence[PartRef], reading: _Reading) -> list[_Bad]:
    """Parts that are gone by now: a lost node takes many, and each costs a round otherwise."""
    looked = reading.each(refs, lambda ref: (ref, _index_places(ref)), _index, INDEXES)
    return _bad_ones(looked)


def _bad_ones(results: Sequence[object]) -> list[_Bad]:
    return [result for result in results if isinstance(result, _Bad)]


def _raise_if(bad: Sequence[_Bad]) -> None:
    if bad:
        refs = tuple(dict.fromkeys(one.ref for one in bad))
        # A lost part is no proof against the disk or memory that wrote it: only when all
        # of them are damaged is it said so.
        damaged = all(one.damaged for one in bad)
        raise PartsUnreadable(refs, damaged, "; ".join(dict.fromkeys(b.reason for b in bad)))


def _name(ref: PartRef, segment: Segment) -> str:
    return f"{ref.path}: partition {segment.partition}, run {segment.run}"
