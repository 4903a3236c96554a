"""The loader: a cursor in the global sequence, and batches from there on.

All that changes lives here: the cursor, the receipt, the log of weights. A batch
counts as delivered when the consumer has it, so a state taken inside the loop speaks
of what the loop has seen, whatever was made ahead.
"""

import operator
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from millpond.errors import MillpondError, OptionError, RowNotFound, StateMismatch
from millpond.loader.batches import FORMATS, Delivered, Dress, Format, Group, Maker, Share
from millpond.loader.prefetch import Ahead, Forked
from millpond.loader.schedule import whole_weights
from millpond.loader.sequence import GlobalSequence, Mixed, Place
from millpond.loader.state import Cursor, Identity, Receipt, Run, State
from millpond.loader.steps import Geometry, whole_numbers
from millpond.loader.units import Units

OnError = Literal["raise", "skip"]
# More are kept in no state: 512 bytes hold about eight.
_RUNS = 16


@dataclass(frozen=True, slots=True)
class Settings:
    """How batches are made: nothing here changes the global sequence."""

    geometry: Geometry
    epochs: int | None = 1
    format: Format = "numpy"
    prefetch: int = 2
    on_error: OnError = "raise"
    pin_memory: bool = False

    def __post_init__(self) -> None:
        whole_numbers(self, "epochs", "prefetch")
        if self.epochs is not None and self.epochs < 1:
            raise OptionError(f"loader(epochs={self.epochs}): pass 1 or more, or None for no end.")
        if self.pin_memory and self.format != "torch":
            raise OptionError(
                f"loader(pin_memory=True, format={self.format!r}): only tensors are pinned. "
                "Pass format='torch', or leave pin_memory out."
            )
        if self.prefetch < 0:
            raise OptionError(f"loader(prefetch={self.prefetch}): pass 0 (no thread) or more.")
        for name, value, known in (
            ("format", self.format, FORMATS),
            ("on_error", self.on_error, ("raise", "skip")),
        ):
            if value not in known:
                raise OptionError(f"loader({name}={value!r}): it is one of {', '.join(known)}.")


@dataclass(frozen=True, slots=True)
class Location:
    """Where a row is delivered. `step` counts from the very beginning of training.

    `step`, `rank` and `slot` are None where they are not known: before the earliest
    change of world or batch size that the state still remembers, or never delivered.
    """

    row: int
    epoch: int
    position: int
    step: int | None
    rank: int | None
    slot: int | None
    delivered: bool


class Start(NamedTuple):
    """Where a run began."""

    cursor: Cursor
    sequence: GlobalSequence


class Loader:
    """Batches of a dataset or a mixture in an exact global order, from any position.

    A `for` loop gives one run: `epochs` epochs, or what is left of them after a restore.
    The next loop goes on with the epochs after. Made by `Dataset.loader` and
    `Mixture.loader`; memory: the batches made ahead, in groups of at most 8 MiB or one.
    """

    def __init__(
        self,
        name: str,
        sequence: GlobalSequence,
        units: Sequence[Units],
        identity: Identity,
        settings: Settings,
        remake: tuple[Any, Any],
        sources: Sequence[str] = (),
        about: str = "",
        dress: Dress | None = None,
    ) -> None:
        self._name, self._sequence, self._units = name, sequence, tuple(units)
        self._identity, self._settings, self._dress = identity, settings, dress
        self._sources, self._about, self._remake = tuple(sources), about, remake
        self._cursor = Cursor()
        self._receipt, self._skipped, self._padded = Receipt(), 0, 0
        self._runs: tuple[Run, ...] = (self._run(),)
        self._generation = self._version = 0
        self._check_size()

    def __reduce__(self) -> tuple[Any, ...]:
        """What travels to a worker: how to open the same, and the state. No map, no thread."""
        return _remade, (*self._remake, self._settings, self.state_dict())

    @property
    def geometry(self) -> Geometry:
        return self._settings.geometry

    @property
    def epoch(self) -> int:
        return self._cursor.epoch

    @property
    def skipped(self) -> int:
        """Samples that were delivered in the place of damaged ones, on this rank."""
        return self._skipped

    @property
    def padded(self) -> int:
        """Samples that `pad=True` repeated, on this rank, since the loader was made."""
        return self._padded

    def __len__(self) -> int:
        """Steps in the present epoch, from its beginning."""
        return self.geometry.steps(self._sequence.length(self._cursor.epoch))

    def __repr__(self) -> str:
        g, c = self.geometry, self._cursor
        return (
            f"Loader({self._name!r}, batch_size={g.batch_size}, rank={g.rank}, world={g.world}, "
            f"epoch={c.epoch}, position={c.position})"
        )

    def __iter__(self) -> Iterator[Any]:
        """One run, from the cursor on."""
        self._generation += 1
        return self._deliver(self._generation)

    def share(self, number: int, of: int) -> Iterator[tuple[Any, Delivered]]:
        """The steps of one of `of` workers that take turns; the cursor stays where it is."""
        maker = self._maker(Share(number, of))
        for group in maker.groups(self._cursor, self._run_end()):
            yield from group

    def delivered(self, what: Delivered) -> None:
        """Note a batch that a worker made as handed to the consumer."""
        if what.after.epoch != self._cursor.epoch:
            self._sequence = self._sequence.entered(what.after.epoch)
        self._cursor = what.after
        self._receipt = self._receipt + what.receipt
        self._skipped += what.skipped
        self._padded += what.padded

    def end_run(self) -> None:
        """The consumer has seen the end: the next loop begins a new epoch."""
        end = self._run_end()
        if end is not None:
            self.enter(end)

    def start(self) -> Start:
        """Where a run that begins now would begin, for `next_run`."""
        return Start(self._cursor, self._sequence)

    def next_run(self, start: Start) -> None:
        """Leave the run that began at `start`, however far it came, for the one after it.

        A run without an end begins again.
        """
        self._cursor, self._sequence = start
        self.end_run()

    def enter(self, epoch: int) -> None:
        """Go to the beginning of an epoch."""
        self._sequence = self._sequence.entered(epoch)
        self._cursor = Cursor(epoch, 0, self._cursor.step)

    def run_end(self, epoch: int) -> int | None:
        """The epoch after those of the run that has `epoch`; None if it has no end."""
        epochs = self._settings.epochs
        return None if epochs is None else (epoch // epochs + 1) * epochs

    def state_dict(self) -> dict[str, Any]:
        """Where the sequence goes on, as plain data for JSON: 512 bytes at most.

        A mixture adds 5 bytes a source, and its position, for each change of weights.
        """
        mixed = self._sequence if isinstance(self._sequence, Mixed) else None
        return State(
            self._identity,
            self._cursor,
            self.geometry.rank,
            self._receipt,
            self._runs,
            self._skipped,
            mixed.begin(self._cursor.epoch) if mixed else 0,
            mixed.schedule.log if mixed else (),
        ).to_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken, with this loader's rank, world and batch size.

        The receipt goes on if the state is of this rank; else it begins anew, so that
        the receipts of all ranks still add up. Raises `StateMismatch`.
        """
        found = State.from_dict(state, self._identity)
        sequence = self._mixed_as(found)
        n = sequence.length(found.cursor.epoch)
        # Not so in a mixture: weights that change may end an epoch before where it stands.
        if found.cursor.position > n and not isinstance(sequence, Mixed):
            raise StateMismatch(
                f"load_state_dict: the state is damaged: it stands at {found.cursor.position:,} of "
                f"{n:,} samples. Pass what state_dict() gave, unchanged."
            )
        self._sequence = sequence
        same = found.rank == self.geometry.rank
        self._cursor = found.cursor
        self._receipt = found.receipt if same else Receipt()
        self._skipped = found.skipped if same else 0
        self._runs = found.runs
        self._note_run()
        self._version += 1

    def take_weights(self, state: Mapping[str, Any]) -> None:
        """Mix as `state` does, from the very beginning on; stay where this loader stands."""
        self._sequence = self._mixed_as(State.from_dict(state, self._identity))
        self._version += 1

    def _mixed_as(self, found: State) -> GlobalSequence:
        if not isinstance(self._sequence, Mixed):
            return self._sequence
        schedule = replace(self._sequence.schedule, log=found.log or ((0, ()),))
        if any(len(weights) != len(self._units) for _, weights in schedule.log):
            raise StateMismatch("load_state_dict: the state mixes another number of sources.")
        anchor = Place(found.cursor.epoch, found.begin)
        return replace(self._sequence, schedule=schedule, anchor=anchor)

    def set_weights(self, weights: Mapping[str, float]) -> None:
        """Mix by other weights from the next step on. All ranks must do so at the same step."""
        if not isinstance(self._sequence, Mixed):
            raise OptionError("set_weights: this loader reads one dataset. Use millpond.mix.")
        if not isinstance(weights, Mapping) or set(weights) != set(self._sources):
            raise OptionError(
                f"set_weights: the weights are {weights!r}; the sources are "
                f"{', '.join(self._sources)}. Give one weight for each."
            )
        whole = whole_weights([weights[name] for name in self._sources], "set_weights")
        epoch, position, _ = self._cursor
        self._sequence = self._sequence.entered(epoch).change(epoch, position, whole)
        self._version += 1

    def receipt(self) -> Receipt:
        """What this rank was given so far; receipts of all ranks add up with `+`."""
        return self._receipt

    def locate(self, row: int, source: str = "", epoch: int | None = None) -> Location | None:
        """Where `row` is, was or will be delivered in an epoch (the present one).

        None if the filter leaves it out, or a mixture does not reach it in that epoch.
        With packing: its first piece.
        """
        epoch = self._cursor.epoch if epoch is None else epoch
        if source not in (self._sources or ("",)):
            raise OptionError(
                f"locate(source={source!r}): the sources are {', '.join(self._sources) or 'none'}. "
                "Name the one that the row is of."
            )
        try:
            row = operator.index(row)
        except TypeError:
            raise OptionError(f"locate({row!r}): pass the number of a row.") from None
        number = self._sources.index(source) if source else 0
        unit = self._units[number].unit_of(row)
        if unit is not None and not 0 <= unit < self._units[number].n:
            raise RowNotFound(f"{self._name}: no row {row}; it has {self._units[number].n}.")
        place = None if unit is None else self._sequence.place(number, unit, epoch)
        if place is None:
            return None
        past = place < (self._cursor.epoch, self._cursor.position)
        run = self._run_of(place) if past else self._run(self._cursor)
        if run is None:
            return Location(row, epoch, place.position, None, None, None, past)
        step, rank, slot = self._step_of(place, run)
        return Location(row, epoch, place.position, step, rank, slot, past)

    def explain(self) -> str:
        """What is read, in which order, and what that costs, in words."""
        g, n = self.geometry, self._sequence.length(self._cursor.epoch)
        ending = "dropped" if g.drop_last else "filled up" if g.pad else "split evenly"
        return (
            f"{self._name}: {n:,} samples an epoch, {self.geometry.steps(n):,} steps of "
            f"{g.world} × {g.batch_size}; the last step is {ending}\n{self._about}"
        )

    def _deliver(self, generation: int) -> Iterator[Any]:
        finished = False
        while not finished:
            # Weights or a state that were set inside the loop drop what was made ahead.
            version, finished, end = self._version, True, self._run_end()
            with closing(self._feed(end)) as feed:
                try:
                    for group in feed:
                        for batch, what in group:
                            self._must_be(generation)
                            self.delivered(what)
                            yield batch
                            if self._version != version:
                                break
                        if self._version != version:
                            finished = False
                            break
                except Forked:
                    finished = False  # The cursor came along; a new thread goes on from it.
        self._must_be(generation)
        self.end_run()

    def _feed(self, end: int | None) -> Any:
        groups = self._maker(Share()).groups(self._cursor, end)
        if not self._settings.prefetch:
            return groups
        return Ahead[Group](groups, self._depth())

    def _depth(self) -> int:
        """Groups to make ahead, so that at least `prefetch` batches are ready."""
        return -(-self._settings.prefetch // self._maker(Share()).steps_per_group())

    def _maker(self, share: Share) -> Maker:
        s = self._settings
        return Maker(
            self._sequence,
            self._units,
            s.geometry,
            s.format,
            s.on_error == "skip",
            share,
            self._dress,
            threads=s.prefetch > 0,
        )

    def _must_be(self, generation: int) -> None:
        if self._generation != generation:
            raise MillpondError(
                f"{self!r}: another loop over this loader was begun, which goes on from the same "
                "cursor. Finish or drop one loop before the next; make two loaders for two loops."
            )

    def _run_end(self) -> int | None:
        return self.run_end(self._cursor.epoch)

    def _run(self, at: Cursor | None = None) -> Run:
        g = self.geometry
        ending = 1 if g.drop_last else 2 if g.pad else 0
        return Run(*(at or Cursor()), g.world, g.batch_size, ending)

    def _note_run(self) -> None:
        """Remember from where on steps are cut as this loader cuts them."""
        now = self._run(self._cursor)
        if not self._runs or self._runs[-1][3:] != now[3:]:
            self._runs = (*self._runs, now)[-_RUNS:]

    def _run_of(self, place: Place) -> Run | None:
        return next((run for run in reversed(self._runs) if tuple(run[:2]) <= place), None)

    def _step_of(self, place: Place, run: Run) -> tuple[int | None, int | None, int | None]:
        """The step, rank and slot of a place, if steps are cut as in `run` from there on."""
        geometry = run.geometry()
        step, position = run.step, run.position
        for epoch in range(run.epoch, place.epoch):
            step += geometry.steps(self._sequence.length(epoch), position)
            position = 0
        n = self._sequence.length(place.epoch)
        more, rank, slot = geometry.place(n, position, place.position)
        if geometry.drop_last and more >= geometry.steps(n, position):
            return None, None, None
        return step + more, rank, slot

    def _check_size(self) -> None:
        """A loader that could never give a batch is an error at once."""
        n, g = self._sequence.length(0), self.geometry
        if n == 0:
            raise OptionError(
                f"{self._name}: there is nothing to read: the dataset is empty, or the filter "
                "selects no row. Check the data, or the filter."
            )
        if n < g.world and not g.pad:
            raise OptionError(
                f"{self._name}: {n} samples for {g.world} ranks: some would never get one. "
                "Use fewer ranks, or pad=True."
            )
        if not g.steps(n):
            raise OptionError(
                f"{self._name}: {n} samples are less than one step of {g.world} × "
                f"{g.batch_size}, and drop_last=True drops it. Use a smaller batch."
            )


def _remade(feed: Any, choice: Any, settings: Settings, state: dict[str, Any]) -> Loader:
    loader: Loader = feed._open(choice, settings)
    loader.load_state_dict(state)
    return loader
