"""Which source of a mixture has which position: a low-discrepancy pattern, closed form.

With whole weights w of sum T, each run of T positions holds exactly w[i] rows of
source i, spread as evenly as possible: the j-th of them stands where (2j + 1) / w[i]
ranks it, all sources together. Weights may change at any position; a log of the
changes says from where each set counts. Integers only, so it is the same everywhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from math import gcd
from numbers import Rational, Real

import numpy as np
import numpy.typing as npt

from millpond.errors import OptionError

Int64s = npt.NDArray[np.int64]
Weights = tuple[int, ...]

# Weights of a greater sum, and real ones, are rounded to this sum: the pattern of one
# period then takes a megabyte and 3 ms, so that a restore anywhere stays cheap.
SUM = 1 << 16
# What a state may hold: no weight is rounded to zero, which adds to the sum.
LIMIT = 1 << 20


def whole_weights(weights: Sequence[float], where: str) -> Weights:
    """Weights as coprime integers: whole ones of a sum up to 2^16 are kept, others rounded to it.

    A positive weight never becomes zero. Raises `OptionError` for what is no weight.
    """
    exact: list[Fraction] = []
    for weight in weights:
        if not isinstance(weight, Real | Decimal):
            raise OptionError(
                f"{where}: the weight {weight!r} is no number. Pass one of 0 or more."
            )
        if not weight >= 0 or weight == float("inf"):
            raise OptionError(f"{where}: the weight {weight} is not 0 or more. Pass such weights.")
        exact.append(Fraction(weight if isinstance(weight, Rational | Decimal) else float(weight)))
    total = sum(exact)
    if not total:
        raise OptionError(f"{where}: all weights are zero, so no source is ever read. Raise one.")
    if all(w.denominator == 1 for w in exact):
        common = gcd(*[w.numerator for w in exact])
        whole = tuple(w.numerator // common for w in exact)
        if sum(whole) <= SUM:
            return whole
    rounded = [max(1, round(w * SUM / total)) if w else 0 for w in exact]
    common = gcd(*rounded)
    return tuple(w // common for w in rounded)


@dataclass(frozen=True, slots=True, eq=False)
class Pattern:
    """One period: the source of each place, and how many of that source come before it."""

    weights: Weights
    source: npt.NDArray[np.uint16]
    rank: npt.NDArray[np.uint32]
    places: Int64s  # Places of source 0, then of source 1, …
    first: Int64s  # Where each source begins in `places`.

    @property
    def period(self) -> int:
        return len(self.source)


@lru_cache(maxsize=8)
def pattern(weights: Weights) -> Pattern:
    """The pattern of coprime whole weights. Cost: 0.1 to 3 ms, by their sum."""
    counts = np.array(weights, np.int64)
    first = np.cumsum(counts) - counts
    source = np.repeat(np.arange(len(weights)), counts)
    j = np.arange(len(source)) - first[source]
    # (2j + 1) / w as a binary fraction of 40 bits: two keys of sources with sums up to
    # 2^20 are equal, or differ by 1 / (w * w') >= 2^-40. Ties go to the earlier source,
    # which the lowest 16 bits hold: one sort of plain numbers gives all.
    w = counts[source]
    top, rest = np.divmod(2 * j + 1, w)
    key = (top << 41) + (rest << 41) // w
    at = np.sort(key << 16 | source).astype(np.uint16)
    places = np.argsort(at, kind="stable")
    rank = np.empty(len(at), np.uint32)
    rank[places] = j
    return Pattern(weights, at, rank, places, first)


@dataclass(frozen=True, slots=True)
class Schedule:
    """The weights of a mixture from each position on: a log that begins at 0."""

    log: tuple[tuple[int, Weights], ...]

    def change(self, position: int, weights: Weights) -> "Schedule":
        """The schedule with other weights from `position` on; later entries are dropped."""
        return Schedule(
            (*(entry for entry in self.log if entry[0] < position), (position, weights))
        )

    def at(self, positions: Int64s) -> tuple[Int64s, Int64s]:
        """The source of each position, and how many rows of it come before."""
        starts = np.array([start for start, _ in self.log], np.int64)
        part = np.searchsorted(starts, positions, side="right") - 1
        source, index = np.empty_like(positions), np.empty_like(positions)
        for i in np.unique(part).tolist():
            mine = part == i
            found = pattern(self.log[i][1])
            turn, place = np.divmod(positions[mine] - starts[i], found.period)
            of = found.source[place].astype(np.int64)
            weights = np.array(found.weights, np.int64)
            source[mine] = of
            index[mine] = self._before(i)[of] + turn * weights[of] + found.rank[place]
        return source, index

    def position_of(self, source: int, index: int) -> int | None:
        """Where row `index` of a source stands; None if its weight stays 0 before that."""
        for i in reversed(range(len(self.log))):
            start, weights = self.log[i]
            before = int(self._before(i)[source])
            if index >= before and weights[source]:
                found = pattern(weights)
                turn, j = divmod(index - before, weights[source])
                place = int(found.places[int(found.first[source]) + j])
                position = start + turn * found.period + place
                end = self.log[i + 1][0] if i + 1 < len(self.log) else None
                return position if end is None or position < end else None
        return None

    def counts(self, position: int) -> Int64s:
        """Rows of each source before `position`."""
        i = max(k for k, (start, _) in enumerate(self.log) if start <= position)
        return self._before(i) + _count(self.log[i][1], position - self.log[i][0])

    def _before(self, i: int) -> Int64s:
        """Rows of each source before the log's i-th entry."""
        return _before(self.log[: i + 1])


@lru_cache(maxsize=64)
def _before(log: tuple[tuple[int, Weights], ...]) -> Int64s:
    total = np.zeros(len(log[0][1]), np.int64)
    for (start, weights), (end, _) in pairwise(log):
        total = total + _count(weights, end - start)
    return total


def _count(weights: Weights, length: int) -> Int64s:
    found = pattern(weights)
    turns, rest = divmod(length, found.period)
    part = np.bincount(found.source[:rest], minlength=len(weights)) if rest else 0
    return np.array(weights, np.int64) * turns + part
