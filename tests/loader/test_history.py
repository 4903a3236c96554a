"""Whatever happens between two steps, the sequence goes on: nothing lost, nothing repeated."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from millpond.loader.loader import Loader
from millpond.loader.mixture import mix
from millpond.loader.reader import Dataset, open_dataset
from millpond.loader.write import write_dataset
from tests.support.loader_sets import ids, rows, select

N = 203


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, ...]:
    """Two sets, and the first one again with a shard that is gone."""
    folder = tmp_path_factory.mktemp("sets")
    for name, n, first in (("a", N, 0), ("b", 61, 1000), ("damaged", N, 0)):
        write_dataset(rows(n, first), str(folder / name), rows_per_shard=40, batch_rows=16)
    (folder / "damaged" / "000002.arrow").unlink()
    return tuple(open_dataset(str(folder / n), select=select) for n in ("a", "b", "damaged"))


KINDS: dict[str, dict[str, Any]] = {
    "in order": {"shuffle": False},
    "global": {"shuffle": "global", "seed": 7},
    "block": {"shuffle": "block", "seed": 7, "block_rows": 8, "window_blocks": 4},
    "filter": {"shuffle": "global", "seed": 7, "filter": "id % 3 <> 1"},
    "pack": {"shuffle": "global", "seed": 7, "pack": 32, "tokens": "tokens"},
    "filter and pack": {
        "shuffle": "block", "block_rows": 4, "window_blocks": 3, "seed": 1,
        "filter": "id > 20", "pack": 16, "tokens": "tokens",
    },
}  # fmt: skip


OTHERS = ("mixture", "mixture of packs", "bad samples")


def opener(sets: tuple[Dataset, ...], kind: str) -> Callable[..., Loader]:
    if kind.startswith("mixture"):
        mixture = mix({"a": sets[0], "b": sets[1]}, {"a": 2, "b": 1.5}, seed=5)
        packs: dict[str, Any] = {"pack": 24, "tokens": "tokens"} if "packs" in kind else {}
        return lambda size, **more: mixture.loader(size, shuffle="global", **packs, **more)
    if kind == "bad samples":
        return lambda size, **more: sets[2].loader(
            size, shuffle="global", seed=7, on_error="skip", **more
        )
    return lambda batch_size, **more: sets[0].loader(batch_size, **KINDS[kind], **more)


def samples(batch: dict[str, Any]) -> list[tuple[int, ...]]:
    """Each sample of a batch as plain values."""
    if "segment_ids" in batch:
        packed = zip(batch["tokens"], batch["positions"], batch["segment_ids"], strict=True)
        return [tuple(np.concatenate(parts).tolist()) for parts in packed]
    found = zip(batch["id"], batch["name"], batch["tokens"], strict=True)
    return [(int(i), hash(name), *tokens.tolist()) for i, name, tokens in found]


def alone(open_: Callable[..., Loader], epochs: int) -> list[tuple[int, ...]]:
    """The sequence as one process reads it, a row at a time."""
    loader = open_(1, epochs=epochs, prefetch=0)
    return [sample for batch in loader for sample in samples(batch)]


@dataclass(frozen=True)
class Life:
    """Some steps by `world` ranks; then all of them are killed, and one state is kept."""

    world: int
    batch_size: int
    steps: int
    prefetch: int


LIVES = st.lists(
    st.builds(
        Life,
        st.sampled_from([1, 2, 3, 4, 7, 16, 97]),
        st.integers(1, 40),
        st.integers(0, 6),
        st.sampled_from([0, 1, 3]),
    ),
    max_size=4,
)


def step_of_all(loaders: list[Any]) -> list[tuple[int, ...]] | None:
    """One step: the ranks' batches, one after the other; None at the end, which all reach."""
    batches = [next(loader, None) for loader in loaders]
    if all(batch is None for batch in batches):
        return None
    assert all(batch is not None for batch in batches), "ranks make different numbers of steps"
    return [sample for batch in batches for sample in samples(batch)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*KINDS, *OTHERS])
@settings(max_examples=9, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(lives=LIVES, data=st.data())
def test_any_history_gives_the_sequence_of_one_process(
    sets: tuple[Dataset, ...], kind: str, lives: list[Life], data: st.DataObject
) -> None:
    open_ = opener(sets, kind)
    n = sum(len(batch) for batch in map(samples, open_(500)))
    state: dict[str, Any] | None = None
    seen: list[tuple[int, ...]] = []
    for life in [*lives, Life(3, 10, 10_000, 2)]:
        world = min(life.world, n)
        # A thread for each of 97 ranks would test the machine, not the order.
        prefetch = life.prefetch if world < 8 else 0
        loaders = [
            open_(life.batch_size, rank=r, world=world, prefetch=prefetch, epochs=2)
            for r in range(world)
        ]
        for loader in loaders if state is not None else []:
            loader.load_state_dict(json.loads(json.dumps(state)))
        running = [iter(loader) for loader in loaders]
        for _ in range(life.steps):
            step = step_of_all(running)
            if step is None:
                break
            seen.extend(step)
        # Any rank's state will do: it holds the position of all.
        states = [loader.state_dict() for loader in loaders]
        state = data.draw(st.sampled_from(states))
        assert len(json.dumps(state)) <= 512
        if loaders[0].epoch == 2:
            break
    assert seen == alone(open_, epochs=2)


@pytest.mark.parametrize("kind", [*KINDS, *OTHERS])
def test_restored_at_every_position_the_rest_is_exact(sets: tuple[Dataset, ...], kind: str) -> None:
    open_ = opener(sets, kind)
    whole = open_(7, prefetch=0)
    states, batches = [whole.state_dict()], []
    for batch in whole:
        batches.append(samples(batch))
        states.append(json.loads(json.dumps(whole.state_dict())))
    everything = [sample for batch in batches for sample in batch]
    for i in range(0, len(states), 1 if kind == "global" else 4):
        again = open_(11, prefetch=0)
        again.load_state_dict(states[i])
        rest = [sample for batch in again for sample in samples(batch)]
        assert rest == everything[sum(map(len, batches[:i])) :]


@pytest.mark.parametrize("world", [1, 2, 5, 97])
def test_all_ranks_make_the_same_number_of_steps(sets: tuple[Dataset, ...], world: int) -> None:
    steps = {
        sum(1 for _ in sets[0].loader(4, shuffle="global", rank=r, world=world, prefetch=0))
        for r in range(world)
    }
    assert len(steps) == 1


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(
    changes=st.lists(
        st.tuples(st.integers(1, 9), st.integers(0, 9), st.integers(0, 9)).filter(
            lambda c: c[1] + c[2] > 0
        ),
        max_size=3,
    )
)
def test_weights_that_change_keep_the_contract(
    sets: tuple[Dataset, ...], changes: list[tuple[int, int, int]]
) -> None:
    """Restored at each change, against no restore; and, inside an epoch, another world too."""

    def run(world: int, batch: int, restore: bool, times: int | None = None) -> list[int]:
        mixture = mix({"a": sets[0], "b": sets[1]}, {"a": 1, "b": 1}, seed=5)
        opened = [
            mixture.loader(batch, shuffle="global", rank=r, world=world, epochs=None)
            for r in range(world)
        ]
        seen: list[int] = []
        for steps, a, b in [*changes, (6, 0, 0)]:
            running = [iter(loader) for loader in opened]
            for _ in range((times or steps) * 12 // (world * batch)):
                seen.extend(ids([next(loader) for loader in running]))
            for loader in opened if a + b else []:
                loader.set_weights({"a": a, "b": b})
            if restore:
                states = [json.loads(json.dumps(loader.state_dict())) for loader in opened]
                opened = [
                    mixture.loader(batch, shuffle="global", rank=r, world=world, epochs=None)
                    for r in range(world)
                ]
                for loader, state in zip(opened, states, strict=True):
                    loader.load_state_dict(state)
        return seen

    assert run(2, 3, restore=True) == run(2, 3, restore=False)
    # 48 positions in all: no source is read through, so no short step sets the two apart.
    assert run(2, 3, restore=True, times=1) == run(1, 4, restore=False, times=1)


def test_every_row_once_an_epoch_also_with_packing(sets: tuple[Dataset, ...]) -> None:
    packed = sets[0].loader(5, pack=32, tokens="tokens", shuffle="global")
    tokens = np.concatenate([b["tokens"][b["segment_ids"] > 0] for b in packed])
    expected = np.concatenate([np.full(i * 7 % 23, i) for i in range(N)])
    assert np.sort(tokens).tolist() == expected.tolist()


def test_the_path_of_a_dataset_does_not_count(sets: tuple[Dataset, ...], tmp_path: Path) -> None:
    other = str(tmp_path / "moved")
    write_dataset(rows(N), other, rows_per_shard=40, batch_rows=16)
    loader = sets[0].loader(10, shuffle="global")
    next(iter(loader))
    moved = open_dataset(other).loader(10, shuffle="global")
    moved.load_state_dict(loader.state_dict())
    assert ids(moved) == ids(loader)
