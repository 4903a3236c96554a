"""Mixtures: several datasets read as one sequence, by weight.

Each source runs through its own epochs; where its samples stand is the schedule's
business (`loader.schedule`), so the contract is that of one dataset, and weights may
change at any step.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from xxhash import xxh3_128_hexdigest

from millpond.errors import OptionError, SchemaMismatch
from millpond.loader.feed import Feed
from millpond.loader.loader import Loader, Settings
from millpond.loader.order import Order
from millpond.loader.plan import Choice, identity_of, order_of, units_of
from millpond.loader.reader import Dataset, dress_of
from millpond.loader.schedule import Schedule, Weights, whole_weights
from millpond.loader.sequence import Exhausted, Mixed, describe
from millpond.loader.units import Units


def mix(
    datasets: Mapping[str, Dataset],
    weights: Mapping[str, float],
    seed: int = 0,
    *,
    exhausted: Exhausted = "repeat",
) -> "Mixture":
    """Read several datasets as one, in the proportions of `weights`.

    A source that runs out begins its next epoch. An epoch of the mixture ends when
    every source was read through (`exhausted="repeat"`), or the first (`"stop"`).
    """
    for word, given in (("datasets", datasets), ("weights", weights)):
        if not isinstance(given, Mapping):
            raise OptionError(
                f"mix({word}={given!r}): pass a dict with the name of each source, such as "
                '{"web": …, "code": …}.'
            )
    if not datasets:
        raise OptionError("mix({}): there is no dataset. Pass at least one by name.")
    for name, dataset in datasets.items():
        if not isinstance(dataset, Dataset):
            raise OptionError(
                f"mix: source {name!r} is {dataset!r}. Pass what millpond.open_dataset gives."
            )
    if set(weights) != set(datasets):
        raise OptionError(
            f"mix: the weights name {', '.join(weights) or 'nothing'}; the datasets are "
            f"{', '.join(datasets)}. Give one weight for each."
        )
    if exhausted not in ("repeat", "stop"):
        raise OptionError(f"mix(exhausted={exhausted!r}): it is 'repeat' or 'stop'.")
    whole = whole_weights([weights[name] for name in datasets], "mix")
    return Mixture(dict(datasets), whole, seed, exhausted)


class Mixture(Feed):
    """Datasets and their weights. Made by `mix`."""

    def __init__(
        self, datasets: dict[str, Dataset], weights: Weights, seed: int, exhausted: Exhausted
    ) -> None:
        self.datasets, self.weights = datasets, weights
        self.seed, self._exhausted = seed, exhausted

    def __repr__(self) -> str:
        parts = ", ".join(
            f"{name} × {w}" for name, w in zip(self.datasets, self.weights, strict=True)
        )
        return f"Mixture({parts})"

    def _open(self, choice: Choice, settings: Settings) -> Loader:
        shared = (
            choice.columns if choice.columns is not None else self._shared_columns(choice.tokens)
        )
        self._check_columns(shared)
        choice = replace(choice, columns=tuple(shared))
        units = [units_of(ds.rows, ds.storage, ds.select, choice) for ds in self.datasets.values()]
        self._check_units(units)
        order = order_of(choice, units[0].n, max(unit.unit_bytes for unit in units))
        sizes = tuple(unit.n for unit in units)
        sequence = Mixed(sizes, order, Schedule(((0, self.weights),)), self._exhausted)
        prints = [f"{name} {ds.fingerprint}" for name, ds in self.datasets.items()]
        data = xxh3_128_hexdigest("\n".join([self._exhausted, *prints]).encode())
        return Loader(
            f"mixture of {', '.join(self.datasets)}",
            sequence,
            units,
            identity_of(data, choice, order),
            settings,
            remake=(self, choice),
            sources=tuple(self.datasets),
            about=self._about(choice, order, sizes, sequence),
            dress=dress_of(settings.format, settings.pin_memory),
        )

    def _about(self, choice: Choice, order: Order, sizes: Sequence[int], sequence: Mixed) -> str:
        names = "\n".join(f"source {i}: {name}" for i, name in enumerate(self.datasets))
        how = "as stored" if choice.shuffle is False else f"{choice.shuffle}, seed {order.seed}"
        return f"{names}\n{describe(sizes, sequence.schedule)}\norder within a source: {how}"

    def _shared_columns(self, tokens: str | None) -> tuple[str, ...]:
        if tokens is not None:
            return (tokens,)
        first, *others = [ds.schema for ds in self.datasets.values()]
        return tuple(name for name in first.names if all(name in schema.names for schema in others))

    def _check_columns(self, columns: Sequence[str]) -> None:
        if not columns:
            raise SchemaMismatch(
                f"mix: {', '.join(self.datasets)} have no column in common. "
                "Give their columns the same names."
            )
        start, *others = self.datasets
        schema = self.datasets[start].schema
        for name in others:
            other = self.datasets[name].schema
            for column in columns:
                if column not in schema.names or column not in other.names:
                    continue  # Named by the check of each source.
                if other.field(column).type != schema.field(column).type:
                    raise SchemaMismatch(
                        f"mix: column {column!r} is {other.field(column).type} in {name!r} and "
                        f"{schema.field(column).type} in {start!r}. Write both with one type, "
                        "or choose columns= without it."
                    )

    def _check_units(self, units: Sequence[Units]) -> None:
        for name, unit in zip(self.datasets, units, strict=True):
            if not unit.n:
                raise OptionError(
                    f"mix: source {name!r} has nothing to read: it is empty, or the filter selects "
                    "no row. Leave it out."
                )
