"""Batches from a cursor on: positions → units → columns, several steps at a gather.

`Maker` yields groups of (batch, what follows it). It is a plain generator over values
that it was given, so that a thread may run it, and it never looks at the loader.
"""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from millpond.engine.values import as_values
from millpond.errors import RowsUnreadable
from millpond.loader.columns import Column, to_arrow, to_numpy
from millpond.loader.order import BlockOrder, splitmix64_array
from millpond.loader.prefetch import Ahead
from millpond.loader.sequence import GlobalSequence, Single
from millpond.loader.state import Cursor, Receipt, receipt_words
from millpond.loader.steps import Geometry
from millpond.loader.units import Units, interleave
from millpond.loader.views import to_views

Int64s = npt.NDArray[np.int64]
T = TypeVar("T")
Format = Literal["numpy", "arrow", "torch", "views"]
FORMATS = get_args(Format)

# A gather takes as many steps as give this many positions, which the order is fastest
# at, but not more bytes than stay in the cache of the processor and of the allocator.
GROUP_ROWS = 8192
GROUP_BYTES = 8 << 20
# Of random rows from a disk, which takes far longer over so many than a hand-over does: who
# waits for the first batch waits for few others.
_COLD_ROWS = 512
# Groups whose rows were asked for and wait to be read, beside one that waits for room: more
# of them gain nothing.
_ASKED_AHEAD = 1
# A damaged unit has that many substitutes to try before the loader gives up.
TRIES = 64


class Batch(dict[str, Any]):
    """Columns by name, and where they stand: `epoch`, `step`, `positions`, `units`.

    `units` are row numbers (packs, with packing), `source` the source of each in a
    mixture, `padded` how many at the end repeat earlier rows.
    """

    epoch: int
    step: int
    positions: Int64s
    units: Int64s
    source: Int64s | None
    padded: int


@dataclass(frozen=True, slots=True)
class Delivered:
    """What the loader notes when a batch is handed over."""

    after: Cursor
    receipt: Receipt
    padded: int
    skipped: int


Group = list[tuple[Any, Delivered]]
Dress = Callable[[dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Share:
    """Which steps are ours, where several workers of one rank take turns."""

    number: int = 0
    of: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class _Plan:
    """The positions and units of several steps: all that is known before anything is read."""

    epoch: int
    n: int
    begin: int
    after: list[Cursor]
    edges: Int64s
    positions: Int64s
    source: Int64s | None
    units: Int64s


@dataclass(frozen=True, slots=True)
class Maker:
    """Makes batches out of positions. It holds values only, and nothing of it changes."""

    sequence: GlobalSequence
    units: tuple[Units, ...]
    geometry: Geometry
    format: Format = "numpy"
    skip_bad: bool = False
    share: Share = Share()
    dress: Dress | None = None
    threads: bool = False

    def groups(self, cursor: Cursor, end_epoch: int | None) -> Iterator[Group]:
        """All batches of our share from `cursor` to the end of the run, in order."""
        prepared = [units.prepare(self._blocks(cursor.epoch) is None) for units in self.units]
        plans = self._plans(cursor, end_epoch)
        if not any(prepared):
            yield from map(self._group, plans)
        elif self.threads:
            # The disk takes requests at its own pace: a thread waits for it.
            with closing(Ahead(self._asked_for(plans), _ASKED_AHEAD)) as asked:
                yield from map(self._group, asked)
        else:
            yield from map(self._group, one_ahead(self._asked_for(plans)))

    def _asked_for(self, plans: Iterator["_Plan"]) -> Iterator["_Plan"]:
        """Plans whose rows were asked for."""
        epoch = -1
        for plan in plans:
            self._ask_for(plan, begins=plan.epoch != epoch)
            epoch = plan.epoch
            yield plan

    def _plans(self, cursor: Cursor, end_epoch: int | None) -> Iterator["_Plan"]:
        turn = 0
        epoch, position, step = cursor
        while end_epoch is None or epoch < end_epoch:
            n = self.sequence.length(epoch)
            left = self.geometry.steps(n, position)
            steps, size = list[int](), self.steps_per_group()
            for k in range((self.share.number - turn) % self.share.of, left, self.share.of):
                steps.append(k)
                if len(steps) == size:
                    yield self._plan(epoch, n, position, step, steps)
                    steps, size = [], self.steps_per_group()
            if steps:
                yield self._plan(epoch, n, position, step, steps)
            turn, step = turn + left, step + left
            epoch, position = epoch + 1, 0

    def steps_per_group(self) -> int:
        """Few while random rows come from the disk, many as soon as they lie in memory."""
        is_cold = self._blocks(0) is None and any(units.cold for units in self.units)
        size = max(unit.unit_bytes for unit in self.units)
        rows = min(_COLD_ROWS if is_cold else GROUP_ROWS, int(GROUP_BYTES / max(1.0, size)))
        return max(1, rows // self.geometry.batch_size)

    def _plan(self, epoch: int, n: int, position: int, step: int, ks: list[int]) -> "_Plan":
        starts = [position + k * self.geometry.step_rows for k in ks]
        spans = [self.geometry.span(n, start) for start in starts]
        counts = np.array([last - first for first, last in spans], np.int64)
        edges = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        firsts = np.array([first for first, _ in spans], np.int64)
        positions = np.repeat(firsts - edges[:-1], counts) + np.arange(edges[-1])
        source, units = self.sequence.at(epoch, positions % n if self.geometry.pad else positions)
        after = [
            Cursor(epoch, self.geometry.after(n, start), step + k + 1)
            for start, k in zip(starts, ks, strict=True)
        ]
        return _Plan(epoch, n, starts[0], after, edges, positions, source, units)

    def _blocks(self, epoch: int) -> BlockOrder | None:
        return self.sequence.blocks(epoch) if isinstance(self.sequence, Single) else None

    def _ask_for(self, plan: "_Plan", begins: bool) -> None:
        """Tell the system what the next group reads; blocks are asked for a window ahead."""
        order = self._blocks(plan.epoch)
        if order is not None:
            # What all ranks read: on one machine they share the pages, on several each
            # needs its rows out of every block.
            if begins:
                self.units[0].advise(order.window_rest(plan.begin), order.block_rows)
            at = order.blocks_ahead(plan.begin, plan.after[-1].position)
            self.units[0].advise(at, order.block_rows)
        elif plan.source is None:
            self.units[0].advise(plan.units, 1)
        else:
            for s in np.unique(plan.source).tolist():
                self.units[s].advise(plan.units[plan.source == s], 1)

    def _group(self, plan: "_Plan") -> Group:
        epoch, positions, source, edges = plan.epoch, plan.positions, plan.source, plan.edges
        columns, units, bad = self._columns(source, plan.units)
        words = receipt_words(epoch, positions, units, source)
        whole = shown(columns, self.format, self.dress)
        group: Group = []
        for i, after in enumerate(plan.after):
            a, b = int(edges[i]), int(edges[i + 1])
            padded = int(np.count_nonzero(positions[a:b] >= plan.n))
            skipped = int(np.count_nonzero(bad[a:b]))
            receipt = Receipt(b - a, int(words[a:b].sum(dtype=np.uint64)))
            batch = self._batch(whole, a, b)
            if isinstance(batch, Batch):
                batch.epoch, batch.step, batch.padded = epoch, after.step - 1, padded
                batch.positions, batch.units = positions[a:b], units[a:b]
                batch.source = None if source is None else source[a:b]
            group.append((batch, Delivered(after, receipt, padded, skipped)))
        return group

    def _batch(self, whole: Any, first: int, last: int) -> Any:
        if self.format == "arrow":
            return whole.slice(first, last - first)
        return Batch({name: column[first:last] for name, column in whole.items()})

    def _columns(
        self, source: Int64s | None, units: Int64s
    ) -> tuple[dict[str, Column], Int64s, npt.NDArray[np.bool_]]:
        """The columns of units, the units that were delivered, and which are substitutes."""
        bad = np.zeros(units.size, bool)
        if source is None:
            columns, units = self._take(self.units[0], units, bad, np.arange(units.size))
            return columns, units, bad
        units, parts, places = units.copy(), [], []
        for s in np.unique(source).tolist():
            mine = np.flatnonzero(source == s)
            taken, units[mine] = self._take(self.units[s], units[mine], bad, mine)
            parts.append(taken)
            places.append(mine)
        if not parts:
            taken, _ = self._take(self.units[0], units, bad, units)
            return taken, units, bad
        names = parts[0]
        return {n: interleave([p[n] for p in parts], places) for n in names}, units, bad

    def _take(
        self, of: Units, units: Int64s, bad: npt.NDArray[np.bool_], places: Int64s
    ) -> tuple[dict[str, Column], Int64s]:
        """The columns of units; damaged ones are replaced if the loader skips them.

        The substitute is a function of the unit alone, so every rank and every
        restored run takes the same one, and all ranks stay in step.
        """
        tries = np.zeros(units.size, np.int64)
        wanted = units
        while True:
            try:
                return of.take(wanted, in_place=self.format == "views"), wanted
            except RowsUnreadable as error:
                wrong = of.touching(wanted, error.rows)
                if not self.skip_bad or tries.max(initial=0) >= TRIES or not wrong.any():
                    raise
            bad[places[wrong]] = True
            tries[wrong] += 1
            wanted = np.where(wrong, substitute(units, tries, of.n), wanted)


def one_ahead(items: Iterator[T]) -> Iterator[T]:
    """Each item when the one after it was made."""
    ready = list(islice(items, 1))
    for item in items:
        yield ready.pop()
        ready.append(item)
    yield from ready


def shown(columns: dict[str, Column], format: Format, dress: Dress | None) -> Any:
    """Columns as a user asked for them; `dress` makes tensors of arrays."""
    if format == "arrow":
        arrays = [to_arrow(column) for column in columns.values()]
        return pa.RecordBatch.from_arrays(arrays, names=list(columns))
    show = to_views if format == "views" else to_numpy
    plain = {}
    for name, column in columns.items():
        try:
            plain[name] = show(column)
        except (OverflowError, ValueError, pa.ArrowException):
            as_values(to_arrow(column), name)  # Names the value that Python has not.
            raise
    return dress(plain) if dress is not None else plain


def substitute(units: Int64s, tries: Int64s, n: int) -> Int64s:
    """The unit that stands in for a damaged one, at each try."""
    words = splitmix64_array(units.astype(np.uint64) + (tries.astype(np.uint64) << np.uint64(48)))
    return (words % np.uint64(n)).astype(np.int64)
