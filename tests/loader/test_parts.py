"""The loader's pure parts: schedules, packing plans, selections, the state's size."""

import json
import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millpond.errors import OptionError
from millpond.loader.order import Order
from millpond.loader.packing import PackPlan, plan_packs
from millpond.loader.schedule import Schedule, pattern, whole_weights
from millpond.loader.selection import Selection
from millpond.loader.sequence import Mixed, Place
from millpond.loader.state import Cursor, Identity, Receipt, Run, State
from millpond.loader.verify import Seen

WEIGHTS = st.lists(st.integers(0, 9), min_size=3, max_size=3).filter(any).map(tuple)


def test_the_pattern_is_pinned() -> None:
    assert pattern((3, 1)).source.tolist() == [0, 0, 1, 0]
    assert pattern((5, 2, 3)).source.tolist() == [0, 2, 1, 0, 0, 2, 0, 1, 2, 0]


@given(st.lists(st.tuples(st.integers(1, 60), WEIGHTS), min_size=1, max_size=4))
def test_each_source_runs_on_without_a_gap_over_changes(
    parts: list[tuple[int, tuple[int, ...]]],
) -> None:
    starts = np.cumsum([0, *[length for length, _ in parts[:-1]]]).tolist()
    schedule = Schedule(tuple(zip(starts, [w for _, w in parts], strict=True)))
    source, index = schedule.at(np.arange(200))
    counts = [0, 0, 0]
    for position, (s, i) in enumerate(zip(source.tolist(), index.tolist(), strict=True)):
        assert i == counts[s]
        assert schedule.position_of(s, i) == position
        counts[s] += 1
        assert schedule.counts(position + 1).tolist() == counts


@given(st.lists(st.integers(1, 50), min_size=2, max_size=12))
def test_no_source_is_ever_far_from_its_share(weights: list[int]) -> None:
    whole = whole_weights(weights, "test")
    found = pattern(whole)
    seen = np.cumsum(found.source[:, None] == np.arange(len(whole)), axis=0)
    ideal = np.arange(1, found.period + 1)[:, None] * np.array(whole) / sum(whole)
    assert np.abs(seen - ideal).max() < 2


def test_real_weights_become_whole_ones_and_none_is_lost() -> None:
    assert whole_weights([6, 2], "test") == (3, 1)
    assert whole_weights([0.5, 0.25, 0.25], "test") == (2, 1, 1)
    tiny = whole_weights([1.0, 1e-12], "test")
    assert tiny[1] == 1
    with pytest.raises(OptionError, match="inf"):
        whole_weights([1.0, float("inf")], "test")


@given(st.lists(st.integers(0, 200), max_size=80), st.integers(1, 40), st.integers(1, 30))
def test_a_plan_packs_every_token_once(lengths: list[int], pack: int, window: int) -> None:
    plan = plan_packs(np.array(lengths, np.int64), pack, window)
    tokens = [
        (int(d), int(t))
        for d, s, n in zip(plan.document, plan.start, plan.size, strict=True)
        for t in range(s, s + n)
    ]
    assert sorted(tokens) == [(d, t) for d, n in enumerate(lengths) for t in range(n)]
    sizes = np.add.reduceat(plan.size, plan.first_piece[:-1]) if plan.n_packs else np.empty(0)
    assert (sizes <= pack).all()
    again = PackPlan.from_bytes(plan.to_bytes())
    assert again is not None
    assert again.document.tolist() == plan.document.tolist()
    assert PackPlan.from_bytes(plan.to_bytes()[:-1]) is None


def test_packs_of_natural_lengths_are_full() -> None:
    # Lognormal as of files of source code and text: median 600 tokens, mean about 2200.
    draw = np.random.Generator(np.random.PCG64(0))
    lengths = np.minimum(draw.lognormal(np.log(600), 1.6, 20_000), 1e6).astype(np.int64)
    assert plan_packs(lengths, 4096).fill > 0.995


@given(st.sets(st.integers(0, 10**6), max_size=300), st.integers(0, 10**6))
def test_a_selection_finds_its_rows_and_no_others(kept: set[int], other: int) -> None:
    rows = np.array(sorted(kept), np.int64)
    for selection in (Selection.of(rows), Selection.from_bytes(Selection.of(rows).to_bytes())):
        assert selection is not None
        assert selection.rows(np.arange(selection.n)).tolist() == rows.tolist()
        assert [selection.find(row) for row in rows.tolist()] == list(range(rows.size))
        assert (selection.find(other) is None) == (other not in kept)
    assert Selection.from_bytes(Selection.of(rows).to_bytes() + b"x") is None


def test_a_selection_of_dense_rows_is_small() -> None:
    rows = np.flatnonzero(np.arange(100_000) % 3)
    assert len(Selection.of(rows).to_bytes()) < 2.2 * rows.size


def huge() -> Mixed:
    """64 sources of 10^12 rows in all, with three changes of weights."""
    draw = np.random.Generator(np.random.PCG64(1))
    sizes = tuple(int(n) for n in draw.integers(10**9, 3 * 10**10, 64))
    log = tuple(
        (at, whole_weights(draw.random(64).tolist(), "test"))
        for at in (0, 10**9, 5 * 10**10, 7 * 10**11)
    )
    return Mixed(sizes, Order("global", 3), Schedule(log))


def test_a_huge_plan_restores_in_little_time_and_memory() -> None:
    identity = Identity("0" * 32, "global", 3)
    mixed, at = huge(), Cursor(0, 8 * 10**11, 10**8)
    runs = (Run(0, 0, 0, 64, 128, 0),)
    state = json.loads(
        json.dumps(State(identity, at, 5, Receipt(10, 7), runs, log=mixed.schedule.log).to_dict())
    )
    log = state.pop("mix")
    assert len(json.dumps(state)) <= 512
    assert len(json.dumps(log)) <= 8 * 64 * 4
    pattern.cache_clear()
    tracemalloc.start()
    began = time.process_time()
    found = State.from_dict({**state, "mix": log}, identity)
    restored = Mixed(
        mixed.sizes, mixed.order, Schedule(found.log), anchor=Place(found.cursor.epoch, 0)
    )
    source, units = restored.at(0, np.arange(8192) + found.cursor.position)
    took = time.process_time() - began
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10 << 20
    # 50 ms is the bar; tracing memory and a busy machine take a multiple of it.
    assert took < 1
    assert np.array_equal(source, mixed.at(0, np.arange(8192) + at.position)[0])
    assert (units < np.array(mixed.sizes)[source]).all()


@settings(max_examples=25)
@given(st.integers(0, 2**62), st.integers(0, 2**62), st.integers(1, 2**40))
def test_a_state_of_any_size_survives_json(epoch: int, position: int, world: int) -> None:
    identity = Identity("f" * 32, "block", 2**63, "a" * 16, "4096 tokens", "128 2048")
    runs = tuple(Run(epoch, position + i, i, world, 4096, 0) for i in range(16))
    state = State(identity, Cursor(epoch, position, 9), 3, Receipt(2**60, 2**64 - 1), runs)
    text = json.dumps(state.to_dict())
    assert len(text) <= 512
    found = State.from_dict(json.loads(text), identity)
    assert found.cursor == state.cursor
    assert found.receipt == state.receipt
    assert found.runs == runs[len(runs) - len(found.runs) :]


@given(st.integers(1, 60), st.lists(st.lists(st.integers(0, 59), max_size=20), max_size=12))
def test_what_was_checked_is_remembered_and_nothing_else(n: int, parts: list[list[int]]) -> None:
    seen, done = Seen(n), set[int]()
    for part in [*parts, list(range(n)), list(range(n))]:
        rows = np.array([row % n for row in part], np.int64)
        new = seen.new(rows)
        if new is not None:
            assert new.tolist() == [row not in done for row in rows.tolist()]
            seen.add(rows[new])
        done |= set(rows.tolist())
    assert seen.new(np.arange(n)) is None or not np.any(seen.new(np.arange(n)))


@pytest.mark.slow
def test_a_training_job_loads_no_planner_no_runtime_and_no_torch() -> None:
    script = "import sys, millpond.loader; print(*sys.modules)"
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    loaded = set(ended.stdout.split())
    assert not loaded & {"duckdb", "ray", "torch", "pandas", "sqlglot", "millpond.session"}
    assert not [m for m in loaded if m.startswith(("millpond.plan", "millpond.runtime"))]
