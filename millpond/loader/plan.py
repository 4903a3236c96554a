"""From what a user chose to units and their order: filters, packing, block sizes.

Plans that cost a pass over the data are kept beside it under a name by content, so
any process finds them; where that cannot be written they are made again.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pyarrow as pa
from xxhash import xxh3_64_digest, xxh3_64_hexdigest

from millpond.errors import ColumnNotFound, OptionError, StorageError
from millpond.formats.shard_types import is_list
from millpond.loader.columns import to_arrow
from millpond.loader.order import Order, Shuffle, label_distance
from millpond.loader.packing import PackPlan, plan_packs
from millpond.loader.selection import Select, Selection, select_rows
from millpond.loader.state import Identity
from millpond.loader.steps import whole_numbers
from millpond.loader.units import PackUnits, RowSource, RowUnits, Units
from millpond.storage import Range, Storage, put_new

# Small blocks are the cheap way to quality, which depends on the blocks a window only:
# random blocks of 64 KiB already read as fast as a local disk does in sequence.
BLOCK_BYTES = 128 << 10
WINDOW_BLOCKS = 2048
_SCAN = 65_536
_STRETCH = 1024
_SUM_BYTES = 8  # A plan in storage ends with its checksum.
T = TypeVar("T", Selection, PackPlan)


@dataclass(frozen=True, slots=True)
class Choice:
    """What the global sequence of one dataset is asked to be."""

    shuffle: Shuffle = False
    seed: int = 0
    columns: Sequence[str] | None = None
    filter: str | None = None
    pack: int | None = None
    tokens: str | None = None
    block_rows: int | None = None
    window_blocks: int | None = None

    def __post_init__(self) -> None:
        whole_numbers(self, "seed", "pack", "block_rows", "window_blocks")
        if isinstance(self.columns, str):
            object.__setattr__(self, "columns", (self.columns,))
        if self.shuffle not in (False, "global", "block"):
            raise OptionError(
                f"loader(shuffle={self.shuffle!r}): it is False, 'global' or 'block'."
            )
        if (self.pack is None) != (self.tokens is None):
            raise OptionError(
                "loader(pack=…, tokens=…): packing needs both, the length of a pack and the "
                "list column to pack."
            )
        if self.pack is not None and self.pack < 1:
            raise OptionError(f"loader(pack={self.pack}): a pack has at least 1 token.")
        for name in ("block_rows", "window_blocks"):
            value = getattr(self, name)
            if value is not None and (value < 1 or self.shuffle != "block"):
                raise OptionError(
                    f"loader({name}={value}): pass 1 or more, and shuffle='block' with it."
                )


def units_of(source: RowSource, storage: Storage, select: Select | None, choice: Choice) -> Units:
    """What positions stand for, with the selection and packing plans made or found."""
    columns = _columns(source, choice)
    selection = None
    if choice.filter is not None:
        selection = _selection(source, storage, select, choice.filter)
    if choice.pack is None or choice.tokens is None:
        return RowUnits(source, columns, selection)
    plan = _packing(source, storage, selection, choice)
    return PackUnits(source, choice.tokens, plan, selection)


def order_of(choice: Choice, n: int, unit_bytes: float) -> Order:
    """The order; block sizes from the data alone, so that they are the same wherever it lies."""
    if choice.shuffle != "block":
        return Order(choice.shuffle, choice.seed)
    rows = choice.block_rows or max(1, int(BLOCK_BYTES / max(1.0, unit_bytes)))
    return Order("block", choice.seed, rows, choice.window_blocks or WINDOW_BLOCKS)


def identity_of(fingerprint: str, choice: Choice, order: Order) -> Identity:
    """What a state must agree on to mean the same position."""
    words = choice.filter or ""
    return Identity(
        fingerprint,
        choice.shuffle,
        choice.seed,
        xxh3_64_hexdigest(words.encode()) if words else "",
        f"{choice.pack} {choice.tokens}" if choice.pack else "",
        f"{order.block_rows} {order.window_blocks}" if choice.shuffle == "block" else "",
    )


def sequence_about(choice: Choice, order: Order, cost: str, units: Units) -> str:
    """The order and its price, in words, for `explain`."""
    lines = []
    if choice.filter is not None:
        lines.append(f"filter {choice.filter}: {units.n:,} rows are kept")
    if isinstance(units, PackUnits):
        lines.append(f"packs of {units.plan.pack} tokens, {units.plan.fill:.2%} full")
    if choice.shuffle is False:
        lines.append("order: as stored")
    elif choice.shuffle == "global":
        lines.append(f"order: uniform over all {units.n:,} samples, seed {order.seed}")
    else:
        seen = label_distance(100, order.window_blocks, 10_000)
        lines.append(
            f"order: blocks of {order.block_rows:,} in windows of {order.window_blocks:,} blocks, "
            f"seed {order.seed}; were the data sorted by 100 classes, 10,000 samples would be "
            f"{seen:.3f} (total variation) off the whole's mix; a uniform order is "
            f"{label_distance(100, 1 << 60, 10_000):.3f} off"
        )
    return "\n".join([*lines, f"reads: {cost}"])


def _columns(source: RowSource, choice: Choice) -> tuple[str, ...]:
    names = source.schema.names
    for name in [*(choice.columns or ()), *([choice.tokens] if choice.tokens else ())]:
        if name not in names:
            raise ColumnNotFound(name, names, f"loader over {source.uri!r}")
    if choice.columns is not None and not choice.columns:
        raise OptionError("loader(columns=[]): name at least one column.")
    if choice.tokens is not None:
        kind = source.schema.field(choice.tokens).type
        if not is_list(kind) or not pa.types.is_integer(kind.value_type):
            raise OptionError(
                f"loader(tokens={choice.tokens!r}): the column is {kind}, and packing needs a "
                "list of integers. Name a column of token lists."
            )
    return tuple(choice.columns if choice.columns is not None else names)


def _selection(source: RowSource, storage: Storage, select: Select | None, words: str) -> Selection:
    if select is None:
        raise OptionError(
            f"loader(filter={words!r}): this dataset was opened without an SQL engine. "
            "Open it with millpond.open_dataset."
        )
    predicate = select(words, source.schema)
    key = f"select-{xxh3_64_hexdigest(f'1 {source.fingerprint} {words}'.encode())}"
    return _kept(
        source,
        storage,
        key,
        Selection.from_bytes,
        lambda: select_rows(_scan(source, predicate.columns), predicate.mask),
    )


def _packing(
    source: RowSource, storage: Storage, selection: Selection | None, choice: Choice
) -> PackPlan:
    tokens, pack = str(choice.tokens), int(choice.pack or 0)

    def make() -> PackPlan:
        lengths = source.lengths(tokens)
        if selection is not None:
            lengths = lengths[selection.rows(np.arange(selection.n))]
        return plan_packs(lengths, pack)

    words = f"1 {source.fingerprint} {tokens} {pack} {choice.filter}"
    key = f"pack-{xxh3_64_hexdigest(words.encode())}"
    return _kept(source, storage, key, PackPlan.from_bytes, make)


def _scan(source: RowSource, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The rows in storage order. A filter without columns still gets one to count by."""
    names = list(columns) or source.schema.names[:1]
    for first in range(0, source.n_rows, _SCAN):
        rows = np.arange(first, min(first + _SCAN, source.n_rows))
        source.advise(rows[::_STRETCH], names, _STRETCH)
        taken = source.take(rows, names)
        arrays = [to_arrow(taken[name]) for name in names]
        yield pa.RecordBatch.from_arrays(arrays, names=names)


def _kept(
    source: RowSource,
    storage: Storage,
    key: str,
    read: Callable[[memoryview], T | None],
    make: Callable[[], T],
) -> T:
    """A plan from beside the data; made and put there where it is missing or damaged."""
    path = f"{source.uri}/.millpond/{key}"
    if storage.stat(path) is not None:
        data = storage.read_many([Range(path, 0, -1)])[0]
        body = data[:-_SUM_BYTES]
        found = read(body) if xxh3_64_digest(body) == data[-_SUM_BYTES:] else None
        if found is not None:
            return found
        with suppress(StorageError):
            storage.delete([path])
    plan = make()
    # Where the store is read-only, the next process makes the plan again.
    with suppress(StorageError):
        made = plan.to_bytes()
        put_new(storage, path, made + xxh3_64_digest(made))
    return plan
