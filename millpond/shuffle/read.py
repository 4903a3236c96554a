"""Parts to rows: the segments of some partitions, read ahead, verified, in task order.

Where the bytes come from the caller says with one function, `read_ranges`: this
machine's files and other nodes look alike here. What is found bad ends in one
`PartsUnreadable`, see `index`; the worker turns it into `PartsLost`.
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
from millpond.shuffle.index import (
    Bad,
    Ranges,
    ReadRanges,
    bad_ones,
    index_of,
    index_places,
    name_of,
    places,
    raise_if,
    read_from,
    segments_of,
)
from millpond.shuffle.part import Buffer, Segment

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
            lambda ref: (ref, places(ref, span, narrowed)),
            lambda ref, read: segments_of(ref, span, read, narrowed),
            INDEXES,
        )
        raise_if([bad for bad in found if isinstance(bad, Bad)])
        segments = [(r, s) for r, s in zip(refs, found, strict=True) if not isinstance(s, Bad)]
        chunks = _chunks(segments, rows.skip_rows, rows.n_rows)
        yield from _read_ahead(chunks, refs, schema, reading, ahead_bytes)
    finally:
        pool.shutdown(cancel_futures=True)


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

    def use(chunk: _Chunk, read: ReadRanges) -> list[pa.RecordBatch] | Bad:
        return _batches(chunk, schema, read)

    under_way: deque[tuple[_Chunk, Callable[[], list[pa.RecordBatch] | Bad]]] = deque()
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
        if isinstance(batches, Bad):
            others = [later() for _, later in under_way]
            raise_if([batches, *bad_ones(others), *_look_again(refs, reading)])
        else:
            yield from batches
        size -= chunk.size_bytes
        del batches, had  # Else they would hold this chunk's memory during the next read.


def _spans(chunk: _Chunk) -> tuple[PartRef, Ranges]:
    spans = _merged([w.segment for w in chunk.wanted])
    return chunk.ref, [(start, end - start) for start, end in spans]


def _batches(
    chunk: _Chunk, schema: pa.Schema, read_ranges: ReadRanges
) -> list[pa.RecordBatch] | Bad:
    """Read a chunk, verify each of its segments, and decode the wanted rows."""
    spans = _merged([w.segment for w in chunk.wanted])
    found = read_from(*_spans(chunk), read_ranges)
    if isinstance(found, Bad):
        return found
    views = {span: memoryview(data) for span, data in zip(spans, found, strict=True)}
    batches: list[pa.RecordBatch] = []
    for segment, first, n in chunk.wanted:
        start, end = next(span for span in spans if span[0] <= segment.offset < span[1])
        data = views[start, end][segment.offset - start : segment.end - start]
        if len(data) != segment.length or not part.segment_is_whole(segment, data):
            return Bad(chunk.ref, True, f"{name_of(chunk.ref, segment)}: bad checksum")
        decoded = part.decode_segment(data, schema)
        if sum(batch.num_rows for batch in decoded) != segment.rows:
            return Bad(chunk.ref, True, f"{name_of(chunk.ref, segment)}: wrong number of rows")
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


def _look_again(refs: Sequence[PartRef], reading: _Reading) -> list[Bad]:
    """Parts that are gone by now: a lost node takes many, and each costs a round otherwise."""
    looked = reading.each(refs, lambda ref: (ref, index_places(ref)), index_of, INDEXES)
    return bad_ones(looked)
