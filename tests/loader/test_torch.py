"""Batches in torch: workers in any number give the order of one process."""

import json
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.utils.data import DataLoader  # noqa: E402

from millpond.errors import OptionError  # noqa: E402
from millpond.loader.mixture import mix  # noqa: E402
from millpond.loader.passes import Copy, Passes  # noqa: E402
from millpond.loader.reader import Dataset, open_dataset  # noqa: E402
from millpond.loader.torch import TorchDataset, batches  # noqa: E402
from tests.support.loader_sets import Make, ids  # noqa: E402

pytestmark = pytest.mark.slow


def opened(make: Make, n: int = 100) -> Dataset:
    """Without the tests' filter function, which a spawned worker cannot import."""
    return open_dataset(make(n).path)


def test_tensors_share_the_memory_of_the_batch(make: Make) -> None:
    batch = next(iter(make(20).loader(8, format="torch", prefetch=0)))
    assert batch["id"].dtype == torch.int64
    assert batch["vector"].shape == (8, 80)
    assert batch["name"][:2] == ["row 0", "row 1"]
    assert batch["tokens"][3].tolist() == [3] * 21
    assert batch["vector"].untyped_storage().nbytes() >= batch["vector"].numel() * 4


def test_nulls_are_refused_by_name(make: Make, tmp_path: Any) -> None:
    import pyarrow as pa

    from millpond.loader.write import write_dataset

    write_dataset(pa.table({"x": pa.array([1, None])}), str(tmp_path / "n"))
    with pytest.raises(OptionError, match="column 'x' has nulls"):
        next(iter(open_dataset(str(tmp_path / "n")).loader(2, format="torch", prefetch=0)))


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("format", ["numpy", "torch"])
def test_any_number_of_workers_gives_one_order(make: Make, workers: int, format: Any) -> None:
    ds = opened(make)
    data = DataLoader(
        TorchDataset(ds.loader(7, shuffle="global", epochs=2, format=format)),
        batch_size=None,
        num_workers=workers,
    )
    assert ids(data) == ids(ds.loader(7, shuffle="global", epochs=2))


def test_workers_may_be_spawned(make: Make) -> None:
    ds = opened(make)
    loader = ds.loader(9, shuffle="global", format="torch")
    found = ids(batches(loader, num_workers=2, multiprocessing_context="spawn"))
    assert found == ids(ds.loader(9, shuffle="global"))


@pytest.mark.parametrize("workers", [0, 2])
def test_what_workers_made_ahead_is_not_lost_at_a_checkpoint(make: Make, workers: int) -> None:
    ds = opened(make)
    loader = ds.loader(7, shuffle="global", format="torch")
    running = batches(loader, num_workers=workers)
    seen = ids([next(running) for _ in range(4)])
    state = json.loads(json.dumps(loader.state_dict()))
    again = ds.loader(5, shuffle="global", format="torch")
    again.load_state_dict(state)
    seen += ids(batches(again, num_workers=2))
    assert seen == ids(ds.loader(7, shuffle="global"))
    assert again.receipt().samples == 100


def test_a_loop_with_workers_goes_on_with_the_next_epoch(make: Make) -> None:
    ds = opened(make)
    loader = ds.loader(7, shuffle="global", format="torch")
    seen = ids(batches(loader, num_workers=2)) + ids(batches(loader, num_workers=2))
    assert seen == ids(ds.loader(7, shuffle="global", epochs=2))


def test_each_worker_resumes_by_its_own_state(make: Make) -> None:
    """What StatefulDataLoader does: one state a worker, taken after so many batches of its own."""
    ds = opened(make)
    whole = ids(ds.loader(7, shuffle="global"))
    states, seen = [], []
    for number in range(2):
        loader = ds.loader(7, shuffle="global", prefetch=0)
        worker = TorchDataset(loader)
        steps = worker._steps(number, 2)
        for _ in range(2):
            batch, what = next(steps)
            loader.delivered(what)
            worker._turn, worker._of = 1, 2
            seen.append((batch.step, ids([batch])))
        states.append(json.loads(json.dumps(worker.state_dict())))
    for number, state in enumerate(states):
        worker = TorchDataset(ds.loader(7, shuffle="global", prefetch=0))
        worker.load_state_dict(state)
        seen += [(batch.step, ids([batch])) for batch, _ in worker._steps(number, 2)]
    assert [i for _, part in sorted(seen) for i in part] == whole


def test_packs_come_as_tensors_of_one_shape(make: Make) -> None:
    batch = next(iter(make(60).loader(4, pack=32, tokens="tokens", format="torch")))
    assert {name: tuple(t.shape) for name, t in batch.items()} == {
        "tokens": (4, 32),
        "positions": (4, 32),
        "segment_ids": (4, 32),
    }
    assert np.asarray(batch["tokens"]).dtype == np.int32


def test_workers_that_stay_go_on_with_the_next_epoch(make: Make) -> None:
    ds = opened(make)
    alone = ds.loader(7, shuffle="global", seed=1)
    want = [[i for batch in alone for i in batch["id"].tolist()] for _ in range(4)]
    data = DataLoader(
        TorchDataset(ds.loader(7, shuffle="global", seed=1)),
        batch_size=None,
        num_workers=2,
        persistent_workers=True,
    )

    def epoch() -> list[int]:
        return [i for batch in data for i in batch["id"].tolist()]

    assert [epoch(), epoch()] == want[:2]
    next(iter(data))  # A pass that is left counts as one: its workers were ahead of it.
    assert epoch() == want[3]


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_new_workers_in_each_pass_go_on_with_the_next_epoch(make: Make, method: str) -> None:
    ds = opened(make)
    alone = ds.loader(7, shuffle="global", seed=1)
    want = [[i for batch in alone for i in batch["id"].tolist()] for _ in range(4)]
    dataset = TorchDataset(ds.loader(7, shuffle="global", seed=1))
    data = DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context=method)

    def epoch() -> list[int]:
        torch.manual_seed(0)  # The workers' seed does not tell passes apart.
        return [i for batch in data for i in batch["id"].tolist()]

    assert [epoch(), epoch()] == want[:2]
    if method == "fork":
        next(iter(data))  # A pass that is left counts as one.
        assert epoch() == want[3]
        dataset.load_state_dict(ds.loader(7, shuffle="global", seed=1).state_dict())
        assert [epoch(), epoch()] == want[:2]


def test_passes_go_on_from_where_workers_were_restored() -> None:
    """As `StatefulDataLoader` does: each worker of the first pass takes up a state."""

    def run_end(epoch: int) -> int:
        return epoch + 1

    passes, fresh = Passes(), (0, 0, 0)
    for number in (0, 1):
        restored = Copy(number, 50, (4, 30, 5 + number), restored=True)
        assert passes.begin(restored, run_end) is None
    for seed, epoch in ((60, 5), (70, 6)):
        begins = [passes.begin(Copy(i, seed, fresh, restored=False), run_end) for i in (0, 1)]
        assert begins == [epoch, epoch]
    moved = [passes.begin(Copy(i, 80, (1, 0, 9), restored=False), run_end) for i in (0, 1)]
    assert moved == [None, None]  # The loader itself was moved meanwhile.
    assert passes.begin(Copy(0, 90, (1, 0, 9), restored=False), run_end) == 2
    assert passes.begin(Copy(0, 99, fresh, restored=False), lambda epoch: None) is None


def test_a_stateful_data_loader_goes_on_with_the_next_epoch_after_a_restore(make: Make) -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader
    ds = opened(make)
    alone = ds.loader(7, shuffle="global", seed=1)
    want = [[i for batch in alone for i in batch["id"].tolist()] for _ in range(4)]

    def loaded() -> Any:
        dataset = TorchDataset(ds.loader(7, shuffle="global", seed=1))
        return stateful(dataset, batch_size=None, num_workers=2)

    def epoch(data: Any) -> list[int]:
        return [i for batch in data for i in batch["id"].tolist()]

    first, again = loaded(), loaded()
    assert epoch(first) == want[0]
    steps = iter(first)
    seen = [i for _ in range(3) for i in next(steps)["id"].tolist()]
    again.load_state_dict(first.state_dict())
    assert seen + epoch(again) == want[1]
    assert [epoch(again), epoch(again)] == want[2:]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("format", ["numpy", "torch", "arrow"])
def test_a_batch_of_batches_is_refused_with_what_to_do(
    make: Make, workers: int, format: Any
) -> None:
    data = DataLoader(TorchDataset(opened(make).loader(7, format=format)), num_workers=workers)
    with pytest.raises(OptionError, match="Pass batch_size=None to DataLoader"):
        next(iter(data))


@pytest.mark.parametrize("changed_since", [False, True])
def test_passes_after_a_restored_one_keep_the_weights_that_it_brought(
    make: Make, changed_since: bool
) -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader
    sources = {"a": opened(make, 40), "b": opened(make, 60)}

    def loader() -> Any:
        return mix(sources, {"a": 1, "b": 1}, seed=3).loader(5, shuffle="global")

    def loaded(own: Any) -> Any:
        return stateful(TorchDataset(own), batch_size=None, num_workers=2)

    def passed(data: Any) -> list[tuple[int, int]]:
        return [pair for batch in data for pair in zip(batch.source, batch.units, strict=True)]

    alone, changing = loader(), loader()
    for one in (alone, changing):
        one.set_weights({"a": 5, "b": 1})
    want = [passed(alone) for _ in range(3)]
    first = loaded(changing)
    steps = iter(first)
    seen = passed([next(steps) for _ in range(4)])
    state = first.state_dict()

    parent = loader()
    again = loaded(parent)
    again.load_state_dict(state)
    assert seen + passed(again) == want[0]
    if changed_since:
        parent.set_weights({"a": 1, "b": 7})
        assert passed(again) != want[1]
    else:
        assert [passed(again), passed(again)] == want[1:]
