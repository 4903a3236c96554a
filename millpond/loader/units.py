"""Units: what a position stands for. A row of a dataset, a kept row, or a pack.

Above here only unit numbers 0..n-1 are ordered, cut and counted; below are rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from millpond.formats.shard_types import is_bytes, is_fixed, is_list
from millpond.loader.columns import Column, flat_lists, to_arrow
from millpond.loader.packing import PackPlan
from millpond.loader.selection import Selection
from millpond.loader.views import Views, to_views

Int64s = npt.NDArray[np.int64]
Columns = dict[str, Column]


class RowSource(Protocol):
    """Rows by number. Implementations: shards, and Parquet files."""

    @property
    def uri(self) -> str: ...
    @property
    def n_rows(self) -> int: ...
    @property
    def schema(self) -> pa.Schema: ...
    @property
    def fingerprint(self) -> str: ...
    def take(self, rows: Int64s, columns: Sequence[str], in_place: bool = False) -> Columns: ...
    def advise(self, rows: Int64s, columns: Sequence[str], count: int = 1) -> None: ...
    def advise_new(self, rows: Int64s, columns: Sequence[str]) -> None: ...
    def lengths(self, column: str) -> Int64s: ...
    def slices(
        self, rows: Int64s, column: str, start: Int64s, size: Int64s
    ) -> npt.NDArray[Any]: ...
    def prepare(self, whole: bool) -> bool: ...
    @property
    def cold(self) -> bool: ...
    def row_bytes(self, columns: Sequence[str]) -> float: ...
    def cost(self) -> str: ...


class Units(Protocol):
    """What the positions of one source stand for."""

    @property
    def n(self) -> int: ...
    def take(self, units: Int64s, in_place: bool = False) -> Columns:
        """Raises `RowsUnreadable` where rows are damaged."""

    def rows(self, units: Int64s) -> Int64s:
        """One row of each unit: itself, or a pack's first document."""

    def touching(self, units: Int64s, rows: Sequence[int]) -> npt.NDArray[np.bool_]:
        """Which units need one of `rows`."""

    def unit_of(self, row: int) -> int | None:
        """The unit that a row is first delivered in; None if it is in none."""

    def advise(self, units: Int64s, count: int) -> None:
        """Say that `count` units from each of `units` on are read next."""

    def prepare(self, whole: bool) -> bool:
        """Before the first unit is read; whether `advise` helps. `whole`: any may be next."""

    @property
    def cold(self) -> bool:
        """Whether units come one by one from a disk of this machine."""

    @property
    def unit_bytes(self) -> float: ...


@dataclass(frozen=True, slots=True, eq=False)
class RowUnits:
    """Each unit is a row; with a selection, a kept row."""

    source: RowSource
    columns: tuple[str, ...]
    selection: Selection | None = None

    @property
    def n(self) -> int:
        return self.source.n_rows if self.selection is None else self.selection.n

    @property
    def unit_bytes(self) -> float:
        return self.source.row_bytes(self.columns)

    def prepare(self, whole: bool) -> bool:
        return self.source.prepare(whole)

    @property
    def cold(self) -> bool:
        return self.source.cold

    def rows(self, units: Int64s) -> Int64s:
        return units if self.selection is None else self.selection.rows(units)

    def take(self, units: Int64s, in_place: bool = False) -> Columns:
        return self.source.take(self.rows(units), self.columns, in_place)

    def touching(self, units: Int64s, rows: Sequence[int]) -> npt.NDArray[np.bool_]:
        return np.isin(self.rows(units), np.array(rows, np.int64))

    def unit_of(self, row: int) -> int | None:
        return row if self.selection is None else self.selection.find(row)

    def advise(self, units: Int64s, count: int) -> None:
        self.source.advise(self.rows(units), self.columns, count)


@dataclass(frozen=True, slots=True, eq=False)
class PackUnits:
    """Each unit is a pack: columns tokens, `positions` and `segment_ids`, all of one length.

    Positions count from 0 in each document, so a cut one goes on where it was cut;
    segments count from 1 in each pack, and 0 is padding.
    """

    source: RowSource
    tokens: str
    plan: PackPlan
    selection: Selection | None = None
    pad_token: int = 0

    @property
    def n(self) -> int:
        return self.plan.n_packs

    @property
    def unit_bytes(self) -> float:
        return self.plan.pack * 12.0

    def prepare(self, whole: bool) -> bool:
        return self.source.prepare(whole)

    @property
    def cold(self) -> bool:
        return self.source.cold

    def _documents(self, documents: Int64s) -> Int64s:
        return documents if self.selection is None else self.selection.rows(documents)

    def rows(self, units: Int64s) -> Int64s:
        return self._documents(self.plan.document[self.plan.first_piece[units]])

    def take(self, units: Int64s, in_place: bool = False) -> Columns:
        """Packs are laid out anew; nothing of them is left in place."""
        pieces, owner = self.plan.pieces(units)
        rows = self._documents(self.plan.document[pieces])
        start = self.plan.start[pieces].astype(np.int64)
        size = self.plan.size[pieces].astype(np.int64)
        # Of documents that were cut, the pieces alone are read: another pack has the rest.
        cut = (start > 0) | (size == self.plan.pack)
        lists = self.source.take(rows[~cut], [self.tokens])[self.tokens]
        values, offsets = flat_lists(lists)
        at = np.empty(rows.size, np.int64)
        at[~cut] = offsets[:-1]
        if cut.any():
            parts = self.source.slices(rows[cut], self.tokens, start[cut], size[cut])
            at[cut] = values.size + np.cumsum(size[cut]) - size[cut]
            values = np.concatenate([values, parts])
        return self._laid(units.size, owner, at, start, size, values)

    def _laid(
        self,
        n: int,
        owner: Int64s,
        source: Int64s,
        start: Int64s,
        size: Int64s,
        values: npt.NDArray[Any],
    ) -> Columns:
        """Lay pieces one after the other into their packs."""
        pack = self.plan.pack
        first_of = np.searchsorted(owner, np.arange(n))
        before = np.cumsum(size) - size
        at = owner * pack + before - before[first_of][owner]
        segment = np.arange(owner.size) - first_of[owner] + 1
        tokens = np.full(n * pack, self.pad_token, values.dtype)
        positions = np.zeros(n * pack, np.int32)
        segments = np.zeros(n * pack, np.int32)
        count = np.arange(pack, dtype=np.int32)
        for a, s, t, k, g in zip(
            at.tolist(),
            source.tolist(),
            start.tolist(),
            size.tolist(),
            segment.tolist(),
            strict=True,
        ):
            tokens[a : a + k] = values[s : s + k]
            positions[a : a + k] = count[:k] + t
            segments[a : a + k] = g
        return {
            self.tokens: _rows_of(tokens, n, pack),
            "positions": _rows_of(positions, n, pack),
            "segment_ids": _rows_of(segments, n, pack),
        }

    def touching(self, units: Int64s, rows: Sequence[int]) -> npt.NDArray[np.bool_]:
        pieces, owner = self.plan.pieces(units)
        bad = np.isin(self._documents(self.plan.document[pieces]), np.array(rows, np.int64))
        touched = np.zeros(units.size, bool)
        touched[owner[bad]] = True
        return touched

    def unit_of(self, row: int) -> int | None:
        document = row if self.selection is None else self.selection.find(row)
        return None if document is None else self.plan.pack_of(document)

    def advise(self, units: Int64s, count: int) -> None:
        pieces, _ = self.plan.pieces(units)
        self.source.advise(self._documents(self.plan.document[pieces]), [self.tokens])


def interleave(parts: Sequence[Column], places: Sequence[Int64s]) -> Column:
    """One column out of several of a type: row i of part k goes to `places[k][i]`."""
    if len(parts) == 1:
        order = np.argsort(places[0])
        if (order == np.arange(order.size)).all():
            return parts[0]
    n, kind = sum(part.n for part in parts), parts[0].kind
    if any(part.rows is not None for part in parts):
        return Column(kind, n, rows=_views(parts, places, n))
    plain = all(part.values is not None and part.offsets is None for part in parts)
    if plain:
        return _placed(parts, places, n)
    leaves = is_bytes(kind) or (is_list(kind) and is_fixed(kind.value_type))
    if leaves and all(part.offsets is not None for part in parts) and not _inner_nulls(parts):
        return _joined(parts, places, n)
    arrays = pa.chunked_array([to_arrow(part) for part in parts], type=kind)
    order = np.argsort(np.concatenate(list(places)))
    whole = arrays.combine_chunks().take(pa.array(order))
    whole = whole.combine_chunks() if isinstance(whole, pa.ChunkedArray) else whole
    return Column(kind, n, array=whole)


def _views(parts: Sequence[Column], places: Sequence[Int64s], n: int) -> Views:
    rows: Views = [None] * n
    for part, at in zip(parts, places, strict=True):
        for place, row in zip(at.tolist(), to_views(part), strict=True):
            rows[place] = row
    return rows


def _placed(parts: Sequence[Column], places: Sequence[Int64s], n: int) -> Column:
    first = cast(npt.NDArray[Any], parts[0].values)
    values = np.empty((n, *first.shape[1:]), first.dtype)
    for part, at in zip(parts, places, strict=True):
        values[at] = part.values
    return Column(parts[0].kind, n, values, valid=_placed_valid(parts, places, n))


def _joined(parts: Sequence[Column], places: Sequence[Int64s], n: int) -> Column:
    """Strings and lists of plain values: their bytes, sliced and joined in order."""
    kind, slices = parts[0].kind, [memoryview(b"")] * n
    lengths = np.zeros(n, np.int64)
    for part, at in zip(parts, places, strict=True):
        leaf = part if is_bytes(kind) else part.children[0]
        each = 1 if is_bytes(kind) else kind.value_type.bit_width // 8
        offsets = cast(Int64s, part.offsets)
        flat = memoryview(cast(Any, np.ascontiguousarray(leaf.values).reshape(-1).view(np.uint8)))
        edges = (offsets * each).tolist()
        for i, place in enumerate(at.tolist()):
            slices[place] = flat[edges[i] : edges[i + 1]]
        lengths[at] = np.diff(offsets)
    values = np.frombuffer(bytearray().join(slices), np.uint8)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    valid = _placed_valid(parts, places, n)
    if is_bytes(kind):
        return Column(kind, n, values, offsets, valid)
    width = kind.value_type.bit_width // 8
    child = Column(kind.value_type, int(offsets[-1]), values.reshape(-1, width))
    return Column(kind, n, None, offsets, valid, (child,))


def _placed_valid(
    parts: Sequence[Column], places: Sequence[Int64s], n: int
) -> npt.NDArray[np.bool_] | None:
    if all(part.valid is None for part in parts):
        return None
    valid = np.ones(n, bool)
    for part, at in zip(parts, places, strict=True):
        if part.valid is not None:
            valid[at] = part.valid
    return valid


def _inner_nulls(parts: Sequence[Column]) -> bool:
    return any(child.valid is not None for part in parts for child in part.children)


def _rows_of(flat: npt.NDArray[Any], n: int, pack: int) -> Column:
    kind = pa.list_(pa.from_numpy_dtype(flat.dtype), pack)
    return Column(kind, n, flat.view(np.uint8).reshape(n, pack * flat.itemsize))
