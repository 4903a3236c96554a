"""Fault × runtime: after each disaster the rows are the oracle's, none lost, none twice.

Each fault hits a run of three stages whose first either is fixed, or puts its rows
elsewhere in each attempt. Faults that need a node of its own: `test_nodes.py`; a process
of its own: `test_sigkill.py`, `test_local.py`, `test_interrupt.py`; decisions without
workers (a late success, a clock that jumps, giving up): `test_schedule.py`.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from bad_parts import DAMAGES, spoil
from fake_runtime import Faulty
from runtimes import in_this_thread, local, ray, reading
from small_pipelines import (
    ALL,
    N_SPLITS,
    SPLIT_ROWS,
    forward,
    gather,
    python,
    rows_of,
    spread,
    spread_at_random,
)

from millpond.errors import OutOfMemory, WorkerLost
from millpond.events import Event, PartsMissing, TaskFinished, TaskRetried
from millpond.physical.stages import Edge, Stage, Task, TaskResult
from millpond.runtime import Capacity, Ended, Policy, Runtime, run

pytestmark = pytest.mark.slow
N = 4
AT_ONCE = Policy(twin_min_s=0.0, twin_factor=0.0)


@pytest.fixture(scope="module")
def on_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    pytest.importorskip("ray")
    with ray(tmp_path_factory.mktemp("ray")) as runtime:
        yield runtime


@pytest.fixture(params=["in this thread", "local", "ray"])
def runtime(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Runtime]:
    if request.param == "ray":
        yield request.getfixturevalue("on_ray")
        return
    with {"in this thread": in_this_thread, "local": local}[request.param](tmp_path) as runtime:
        yield runtime


@pytest.fixture(params=["fixed", "varying"])
def stages(request: pytest.FixtureRequest, tmp_path: Path) -> list[Stage]:
    first = spread(N) if request.param == "fixed" else spread_at_random(N)
    # Parts of this test alone: the runtime on Ray serves all of them.
    chosen = [first, gather(1, 0), gather(2, 1, edge=Edge.FORWARD)]
    return [replace(stage, run=f"{tmp_path.name}-{request.param}") for stage in chosen]


@dataclass
class Seen:
    """What happened; `strike` is called once, when half of stage 1 has been read."""

    strike: Callable[[], None] = lambda: None
    events: list[Event] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        done = [e for e in self.events if isinstance(e, TaskFinished) and e.stage == 1]
        if isinstance(event, TaskFinished) and event.stage == 1 and len(done) == N // 2:
            self.strike()

    def has(self, kind: type) -> bool:
        return any(isinstance(event, kind) for event in self.events)


def rows_are_the_oracles(stages: list[Stage], parts: Any, read: Any) -> bool:
    rows = rows_of(parts, read)
    if stages[0].determinism == "fixed":
        return rows == [[x for x in ALL if x % N == p] for p in range(N)]
    return sorted(chain(*rows)) == list(ALL)


def survives(runtime: Runtime, stages: list[Stage], seen: Seen, **how: Any) -> bool:
    outcome = run(stages, runtime, seen, **how).only
    return rows_are_the_oracles(stages, outcome.parts, reading(runtime))


@pytest.mark.parametrize(
    "attempts",
    [{(0, 1, 0)}, {(1, 2, 0), (1, 2, 1)}, {(s, p, 0) for s in range(3) for p in range(N)}],
    ids=["in a map task", "twice in a reduce task", "in every task"],
)
def test_the_worker_is_killed(runtime: Runtime, stages: list[Stage], attempts: set[Any]) -> None:
    seen = Seen()
    assert survives(Through(runtime, fail=attempts), stages, seen)
    assert seen.has(TaskRetried)


def test_the_worker_is_killed_between_its_part_and_its_result(
    runtime: Runtime, stages: list[Stage]
) -> None:
    gone = WorkerLost("killed after it had written its part")
    assert survives(Through(runtime, fail_after={(0, 0, 0): gone}), stages, Seen())


def test_a_task_runs_out_of_memory_once(runtime: Runtime, stages: list[Stage]) -> None:
    full = {(1, 1, 0): OutOfMemory("2 GB were not enough")}
    assert survives(Through(runtime, fail=full), stages, Seen())


def test_a_task_is_too_large_for_the_memory_and_runs_in_pieces(runtime: Runtime) -> None:
    def large(rows: Any) -> Any:
        if rows.num_rows > 20:
            raise MemoryError("a batch of all rows does not fit")
        return rows

    seen = Seen()
    stages = [spread(N, python(large, "batch")), forward(1, 0, python(large, "batch"))]
    stages = [replace(stage, run="pieces") for stage in stages]
    outcome = run(stages, runtime, seen, policy=Policy(rows_at_once=(16, 8))).only
    rows = rows_of(outcome.parts, reading(runtime))
    assert rows == [
        [x for p in range(N) for x in ALL if x % N == p and x // SPLIT_ROWS == split]
        for split in range(N_SPLITS)
    ]
    assert seen.has(TaskRetried)


def test_a_task_hangs_with_no_other_to_tell_it_from(runtime: Runtime, stages: list[Stage]) -> None:
    timeout, seen = Policy(task_timeout_s=2.0, twin_after=99), Seen()
    assert survives(Through(runtime, hang={(1, 0, 0)}), stages, seen, policy=timeout)
    assert seen.has(TaskRetried)


def test_a_task_hangs(runtime: Runtime, stages: list[Stage]) -> None:
    assert survives(Through(runtime, hang={(1, 3, 0)}), stages, Seen(), policy=AT_ONCE)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_part_goes_bad_after_half_of_its_readers(
    runtime: Runtime, stages: list[Stage], damage: str
) -> None:
    watched = Through(runtime, slots=1)  # Else the other half might be reading already.
    seen = Seen(lambda: spoil(watched.part_of(0, 2), damage))
    assert survives(watched, stages, seen)
    assert seen.has(PartsMissing)


class Through(Faulty):
    """A faulty runtime that knows where the parts are; `slots` narrows it."""

    def __init__(self, runtime: Runtime, slots: int | None = None, **faults: Any) -> None:
        super().__init__(runtime, **faults)
        self._slots = slots
        self.runtime, self._parts = runtime, dict[tuple[int, int], str]()

    def capacity(self) -> Capacity:
        return Capacity(self._slots, 1) if self._slots else super().capacity()

    def submit(self, tasks: Sequence[Task]) -> Any:
        futures = super().submit(tasks)
        for future in futures:
            future.add_done_callback(self._note)
        return futures

    def _note(self, future: Any) -> None:
        if future.cancelled() or future.exception() is not None:
            return
        ended: Ended = future.result()
        if isinstance(ended, TaskResult) and ended.part is not None:
            self._parts[ended.task[:2]] = ended.part.path

    def part_of(self, stage: int, task: int) -> Path:
        return Path(self._parts[stage, task])

    @property
    def fetch(self) -> Any:
        return reading(self.runtime)


@pytest.mark.parametrize("always", [False, True])
def test_a_function_that_fails_once_is_not_tried_again(
    runtime: Runtime, tmp_path: Path, always: bool
) -> None:
    """A user's exception is final: another attempt would hide a fault of the program."""
    from millpond.errors import TaskError

    failed = str(tmp_path / "failed")

    def fails(row: dict[str, Any]) -> dict[str, Any]:
        if always or not os.path.exists(failed):
            os.close(os.open(failed, os.O_CREAT))
            raise ValueError("bad row")
        return row

    seen = Seen()
    with pytest.raises(TaskError, match="bad row"):
        run([spread(2, python(fails))], runtime, seen)
    assert not seen.has(TaskRetried)
