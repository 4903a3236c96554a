"""The global sequence: which unit of which source stands at each position of an epoch.

A pure function of the sources, their order and the weights. One source is a keyed
permutation an epoch; a mixture runs each source through its own epochs, interleaved.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from millpond.loader.order import BlockOrder, Order, Permutation, derive_key
from millpond.loader.schedule import Schedule, Weights

Int64s = npt.NDArray[np.int64]
Exhausted = Literal["repeat", "stop"]


class Place(NamedTuple):
    """Where a unit stands: an epoch of the sequence, and a position in it."""

    epoch: int
    position: int


_START = Place(0, 0)


class GlobalSequence(Protocol):
    """Two implementations: one source, and a mixture."""

    def length(self, epoch: int) -> int:
        """Positions in an epoch."""

    def at(self, epoch: int, positions: Int64s) -> tuple[Int64s | None, Int64s]:
        """The source (None: the only one) and the unit at each position."""

    def place(self, source: int, unit: int, epoch: int) -> Place | None:
        """Where `unit` first stands in `epoch`; None if it does not."""

    def entered(self, epoch: int) -> "GlobalSequence":
        """The sequence once `epoch` has begun."""


@dataclass(frozen=True, slots=True)
class Single:
    """One source: each epoch is a permutation of its units."""

    n: int
    order: Order

    def length(self, epoch: int) -> int:
        return self.n

    def at(self, epoch: int, positions: Int64s) -> tuple[Int64s | None, Int64s]:
        return None, self.permutation(epoch).rows(positions)

    def place(self, source: int, unit: int, epoch: int) -> Place | None:
        at = self.permutation(epoch).positions(np.array([unit], np.int64))
        return Place(epoch, int(at[0]))

    def entered(self, epoch: int) -> "Single":
        return self

    def permutation(self, epoch: int) -> Permutation:
        return self.order.epoch(self.n, epoch)

    def blocks(self, epoch: int) -> BlockOrder | None:
        found = self.permutation(epoch)
        return found if isinstance(found, BlockOrder) else None


@dataclass(frozen=True, slots=True)
class Mixed:
    """Several sources by weight. Each one runs through its own epochs without a gap.

    An epoch of the mixture ends when every source was read through once more
    (`"repeat"`: the others meanwhile begin again), or when the first one was (`"stop"`).
    """

    sizes: tuple[int, ...]
    order: Order
    schedule: Schedule
    exhausted: Exhausted = "repeat"
    # An epoch and where it began. What weights did later must not move the past.
    anchor: Place = _START

    def length(self, epoch: int) -> int:
        return self.begin(epoch + 1) - self.begin(epoch)

    def begin(self, epoch: int) -> int:
        """The mixture's running position where an epoch begins."""
        return _begin(self, epoch)

    def entered(self, epoch: int) -> "Mixed":
        """The same mixture, with the beginning of `epoch` settled."""
        return replace(self, anchor=Place(epoch, self.begin(epoch)))

    def at(self, epoch: int, positions: Int64s) -> tuple[Int64s | None, Int64s]:
        source, index = self.schedule.at(positions + self.begin(epoch))
        units = np.empty_like(index)
        for s in np.unique(source).tolist():
            mine = np.flatnonzero(source == s)
            passes, inside = np.divmod(index[mine], self.sizes[s])
            for p in np.unique(passes).tolist():
                at = passes == p
                units[mine[at]] = self._pass(s, p).rows(inside[at])
        return source, units

    def place(self, source: int, unit: int, epoch: int) -> Place | None:
        begin, end = self.begin(epoch), self.begin(epoch + 1)
        first = int(self.schedule.counts(begin)[source]) // self.sizes[source]
        last = int(self.schedule.counts(end)[source]) // self.sizes[source]
        for p in range(first, last + 1):
            inside = int(self._pass(source, p).positions(np.array([unit], np.int64))[0])
            at = self.schedule.position_of(source, p * self.sizes[source] + inside)
            if at is not None and begin <= at < end:
                return Place(epoch, at - begin)
        return None

    def change(self, epoch: int, position: int, weights: Weights) -> "Mixed":
        """The mixture with other weights from a position on."""
        at = self.begin(epoch) + position
        return replace(self, schedule=self.schedule.change(at, weights))

    def _pass(self, source: int, number: int) -> Permutation:
        own = replace(self.order, seed=derive_key(self.order.seed, source + 1))
        return own.epoch(self.sizes[source], number)

    def read_through(self, times: int) -> int:
        """Where every source, or the first, was read `times` times since the start."""
        ends = [self.schedule.position_of(s, times * n - 1) for s, n in enumerate(self.sizes)]
        known = [end + 1 for end in ends if end is not None]
        return (max if self.exhausted == "repeat" else min)(known, default=0)


@lru_cache(maxsize=64)
def _begin(mixed: Mixed, epoch: int) -> int:
    known, at = mixed.anchor
    if epoch < known:
        return mixed.read_through(epoch) if epoch else 0
    for e in range(known + 1, epoch + 1):
        at = max(at, mixed.read_through(e))
    return at


def describe(sizes: Sequence[int], schedule: Schedule) -> str:
    """One line on a mixture: the part of each source under its latest weights."""
    weights = schedule.log[-1][1]
    total = sum(weights)
    return ", ".join(
        f"source {i}: {w / total:.2%} of {n} rows"
        for i, (n, w) in enumerate(zip(sizes, weights, strict=True))
    )
