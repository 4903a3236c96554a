"""Calls of a Ray cluster end when they are not wanted, whether they have begun or not."""

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray_cluster import add_node, cluster, connected
from small_pipelines import one_task, python

from millpond.errors import WorkerLost
from millpond.physical.stages import Resources, Task, TaskId, TaskResult
from millpond.runtime.calls import Dropped
from millpond.runtime.place import NotBegun
from millpond.runtime.ray.workers import service_name
from millpond.storage.scratch import base_folder

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
        assert all(isinstance(future.result(0), NotBegun) for future in futures)
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
    assert isinstance(future.exception(0), WorkerLost)
    with suppress(psutil.NoSuchProcess):
        psutil.Process(int(pid_file.read_text())).wait(60)  # Ray tells of it a moment before.


def test_only_what_was_taken_is_cancelled(
    nodes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray ends this very program if it cancels a call in the moment of its end, see 0122."""
    import ray

    goes_on = tmp_path / "goes on"

    def waits(row: dict[str, Any]) -> dict[str, Any]:
        while not goes_on.exists():
            time.sleep(0.01)
        return row

    cancelled, cancel = list[Any](), ray.cancel
    monkeypatch.setattr(
        ray, "cancel", lambda call, **how: (cancelled.append(call), cancel(call, **how))
    )
    with connected(nodes, tmp_path / "session") as runtime:
        (ends,) = runtime.submit([one_task(python(waits))])
        with monkeypatch.context() as other:
            late: Future[Dropped] = Future()
            late.set_result(Dropped((), ("0",)))  # As if it had just ended.
            other.setattr(runtime._nodes, "drop", lambda calls: [late])
            runtime.cancel([one_task().id])
        assert not wait([ends], timeout=0.5).done
        goes_on.touch()
        assert isinstance(ends.result(60), TaskResult)
        runtime.cancel([one_task().id])  # By now nobody knows it.
        assert cancelled == []
        goes_on.unlink()
        (taken,) = runtime.submit([numbered(one_task(python(waits)), 1)])
        until_begun(runtime, "1")
        runtime.cancel([TaskId(9, 1)])
        assert isinstance(taken.exception(60), WorkerLost)
        assert len(cancelled) == 1


def until_begun(runtime: Any, call: str) -> None:
    (service,) = (
        service for service in runtime._nodes.services if service in runtime._nodes.working
    )
    folder = Path(base_folder(), service_name(runtime._session, service), "calls")
    while not any(folder.glob(f"{call}.*")):
        time.sleep(0.01)
