"""Which epochs a pass over a `DataLoader` reads whose workers are new processes each time.

New workers are copies of a loader that their work never moves. What they have to know of the
passes before lies in memory that they share: where the latest pass begins, and the one after.
"""

from __future__ import annotations

import multiprocessing as mp
import os
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import get_spawning_popen
from typing import Any

from millpond.errors import OptionError

_WORKERS = 4096
_KEPT_BYTES = 256 << 10
# The latest pass, the cursor that copies came with, and for even and odd passes: the seed of its
# workers, the epoch where it begins (-1: where the copies stand), that of the one after.
_LATEST, _ORIGIN, _PASSES, _FIELDS = 0, 1, 4, 3


@dataclass(frozen=True, slots=True)
class Copy:
    """A worker of a pass: its number, the seed that all of the pass share, and where it stands.

    `restored`: it was given a state of its own, as by `StatefulDataLoader`.
    """

    number: int
    seed: int
    cursor: tuple[int, int, int]
    restored: bool


class Passes:
    """Passes over one dataset by workers of this process.

    Workers of a pass write the same words, the pass's number last, so that they need no lock,
    which one that is killed would hold for ever. A worker's own entry tells a new pass from one
    whose seed is the same because the user fixed it.
    """

    def __init__(self) -> None:
        self._words: Any = mp.RawArray("q", _PASSES + 2 * _FIELDS)
        self._seen: Any = mp.RawArray("q", 2 * _WORKERS)
        self._kept: Any = mp.RawArray("c", _KEPT_BYTES)
        self._words[_ORIGIN] = -1

    def __reduce__(self) -> tuple[Any, ...]:
        """Shared with a process that is being started; elsewhere a copy begins anew."""
        if get_spawning_popen() is None:
            return Passes, ()
        return _shared, (self._words, self._seen, self._kept)

    def keep(self, text: str) -> None:
        """Leave a text for the workers of later passes. One worker of a pass does so."""
        data = text.encode()
        if len(data) >= _KEPT_BYTES:
            raise OptionError(
                f"TorchDataset: the state has {len(data)} bytes of weights, and workers of later "
                f"passes take {_KEPT_BYTES} at most. Use millpond.loader.torch.batches."
            )
        self._kept.value = data

    def kept(self) -> str:
        """The text that was left last; empty if there is none."""
        found: bytes = self._kept.value
        return found.decode()

    def begin(self, copy: Copy, run_end: Callable[[int], int | None]) -> int | None:
        """The epoch where this worker's pass begins; None for where it stands.

        `run_end` gives the epoch after the run that has an epoch; None if there is no end.
        """
        if run_end(copy.cursor[0]) is None:
            return None
        words, latest = self._words, self._words[_LATEST]
        place = _place(latest)
        joins = latest and words[place] == copy.seed and not self._was_in(copy.number, latest)
        if not joins:
            moved = tuple(words[_ORIGIN:_PASSES]) != copy.cursor
            anew = not latest or copy.restored or (moved and words[_ORIGIN] >= 0)
            begin = -1 if anew else words[place + 2]
            end = run_end(copy.cursor[0] if anew else begin)
            latest, place = latest + 1, _place(latest + 1)
            words[place : place + _FIELDS] = [copy.seed, begin, end]
            words[_LATEST] = latest
            if not copy.restored:
                words[_ORIGIN:_PASSES] = copy.cursor
        self._seen[_seat(copy.number, latest)] = _mark(latest)
        begin = words[place + 1]
        return None if begin < 0 else begin

    def _was_in(self, number: int, latest: int) -> bool:
        found: int = self._seen[_seat(number, latest)]
        return found >> 32 == latest and found != _mark(latest)


def _shared(words: Any, seen: Any, kept: Any) -> Passes:
    passes = object.__new__(Passes)
    passes._words, passes._seen, passes._kept = words, seen, kept
    return passes


def _place(number: int) -> int:
    return _PASSES + number % 2 * _FIELDS


def _seat(worker: int, number: int) -> int:
    return number % 2 * _WORKERS + worker % _WORKERS


def _mark(number: int) -> int:
    """Of this process in a pass."""
    return number << 32 | os.getpid()
