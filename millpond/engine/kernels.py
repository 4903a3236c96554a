"""Vectorised kernels over Arrow and numpy: which partition a row goes to.

Keys are binary and compare byte by byte (memcmp, a prefix before what it begins). They
are compared as big-endian 64-bit words; almost all rows are done after the first word,
and only those that agree with a bound so far look at the next.
"""

from bisect import bisect_left, bisect_right
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from millpond.errors import MillpondError

U64: TypeAlias = npt.NDArray[np.uint64]
Ints: TypeAlias = npt.NDArray[np.int64]
Bools: TypeAlias = npt.NDArray[np.bool_]

# Rows that share 128 bytes with a bound are compared whole: a key of 1 MB must not cost
# a round of numpy calls per word.
_MOST_WORDS = 16
_CELL_BITS = 12
_GOES_ON = 9  # More bytes of a key than one word holds.
_MASKS = np.array([((1 << 8 * n) - 1) << (64 - 8 * n) for n in range(9)], np.uint64)


def partition_numbers(column: pa.Array, where: str) -> npt.NDArray[Any]:
    """A column of integers as it is, without a copy. A NULL is an error: it names no partition."""
    if not pa.types.is_integer(column.type):
        raise MillpondError(f"{where}: a partition number must be an integer, not {column.type}.")
    if column.null_count:
        raise MillpondError(
            f"{where}: {column.null_count} rows have NULL as their partition number. "
            "Give them one with coalesce, or filter them out."
        )
    return integers(column)


def row_numbers(numbers: npt.NDArray[np.int64]) -> pa.Array:
    """Places to `take`, as Arrow, without a copy."""
    # Not `pa.array`: asked for the first time, that imports pandas where it is installed.
    return pa.Array.from_buffers(pa.int64(), len(numbers), [None, pa.py_buffer(numbers)])


def random_places(keys: pa.Array, identities: pa.Array) -> Ints:
    """Places in the order of integer keys that hardly ever meet; then, in that of identities."""
    words = integers(keys)
    order = np.argsort(words)  # Not stable, and so twice as fast.
    if np.any(words[order[1:]] == words[order[:-1]]):
        order = np.lexsort((integers(identities), words))
    return order


def integers(column: pa.Array) -> npt.NDArray[Any]:
    """A column of integers without NULLs, without a copy."""
    # Not `to_numpy`, for the same reason: pandas takes a third of a second.
    kind = np.dtype(str(column.type))
    values = column.buffers()[1]
    if values is None:  # No rows.
        return np.zeros(0, kind)
    return np.frombuffer(values, kind, len(column), column.offset * kind.itemsize)


class Ranges:
    """The ranges between bounds, a table of keys and ordinals in order."""

    def __init__(self, bounds: pa.Table) -> None:
        rows = bounds.combine_chunks()
        kept = [c.chunk(0) if c.num_chunks else pa.array([], c.type) for c in rows.columns]
        self._keys, self._ordinals = kept[0], integers(kept[1])

    def of(self, keys: pa.Array, ordinals: pa.Array) -> Ints:
        """The partition of each row."""
        return range_partition(keys, self._keys, integers(ordinals), self._ordinals)


def range_partition(
    keys: pa.Array,
    bounds: pa.Array,
    ordinals: U64 | None = None,
    bound_ordinals: U64 | None = None,
) -> Ints:
    """For each key the number of bounds that are not above it: its partition.

    `keys` and `bounds` are binary without NULLs, the bounds in order. With ordinals,
    rows and bounds are compared as pairs (key, ordinal).
    """
    rows, edges = _Words(keys), _Words(bounds)
    if not len(bounds):
        return np.zeros(len(keys), np.int64)
    first, edge_first = rows.first(), edges.first()
    numbers, near = _by_table(first, edge_first)
    some = first[near]
    found = np.searchsorted(edge_first, some, "right")
    numbers[near] = found
    close = near[(found > 0) & (edge_first[found - 1] == some)]
    if len(close):
        below, upto = _equal_range(rows, edges, close)
        if ordinals is not None and bound_ordinals is not None:
            upto = _by_ordinal(below, upto, ordinals[close], bound_ordinals)
        numbers[close] = upto
    return numbers


def _by_table(words: U64, edges: U64) -> tuple[Ints, Ints]:
    """For each word the number of edges not above it, and the rows where that is not sure.

    The range of the edges is cut into equal cells, few enough to stay in the cache; a
    cell without an edge decides its words four times faster than a binary search.
    """
    low, high = int(edges[0]), int(edges[-1])
    shift = max(0, (high - low).bit_length() - _CELL_BITS)
    # One cell more on each side, for the words outside.
    low, high = max(0, low - (1 << shift)), min((1 << 64) - 1, high + (1 << shift))
    cells = np.clip(words, np.uint64(low), np.uint64(high))
    cells -= np.uint64(low)
    cells >>= np.uint64(shift)
    edge_cells = (edges - np.uint64(low)) >> np.uint64(shift)
    every = np.arange(((high - low) >> shift) + 1, dtype=np.uint64)
    before = np.searchsorted(edge_cells, every, "left")
    unsure = before != np.searchsorted(edge_cells, every, "right")
    places = cells.view(np.int64)
    return before.take(places), np.flatnonzero(unsure.take(places))


class _Words:
    """Binary keys, seen as 64-bit words that compare like their bytes."""

    def __init__(self, keys: pa.Array) -> None:
        assert keys.null_count == 0
        self.keys = keys
        if pa.types.is_fixed_size_binary(keys.type):
            width, data = keys.type.byte_width, keys.buffers()[1]
            self.starts = np.arange(keys.offset, keys.offset + len(keys), dtype=np.int64) * width
            self.lengths = np.full(len(keys), width, np.int64)
        else:
            large = pa.types.is_large_binary(keys.type) or pa.types.is_large_string(keys.type)
            kind = np.dtype(np.int64 if large else np.int32)
            _, places, data = keys.buffers()
            edges = (
                np.frombuffer(places, kind, len(keys) + 1, keys.offset * kind.itemsize)
                if len(keys)
                else np.zeros(1, kind)
            )
            self.starts = edges[:-1].astype(np.int64)
            self.lengths = np.diff(edges).astype(np.int64)
        raw = b"" if data is None else data
        if len(raw) < 8:
            raw = bytes(raw).ljust(8, b"\0")
        self._raw = raw
        # Every 8 bytes, whatever they begin at.
        self._words = np.ndarray((len(raw) - 7,), ">u8", raw, 0, (1,))

    def first(self) -> U64:
        width = int(self.lengths[0]) if len(self.lengths) else 0
        fixed = pa.types.is_fixed_size_binary(self.keys.type)
        if fixed and width >= 8:  # Evenly spaced: no places to look up.
            start, n = int(self.starts[0]), len(self.keys)
            return np.ndarray((n,), ">u8", self._raw, start, (width,)).astype(np.uint64)
        return self._at(self.starts, self.lengths)

    def word(self, level: int, rows: Ints) -> tuple[U64, Ints]:
        """Word `level` of some rows, and how many bytes they have from it on, up to 9."""
        left = self.lengths[rows] - 8 * level
        return self._at(self.starts[rows] + 8 * level, left), np.minimum(left, _GOES_ON)

    def _at(self, places: Ints, left: Ints) -> U64:
        last = len(self._words) - 1
        words = self._words[np.minimum(places, last)].astype(np.uint64)
        if len(places) and int(places.max()) > last:  # Too near the end to read 8 bytes there.
            over = np.clip(places - last, 0, 7).astype(np.uint64)
            words <<= over * np.uint64(8)
        words &= _MASKS[np.minimum(left, 8)]
        return words


def _equal_range(rows: _Words, edges: _Words, todo: Ints) -> tuple[Ints, Ints]:
    """For each row of `todo`, how many bounds are below it, and how many not above it.

    Word by word. Bounds that agree in all words so far form a group, named by its first
    bound; the rows that agree with them too are compared with that group only.
    """
    below, upto = np.zeros(len(todo), np.int64), np.zeros(len(todo), np.int64)
    open_rows = np.arange(len(todo))
    group = np.zeros(len(todo), np.int64)
    active = np.arange(len(edges.keys))
    edge_group = np.zeros(len(active), np.int64)
    for level in range(_MOST_WORDS):
        words, left = rows.word(level, todo[open_rows])
        edge_words, edge_left = edges.word(level, active)
        if _shared(edge_words, edge_left, edge_group):
            # All bounds go on alike: a text with a common beginning, such as an address.
            above = words > edge_words[0]
            below[open_rows] = upto[open_rows] = np.where(above, active[-1] + 1, active[0])
            on = (words == edge_words[0]) & (left == _GOES_ON)
            open_rows, group = open_rows[on], group[on]
            continue
        known = np.unique(edge_words)
        tokens = _token(group, known, words, left)
        edge_tokens = _token(edge_group, known, edge_words, edge_left)
        low = np.searchsorted(edge_tokens, tokens, "left")
        at = np.minimum(low, len(active) - 1)
        end_of_run = np.searchsorted(edge_tokens, edge_tokens, "right")
        high = np.where(edge_tokens[at] == tokens, end_of_run[at], low)
        below[open_rows] = _place(active, edge_group, group, low)
        upto[open_rows] = _place(active, edge_group, group, high)

        goes_on = (low < high) & (left == _GOES_ON)
        if not goes_on.any():
            return below, upto
        open_rows, group = open_rows[goes_on], active[low[goes_on]]
        edge_goes_on = edge_left == _GOES_ON
        first = np.searchsorted(edge_tokens, edge_tokens, "left")
        active, edge_group = active[edge_goes_on], active[first][edge_goes_on]
    _compare_whole(rows, edges, todo, open_rows, below, upto)
    return below, upto


def _shared(words: U64, left: Ints, group: Ints) -> bool:
    """Whether all of these bounds have the same word, and all have more."""
    same = words[0] == words[-1] and group[0] == group[-1]
    return bool(same and (left == _GOES_ON).all() and (words == words[0]).all())


def _token(group: Ints, known: U64, words: U64, left: Ints) -> Ints:
    """(group, word, bytes left) as one number that compares alike, given the bounds' words.

    Of two keys with equal words (zeros fill the last) the shorter is the smaller.
    """
    rank = np.searchsorted(known, words, "left")
    present = known[np.minimum(rank, len(known) - 1)] == words
    tokens: Ints = (group * (2 * len(known) + 1) + 2 * rank + present) * 10 + left
    return tokens


def _place(active: Ints, edge_group: Ints, group: Ints, at: Ints) -> Ints:
    """The number of all bounds before place `at` of the active ones, within its group."""
    last = np.maximum(at - 1, 0)
    same = (at > 0) & (edge_group[last] == group)
    number: Ints = np.where(same, active[last] + 1, active[np.minimum(at, len(active) - 1)])
    return number


def _compare_whole(
    rows: _Words, edges: _Words, todo: Ints, open_rows: Ints, below: Ints, upto: Ints
) -> None:
    encoded = rows.keys.take(row_numbers(todo[open_rows])).dictionary_encode()
    ordered = edges.keys.to_pylist()
    distinct = encoded.dictionary.to_pylist()
    codes = integers(encoded.indices)
    below[open_rows] = np.array([bisect_left(ordered, key) for key in distinct])[codes]
    upto[open_rows] = np.array([bisect_right(ordered, key) for key in distinct])[codes]


def _by_ordinal(below: Ints, upto: Ints, ordinals: U64, bound_ordinals: U64) -> Ints:
    """Cut rows that equal a bound's key by their ordinal; others stay as they are."""
    numbers = upto.copy()
    equal = below < upto
    for first in np.unique(below[equal]):
        mine = equal & (below == first)
        own = bound_ordinals[first : upto[mine][0]]
        numbers[mine] = first + np.searchsorted(own, ordinals[mine], "right")
    return numbers
