"""A loader's state: one position, and what it is a position in. Small, plain, checked.

The same state restores any rank, world, batch size or number of workers, because it
holds none of them but as history for `locate`. At most 512 bytes of JSON, and 8 a
source for each change of a mixture's weights.
"""

import json
import operator
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from millpond.errors import StateMismatch
from millpond.loader.order import derive_key, splitmix64_array
from millpond.loader.schedule import LIMIT, Weights
from millpond.loader.steps import Geometry

VERSION = 1
MAX_BYTES = 512
_MASK = (1 << 64) - 1


class Cursor(NamedTuple):
    """The next position: `step` counts the steps made since the very beginning."""

    epoch: int = 0
    position: int = 0
    step: int = 0


class Run(NamedTuple):
    """From a cursor on, steps were cut like this. The latest runs are kept for `locate`."""

    epoch: int
    position: int
    step: int
    world: int
    batch_size: int
    ending: int  # 0: the last step is split; 1: it is dropped; 2: it is padded.

    def geometry(self) -> Geometry:
        return Geometry(
            self.batch_size, 0, self.world, drop_last=self.ending == 1, pad=self.ending == 2
        )


@dataclass(frozen=True, slots=True)
class Identity:
    """What a position means: everything that the global sequence is a function of."""

    data: str
    shuffle: str | bool
    seed: int
    filter: str = ""
    pack: str = ""
    block: str = ""


@dataclass(frozen=True, slots=True)
class Receipt:
    """What one rank was given: how many units, and a sum over (epoch, position, row).

    Equal receipts mean equal samples at equal positions, whatever the batches. The
    receipts of all ranks add up to that of one process that reads alone.
    """

    samples: int = 0
    digest: int = 0

    def __add__(self, other: "Receipt") -> "Receipt":
        return Receipt(self.samples + other.samples, (self.digest + other.digest) & _MASK)

    def __str__(self) -> str:
        return f"{self.samples}:{self.digest:016x}"


def receipt_words(
    epoch: int, positions: npt.NDArray[np.int64], units: npt.NDArray[np.int64], source: Any
) -> npt.NDArray[np.uint64]:
    """One well mixed word a delivered unit; a receipt is their sum modulo 2^64."""
    words = positions.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    words ^= units.astype(np.uint64) * np.uint64(0xD6E8FEB86659FD93)
    if source is not None:
        words += source.astype(np.uint64) << np.uint64(48)
    return splitmix64_array(words + np.uint64(derive_key(epoch)))


@dataclass(frozen=True, slots=True)
class State:
    """All of it, as a value."""

    identity: Identity
    cursor: Cursor
    rank: int = 0
    receipt: Receipt = Receipt()
    runs: tuple[Run, ...] = ()
    skipped: int = 0
    begin: int = 0
    log: tuple[tuple[int, Weights], ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON. Old runs are dropped where it would grow past the limit."""
        out: dict[str, Any] = {
            "v": VERSION,
            **{k: v for k, v in asdict(self.identity).items() if v != ""},
            "at": list(self.cursor),
            "rank": self.rank,
            "receipt": str(self.receipt),
        }
        if self.skipped:
            out["skipped"] = self.skipped
        if self.begin:
            out["begin"] = self.begin
        runs = [list(run) for run in self.runs]
        while runs and len(json.dumps({**out, "runs": runs})) > MAX_BYTES:
            runs.pop(0)
        out["runs"] = runs
        if self.log:
            out["mix"] = [[at, _hex(weights)] for at, weights in self.log]
        return out

    @classmethod
    def from_dict(cls, state: Mapping[str, Any], mine: Identity) -> "State":
        """The state in a dict, which must belong to `mine`; else `StateMismatch`."""
        if not isinstance(state, Mapping) or "v" not in state or "at" not in state:
            raise StateMismatch(
                "load_state_dict: this is not a loader's state (no version in it). "
                "Pass what state_dict() gave."
            )
        if state["v"] != VERSION:
            raise StateMismatch(
                f"load_state_dict: the state has version {state['v']}, and this Millpond reads "
                f"version {VERSION}. Restore it with the Millpond that wrote it."
            )
        names = Identity.__dataclass_fields__
        _compare(Identity(**{name: state.get(name, "") for name in names}), mine)
        try:
            samples, digest = str(state["receipt"]).split(":")
            return cls(
                mine,
                _cursor(state["at"]),
                operator.index(state["rank"]),
                Receipt(int(samples), int(digest, 16)),
                tuple(Run(*map(operator.index, run)) for run in state["runs"]),
                operator.index(state.get("skipped", 0)),
                operator.index(state.get("begin", 0)),
                _log(state.get("mix", ())),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise StateMismatch(
                f"load_state_dict: the state is damaged ({error!r}). Pass what state_dict() gave, "
                "unchanged."
            ) from error


def _cursor(found: Any) -> Cursor:
    epoch, position, step = map(operator.index, found)
    if min(epoch, position, step) < 0:
        raise ValueError(f"a negative position in {found}")
    return Cursor(epoch, position, step)


def _log(found: Any) -> tuple[tuple[int, Weights], ...]:
    log = tuple((operator.index(at), _weights(text)) for at, text in found)
    starts = [at for at, _ in log]
    if starts != sorted(set(starts)) or starts[:1] not in ([], [0]):
        raise ValueError(f"changes of weights at {starts}")
    if any(not 0 < sum(weights) <= LIMIT for _, weights in log):
        raise ValueError("weights whose sum is out of range")
    return log


def _compare(theirs: Identity, mine: Identity) -> None:
    words = {
        "data": ("is of other data", "Open the dataset that the state was made with."),
        "shuffle": ("has another shuffle", "Pass the same shuffle."),
        "seed": ("has another seed", "Pass the same seed."),
        "filter": ("has another filter", "Pass the same filter."),
        "pack": ("has other packing", "Pass the same pack and tokens."),
        "block": ("has other blocks", "Pass the same block_rows and window_blocks."),
    }
    for name, (what, todo) in words.items():
        there, here = getattr(theirs, name), getattr(mine, name)
        if there != here or type(there) is not type(here):
            raise StateMismatch(
                f"load_state_dict: the state {what}: {there!r}, and this loader has {here!r}. "
                f"{todo}"
            )


# Five hexadecimal digits hold any weight: their sum is at most 2^20.
def _hex(weights: Weights) -> str:
    return "".join(f"{w:05x}" for w in weights)


def _weights(text: str) -> Weights:
    if len(text) % 5:
        raise ValueError("weights of the wrong length")
    return tuple(int(text[i : i + 5], 16) for i in range(0, len(text), 5))
