"""Batches in the hands of other libraries: DLPack, JAX, pinned memory, StatefulDataLoader."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from millpond.errors import OptionError
from millpond.loader.reader import open_dataset
from tests.support.loader_sets import Make, ids

ROOT = Path(__file__).parent.parent.parent


def test_columns_go_through_dlpack_without_a_copy(make: Make) -> None:
    batch = next(iter(make(20).loader(8, prefetch=0)))
    for column in (batch["id"], batch["vector"], batch["tokens"].values):
        again = np.from_dlpack(column)
        assert np.array_equal(again, column)
        assert np.shares_memory(again, column)


def test_torch_takes_columns_through_dlpack(make: Make) -> None:
    torch = pytest.importorskip("torch")
    batch = next(iter(make(20).loader(8, prefetch=0)))
    assert torch.from_dlpack(batch["vector"]).data_ptr() == batch["vector"].ctypes.data


def test_pinned_memory_needs_tensors(make: Make) -> None:
    with pytest.raises(OptionError, match="only tensors are pinned"):
        make(20).loader(8, pin_memory=True)


def test_tensors_are_pinned_or_the_lack_of_an_accelerator_is_told(make: Make) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        with pytest.raises(OptionError, match="no accelerator"):
            make(20).loader(8, format="torch", pin_memory=True)
        return
    batch = next(iter(make(20).loader(8, format="torch", pin_memory=True)))
    assert batch["id"].is_pinned()
    assert batch["tokens"].values.is_pinned()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_stateful_data_loader_goes_on_where_it_stopped(make: Make, workers: int) -> None:
    pytest.importorskip("torch")
    stateful = pytest.importorskip("torchdata.stateful_dataloader")
    from millpond.loader.torch import TorchDataset

    path = make(100).path

    def data() -> Any:
        loader = open_dataset(path).loader(7, shuffle="global", format="torch")
        return stateful.StatefulDataLoader(
            TorchDataset(loader), batch_size=None, num_workers=workers
        )

    whole = ids(data())
    first = data()
    running = iter(first)
    seen = ids([next(running) for _ in range(5)])
    state = first.state_dict()
    again = data()
    again.load_state_dict(state)
    assert seen + ids(again) == whole
    assert sorted(whole) == list(range(100))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_workers_start_by_any_method(make: Make, method: str) -> None:
    pytest.importorskip("torch")
    from millpond.loader.torch import batches

    ds = open_dataset(make(60).path)
    loader = ds.loader(9, shuffle="global", format="torch")
    found = ids(batches(loader, num_workers=2, multiprocessing_context=method))
    assert found == ids(ds.loader(9, shuffle="global"))
    assert json.loads(json.dumps(loader.state_dict()))["at"][0] == 1


@pytest.mark.slow
def test_the_jax_example_learns_and_goes_on_from_its_state() -> None:
    pytest.importorskip("jax")
    ended = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "jax_feed.py")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert "the same weights, to the last bit" in ended.stdout


@pytest.mark.slow
@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("stops", [False, True], ids=["at the end", "in the middle"])
def test_a_process_ends_cleanly_whatever_threads_are_at(
    make: Make, prefetch: int, stops: bool
) -> None:
    """A thread that was ended by force took the process with it, mostly: so eight times."""
    path = make(200).path
    loop = f"loader(5, shuffle='global', prefetch={prefetch}, columns=['id'])"
    program = f"""if True:
        from millpond.loader.reader import open_dataset
        for batch in open_dataset({path!r}).{loop}:
            if {stops}: break
    """
    for _ in range(8):
        ended = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=False
        )
        assert (ended.returncode, ended.stderr) == (0, "")
