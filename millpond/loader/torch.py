"""Batches as torch tensors, and loaders as torch datasets: the only user of torch.

With workers, worker j of n makes steps j, j + n, …; `DataLoader` takes them in turn,
so the order is that of one process. `batches` keeps the loader's own state exact
meanwhile; `StatefulDataLoader` keeps each worker's state by itself.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from millpond.errors import MissingExtra, OptionError
from millpond.loader.batches import Batch, Delivered
from millpond.loader.columns import Ragged
from millpond.loader.loader import Loader, Start
from millpond.loader.passes import Copy, Passes

try:
    import torch
    from torch.utils.data import DataLoader, IterableDataset, get_worker_info
    from torch.utils.data._utils.collate import default_collate_fn_map
except ImportError as error:
    raise MissingExtra("torch", "millpond.loader.torch") from error


def tensors(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors over the memory of numpy arrays. Strings become lists, ragged rows `Ragged`.

    Types that torch lacks: dates as int64 of their unit; objects stay as they are.
    """
    return {name: _tensor(name, column) for name, column in columns.items()}


def pinned(columns: Mapping[str, Any]) -> dict[str, Any]:
    """`tensors` in page-locked memory, which an accelerator reads without the processor.

    In a `DataLoader` worker they stay as they are: `DataLoader(pin_memory=True)` pins them.
    """
    found = tensors(columns)
    if get_worker_info() is not None:
        return found
    return {name: _pinned(column) for name, column in found.items()}


def must_pin() -> None:
    """Raises `OptionError` where no memory can be pinned."""
    if not torch.cuda.is_available():
        raise OptionError(
            "loader(pin_memory=True): torch finds no accelerator here, and without one there is "
            "nothing to pin memory for. Leave pin_memory out."
        )


def _pinned(column: Any) -> Any:
    if isinstance(column, Ragged):
        return Ragged(_pinned(column.values), column.offsets)
    return column.pin_memory() if isinstance(column, torch.Tensor) else column


def _tensor(name: str, column: Any) -> Any:
    if isinstance(column, Ragged):
        return Ragged(_tensor(name, column.values), torch.from_numpy(column.offsets))
    if isinstance(column, np.ma.MaskedArray):
        raise OptionError(
            f"loader(format='torch'): column {name!r} has nulls, which tensors do not. "
            "Fill them with COALESCE, or take format='numpy'."
        )
    if column.dtype.kind == "O":
        return column.tolist()
    if column.dtype.kind in "mM":
        column = column.view(np.int64)
    if not column.flags.writeable:
        column = column.copy()
    return torch.from_numpy(column)


class TorchDataset(IterableDataset[Any]):  # type: ignore[misc]
    """A loader for `DataLoader(dataset, batch_size=None)`: each item is a whole batch."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader
        self._turn: int | None = None
        self._of = 1
        self._began: Start | None = None  # Of this process's latest pass, if it is a worker.
        self._passes = Passes()
        self._restored = False  # In this worker.
        self._mix_before: Any = None  # The weights that it came with.

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        if worker is None:
            yield from self.loader
            return
        if self._began is not None:
            # A worker that stayed. Each knows its own steps alone, and not what the consumer
            # saw of the pass before: so all of them begin the next run, from its first step.
            self.loader.next_run(self._began)
            self._turn = None
        else:
            self._begin_pass(worker)
        self._began = self.loader.start()
        for batch, what in self._steps(worker.id, worker.num_workers):
            # In a worker the loader is a copy: this moves the worker's own state.
            self.loader.delivered(what)
            self._turn, self._of = worker.num_workers - 1, worker.num_workers
            yield batch

    def _begin_pass(self, worker: Any) -> None:
        """A new worker goes to the epochs of its pass, of which its copy of the loader knows none.

        A run without an end begins again.
        """
        seed, at = worker.seed - worker.id, self.loader.start().cursor
        copy = Copy(worker.id, seed, (at.epoch, at.position, at.step), self._restored)
        epoch = self._passes.begin(copy, self.loader.run_end)
        if self._restored and worker.id == 0:
            self._passes.keep(json.dumps([self._mix_before, _weights(self.loader)]))
        if epoch is not None:
            before, state = json.loads(self._passes.kept() or "[null, null]")
            # Weights that were set in the consumer's process since then count for more.
            if state is not None and before == self.loader.state_dict().get("mix"):
                self.loader.take_weights(state)
            self.loader.enter(epoch)

    def _steps(self, number: int, of: int) -> Iterator[tuple[Any, Delivered]]:
        """This worker's steps: after a restore, counted from where it stopped."""
        if self._turn is not None and self._of != of:
            raise OptionError(
                f"TorchDataset: the state is of one of {self._of} workers, and there are {of} now. "
                "Use as many, or take the state from the loader itself (millpond.loader.torch."
                "batches)."
            )
        return self.loader.share(number if self._turn is None else self._turn, of)

    def state_dict(self) -> dict[str, Any]:
        """The loader's state; in a worker also whose turn it is."""
        state = self.loader.state_dict()
        return state if self._turn is None else {**state, "turn": [self._turn, self._of]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._mix_before = self.loader.state_dict().get("mix")
        self.loader.load_state_dict({k: v for k, v in state.items() if k != "turn"})
        self._turn, self._of = state.get("turn", (None, 1))
        if get_worker_info() is None:
            self._passes = Passes()
        else:
            self._restored = True


def _weights(loader: Loader) -> dict[str, Any] | None:
    """The state of a mixture, which holds its changes of weights; None for one dataset."""
    state = loader.state_dict()
    return state if "mix" in state else None


def _one_batch_only(rows: Any, *, collate_fn_map: Any = None) -> Any:
    raise OptionError(
        "DataLoader(TorchDataset(…), batch_size=…): what comes here are whole batches, of the "
        "loader's own batch_size. Pass batch_size=None to DataLoader."
    )


# The default collation would wrap a batch in a batch, or fail at the first column of lists.
for _kind in (Batch, pa.RecordBatch):
    default_collate_fn_map[_kind] = _one_batch_only


def batches(loader: Loader, num_workers: int = 0, **options: Any) -> Iterator[Any]:
    """The loader's run through a `DataLoader` with worker processes.

    `loader.state_dict()` in this process stays exact: what workers made ahead and the
    loop did not see is not counted. `options` are those of `DataLoader`.
    """
    if not num_workers:
        yield from loader
        return
    data = DataLoader(_Marked(loader), batch_size=None, num_workers=num_workers, **options)
    for batch, what in data:
        loader.delivered(what)
        yield batch
    loader.end_run()


class _Marked(IterableDataset[Any]):  # type: ignore[misc]
    """Batches together with what their delivery changes."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        number, of = (worker.id, worker.num_workers) if worker else (0, 1)
        for batch, what in self._loader.share(number, of):
            yield _Pair((batch, what))


class _Pair(tuple[Any, Delivered]):
    """Kept whole by `DataLoader`, which would take a plain tuple apart into lists."""
