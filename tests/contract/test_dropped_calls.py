"""Calls of a Ray cluster end when they are not wanted, whether they have begun or not."""

import os
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import wait
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ray_cluster import add_node, cluster, connected
from small_pipelines import one_task, python

from millpond.physical.stages import Resources, Task, TaskId, TaskResult
from millpond.runtime.place import NotBegun

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    pytest.importorskip("ray")
    with cluster(0) as found:
        add_node(found, num_cpus=2, num_gpus=1)
        yield found


@contextmanager
def others_hold(**resources: int) -> Iterator[None]:
    """Another program of the cluster has these."""
    import ray

    class Holder:
        def here(self) -> int:
            return 1

    holder = ray.remote(Holder).options(**resources).remote()
    assert ray.get(holder.here.remote()) == 1
    try:
        yield
    finally:
        ray.kill(holder)


def touches(path: Path, **resources: float) -> Task:
    """A task that leaves a file."""

    def leave(row: dict[str, Any]) -> dict[str, Any]:
        path.touch()
        return row

    return one_task(python(leave), resources=Resources(**resources))


def numbered(task: Task, number: int) -> Task:
    return replace(task, id=TaskId(9, number))


@pytest.mark.parametrize("gpus", [0, 1])
def test_a_call_that_waits_for_others_ends_at_once_and_never_runs(
    nodes: Any, tmp_path: Path, gpus: int
) -> None:
    ran = tmp_path / "ran"
    with connected(nodes, tmp_path / "session") as runtime:
        with others_hold(num_cpus=2, num_gpus=1):
            (future,) = runtime.submit([touches(ran, gpus=gpus)])
            assert not wait([future], timeout=0.5).done
            runtime.cancel([one_task().id])
            assert future.result(60) == NotBegun(one_task().id)  # They hold it all the while.
        (after,) = runtime.submit([numbered(touches(tmp_path / "after", gpus=gpus), 1)])
        assert isinstance(after.result(60), TaskResult)
    assert (tmp_path / "after").exists()
    assert not ran.exists()


def test_calls_that_a_session_left_waiting_take_nothing_of_the_cluster(
    nodes: Any, tmp_path: Path
) -> None:
    import ray

    ran = tmp_path / "ran"
    ray.init(address=nodes.address, log_to_driver=False)  # The session does not end it.
    with others_hold(num_cpus=2, num_gpus=1):
        with connected(nodes, tmp_path / "session") as runtime:
            futures = [
                *runtime.submit([touches(ran)]),
                *runtime.submit([numbered(touches(ran, gpus=1), 1)]),
            ]
        assert not wait(futures, timeout=0.5).done
    both = ray.remote(lambda: 1).options(num_cpus=2, num_gpus=1)
    assert ray.get(both.remote(), timeout=45) == 1  # Sooner than they would give up by themselves.
    assert not ran.exists()
    ray.shutdown()


def test_a_session_that_ends_leaves_no_call_running(nodes: Any, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"

    def for_ever(row: dict[str, Any]) -> dict[str, Any]:
        pid_file.with_suffix(".new").write_text(str(os.getpid()))
        pid_file.with_suffix(".new").rename(pid_file)
        threading.Event().wait()
        return row

    with connected(nodes, tmp_path / "session") as runtime:
        (future,) = runtime.submit([one_task(python(for_ever))])
        while not pid_file.exists():
            time.sleep(0.01)
    assert future.exception(60) is not None
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)


@pytest.mark.full
def test_calls_cancelled_in_the_moment_of_their_end(nodes: Any, tmp_path: Path) -> None:
    """Ray's own way to cancel ends this very program at some of these, one in 20,000 or so."""
    delay_s, ends, chance = 0.004, {True: 0, False: 0}, random.Random(54738)
    with connected(nodes, tmp_path / "session") as runtime:
        until_s = time.monotonic() + 45
        while time.monotonic() < until_s:
            tasks = [numbered(one_task(), number) for number in range(2)]
            futures = [runtime.submit([task])[0] for task in tasks]
            time.sleep(delay_s * chance.uniform(0.7, 1.3))
            runtime.cancel([task.id for task in tasks])
            assert not wait(futures, timeout=60).not_done
            answered = all(future.exception() is None for future in futures)
            ends[answered] += 1
            delay_s *= 0.98 if answered else 1.1
        (after,) = runtime.submit([one_task()])
        assert isinstance(after.result(60), TaskResult)
    assert min(ends.values()) > 10
