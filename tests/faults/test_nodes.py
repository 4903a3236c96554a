"""A node goes, and its parts with it: the rows that come out are those of the oracle."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from ray_cluster import add_node, cluster, connected, lose_node
from small_pipelines import (
    ALL,
    N_SPLITS,
    gather,
    one_task,
    python,
    rows_of,
    spread,
    spread_at_random,
)

from millpond.events import Event, PartsMissing, TaskFinished, TaskRetried
from millpond.physical.stages import Edge, PartRef, Resources, Stage, Task, TaskId, TaskResult
from millpond.runtime import Capacity, Ended, Policy, Runtime, run

pytestmark = pytest.mark.slow
N = 6


class Watched:
    """A runtime that remembers the parts its tasks wrote, and runs two at a time.

    Else all readers might have begun before the node goes.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.parts: dict[TaskId, PartRef] = {}

    def capacity(self) -> Capacity:
        return Capacity(2, 1)

    def submit(self, tasks: Sequence[Task]) -> Sequence[Future[Ended]]:
        futures = self._runtime.submit(tasks)
        for future in futures:
            future.add_done_callback(self._note)
        return futures

    def _note(self, future: Future[Ended]) -> None:
        if future.exception() is None and isinstance(future.result(), TaskResult):
            result = future.result()
            assert isinstance(result, TaskResult)
            if result.part is not None:
                self.parts[result.task] = result.part

    def cancel(self, tasks: Sequence[TaskId]) -> None:
        self._runtime.cancel(tasks)

    def check_shared(self, folder: str, what: str) -> None:
        self._runtime.check_shared(folder, what)

    def check_inputs(self, paths: Sequence[str]) -> None:
        self._runtime.check_inputs(paths)

    def forget(self, run: str) -> None:
        self._runtime.forget(run)

    def close(self) -> None:
        self._runtime.close()


@pytest.fixture(scope="module")
def all_nodes() -> Iterator[Any]:
    pytest.importorskip("ray")
    with cluster(3) as found:
        yield found


@pytest.fixture
def nodes(all_nodes: Any) -> Any:
    """A cluster of three nodes: what the test before lost is replaced."""
    while len(all_nodes.worker_nodes) < 3:
        add_node(all_nodes)
    return all_nodes


def run_and_lose(
    nodes: Any, folder: Path, stages: list[Stage], when: Callable[[list[Event]], bool]
) -> tuple[list[list[int]], list[Event]]:
    """Run; once `when` holds, the node goes that has the part of stage 0, task 0."""
    events: list[Event] = []
    with connected(nodes, folder) as runtime:
        watched = Watched(runtime)
        gone = []

        def emit(event: Event) -> None:
            events.append(event)
            if not gone and when(events):
                home = watched.parts[TaskId(0, 0)].node
                (node,) = (n for n in nodes.worker_nodes if n.node_id == home)
                gone.append(node)
                lose_node(nodes, node)

        outcome = run(stages, watched, emit).only
        assert gone
        return rows_of(outcome.parts, runtime.fetch), events


def finished(events: list[Event], stage: int) -> int:
    return sum(isinstance(event, TaskFinished) and event.stage == stage for event in events)


def half_was_read(events: list[Event]) -> bool:
    return finished(events, 1) == N // 2


def nothing_was_read(events: list[Event]) -> bool:
    return finished(events, 0) == 4


def test_a_node_is_lost_after_half_of_its_fixed_parts_were_read(nodes: Any, tmp_path: Path) -> None:
    stages = [spread(N), gather(1, 0), gather(2, 1, edge=Edge.FORWARD)]
    rows, events = run_and_lose(nodes, tmp_path, stages, half_was_read)
    assert rows == [sorted(x for x in ALL if x % N == p) for p in range(N)]
    assert any(isinstance(event, PartsMissing) for event in events)


def test_a_node_is_lost_after_half_of_its_varying_parts_were_read(
    nodes: Any, tmp_path: Path
) -> None:
    """Each attempt puts the rows elsewhere: mixing two would lose some and double others."""
    stages = [spread_at_random(N), gather(1, 0), gather(2, 1, edge=Edge.FORWARD)]
    rows, events = run_and_lose(nodes, tmp_path, stages, half_was_read)
    assert sorted(chain(*rows)) == list(ALL)
    again = [e for e in events if isinstance(e, TaskFinished) and e.stage == 1]
    assert len(again) >= N + N // 2


def test_a_node_is_lost_before_its_parts_are_read(nodes: Any, tmp_path: Path) -> None:
    rows, _ = run_and_lose(nodes, tmp_path, [spread(N), gather(1, 0)], nothing_was_read)
    assert rows == [sorted(x for x in ALL if x % N == p) for p in range(N)]


def test_a_node_that_is_slow_holds_nothing_up(nodes: Any, tmp_path: Path) -> None:
    """Its only CPU is taken by the task that does not end, so the twin runs elsewhere."""
    slow = str(tmp_path / "slow")

    def slow_there(batch: Any) -> Any:
        import os
        import threading

        import ray

        here = ray.get_runtime_context().get_node_id()
        with suppress(FileExistsError):
            os.symlink(here, slow)  # The node of the first task is the slow one.
        if os.readlink(slow) == here:
            threading.Event().wait()
        return batch

    stages = [spread(N, python(slow_there, "batch")), gather(1, 0)]
    with connected(nodes, tmp_path) as runtime:
        twins = Policy(twin_min_s=0.0, twin_factor=0.0, twin_after=1)
        outcome = run(stages, runtime, lambda event: None, policy=twins).only
        rows = rows_of(outcome.parts, runtime.fetch)
    assert rows == [sorted(x for x in ALL if x % N == p) for p in range(N)]


def test_tasks_run_where_their_parts_are(nodes: Any, tmp_path: Path) -> None:
    """Each of the second stage reads the part of one task: it need not travel."""
    met = tmp_path / "met"
    met.mkdir()

    def on_two_nodes(batch: Any) -> Any:
        """The first to come waits for another node's."""
        import ray

        (met / ray.get_runtime_context().get_node_id()).touch()
        until_s = time.monotonic() + 60
        while len(list(met.iterdir())) < 2:
            assert time.monotonic() < until_s, "all tasks are on one node"
            time.sleep(0.01)
        return batch

    stages = [spread(N, python(on_two_nodes, "batch")), gather(1, 0, edge=Edge.FORWARD)]
    with connected(nodes, tmp_path) as runtime:
        watched = Watched(runtime)
        outcome = run(stages, watched, lambda event: None).only
        rows = rows_of(outcome.parts, runtime.fetch)
    assert sorted(chain(*rows)) == list(ALL)
    homes = [[watched.parts[TaskId(s, p, 0)].node for p in range(N_SPLITS)] for s in (0, 1)]
    assert homes[0] == homes[1]
    assert len(set(homes[0])) > 1


@pytest.mark.full
def test_a_node_is_lost_after_all_of_its_parts_were_read(nodes: Any, tmp_path: Path) -> None:
    """What was made of them may lie there too: then both are computed again, in turn."""
    stages = [spread(N), gather(1, 0), gather(2, 1, edge=Edge.FORWARD)]
    rows, _ = run_and_lose(nodes, tmp_path, stages, lambda events: finished(events, 1) == N)
    assert rows == [sorted(x for x in ALL if x % N == p) for p in range(N)]


def test_a_node_that_joins_takes_tasks(nodes: Any, tmp_path: Path) -> None:
    with connected(nodes, tmp_path) as runtime:
        before = runtime.capacity().slots
        new = add_node(nodes, num_cpus=2)
        while runtime.capacity().slots == before:
            time.sleep(0.1)  # It asks the cluster once a second.
        watched = Watched(runtime)
        outcome = run([spread(N), gather(1, 0)], watched, lambda event: None).only
        nodes.remove_node(new)
        assert outcome.rows == len(ALL)
        assert new.node_id in {part.node for part in watched.parts.values()}


def test_a_disk_full_on_one_node_sends_its_tasks_elsewhere(
    nodes: Any, tmp_path: Path, small_disk: Path
) -> None:
    """The node is part of the run, and has room for its own folder, but for no row."""
    small = add_node(nodes, env_vars={"TMPDIR": str(small_disk)})
    seen: list[Event] = []
    with connected(nodes, tmp_path) as runtime:
        fill(small_disk)
        outcome = run([spread(N), gather(1, 0)], runtime, seen.append).only
        rows = rows_of(outcome.parts, runtime.fetch)
        assert small.node_id not in {part.node for part in outcome.parts}
    nodes.remove_node(small)
    assert rows == [sorted(x for x in ALL if x % N == p) for p in range(N)]
    again = [event.reason for event in seen if isinstance(event, TaskRetried)]
    assert again
    assert all("No space" in reason or "no space" in reason for reason in again)


def fill(folder: Path) -> None:
    with suppress(OSError), (folder / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


@pytest.mark.parametrize("given", [None, 64 << 20])
def test_ray_is_told_the_memory_of_each_task(nodes: Any, tmp_path: Path, given: int | None) -> None:
    """What the user says, or what its worker may take: then no other takes it meanwhile."""

    def told(row: dict[str, Any]) -> dict[str, Any]:
        import ray

        return {"x": int(ray.get_runtime_context().get_assigned_resources()["memory"])}

    with connected(nodes, tmp_path) as runtime:
        import ray

        least = min(
            int(node["Resources"]["memory"])
            for node in ray.nodes()
            if node["Alive"] and node["Resources"].get("CPU")
        )
        task = replace(one_task(python(told)), resources=Resources(memory_bytes=given))
        result = runtime.submit([task])[0].result(60)
        assert isinstance(result, TaskResult)
        assert result.part is not None
        (rows,) = rows_of([result.part], runtime.fetch)
    assert set(rows) == {given or least}


def test_each_worker_has_its_share_of_its_own_nodes_memory(nodes: Any, tmp_path: Path) -> None:
    def limit(row: dict[str, Any]) -> dict[str, Any]:
        from millpond.runtime.ray import workers

        ((mine, _),) = workers._workers.values()
        return {"x": mine.options.memory_limit_bytes}

    with connected(nodes, tmp_path) as runtime:
        import ray

        has = {node["NodeID"]: int(node["Resources"].get("memory", 0)) for node in ray.nodes()}
        result = runtime.submit([one_task(python(limit))])[0].result(60)
        assert isinstance(result, TaskResult)
        assert result.part is not None
        (told,) = rows_of([result.part], runtime.fetch)
    assert set(told) == {has[result.part.node]}
