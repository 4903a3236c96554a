"""What every runtime must do; each implementation runs all of it."""

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from fake_runtime import FakeRuntime
from runtimes import in_this_thread, local, ray, reading
from small_pipelines import (
    ALL,
    SqlStep,
    X,
    forward,
    gather,
    numbers,
    one_task,
    python,
    rows_of,
    spread,
)

from millpond.errors import GaveUp, OptionError, TaskError
from millpond.events import Event, TaskRetried
from millpond.physical.stages import Resources, Task, TaskId, TaskResult
from millpond.physical.steps import Step
from millpond.runtime import Runtime, run
from millpond.runtime.commands import CALL_S
from millpond.runtime.local import LocalRuntime
from millpond.runtime.place import NotBegun


@pytest.fixture(scope="module")
def on_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    """One for all tests."""
    pytest.importorskip("ray")
    with ray(tmp_path_factory.mktemp("ray")) as runtime:
        yield runtime


@pytest.fixture(params=["in this thread", "local", pytest.param("ray", marks=pytest.mark.slow)])
def runtime(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Runtime]:
    if request.param == "ray":
        yield request.getfixturevalue("on_ray")
        return
    place = {"in this thread": in_this_thread, "local": local}[request.param]
    with place(tmp_path) as runtime:
        yield runtime


def ignore(event: Event) -> None:
    pass


def skip_in_this_thread(runtime: Runtime, why: str) -> None:
    if isinstance(runtime, FakeRuntime):
        pytest.skip(why)


def kills_its_process_at(x: int, flag: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A function of rows that ends the process at the row `x`, once: the file `flag` tells."""

    def dies_once(row: dict[str, Any]) -> dict[str, Any]:
        if row["x"] == x and not os.path.exists(flag):
            os.close(os.open(flag, os.O_CREAT))
            os.kill(os.getpid(), signal.SIGKILL)
        return row

    return dies_once


def test_a_task_gives_its_result(runtime: Runtime) -> None:
    task = one_task()
    result = runtime.submit([task])[0].result(60)
    assert isinstance(result, TaskResult)
    assert (result.task, result.rows) == (task.id, 50)
    assert result.part is not None


def test_tasks_submitted_together_give_a_result_each(runtime: Runtime) -> None:
    tasks = several(3)
    tasks[1] = several(3, SqlStep("SELECT error('no such flight') AS x FROM __s0", X))[1]
    given: dict[TaskId, Any] = {}
    while waiting := [task for task in tasks if task.id not in given]:
        for task, future in zip(waiting, runtime.submit(waiting), strict=True):
            given[task.id] = future.exception(60) or future.result()
            if isinstance(given[task.id], NotBegun):  # Others of its call took long.
                del given[task.id]
    first, second, third = given.values()
    assert (first.task, third.task) == (tasks[0].id, tasks[2].id)
    assert "no such flight" in str(second)


@pytest.mark.slow
def test_a_call_that_takes_long_gives_back_what_has_not_begun(runtime: Runtime) -> None:
    def takes_long(rows: Any) -> Any:
        import threading

        threading.Event().wait(4 * CALL_S)
        return rows

    first, second = runtime.submit(several(2, python(takes_long, "batch")))
    assert isinstance(first.result(60), TaskResult)
    in_calls = runtime.capacity().together > 1
    assert isinstance(second.result(60), NotBegun if in_calls else TaskResult)


@pytest.mark.slow
def test_a_worker_killed_in_the_middle_of_a_call_takes_no_rows_with_it(
    runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    skip_in_this_thread(runtime, "it would kill this process")
    monkeypatch.setattr("millpond.runtime.sizing.CALL_S", 1e9)  # All tasks count as short.
    events: list[Event] = []
    dies_once = kills_its_process_at(151, str(tmp_path / "killed"))
    stage = replace(spread(2, python(dies_once)), inputs=(numbers(50),))
    outcome = run([stage, gather(1, 0)], runtime, events.append).only
    assert rows_of(outcome.parts, reading(runtime)) == [
        [x for x in ALL if x % 2 == p] for p in range(2)
    ]
    lost = {event.partition for event in events if isinstance(event, TaskRetried)}
    assert 37 in lost  # Row 151 is in the split 37 of 50.
    assert runtime.capacity().together == 1 or len(lost) > 1


@pytest.mark.slow
def test_the_end_of_a_task_may_be_that_of_its_call_but_of_no_other(
    runtime: Runtime, tmp_path: Path
) -> None:
    skip_in_this_thread(runtime, "nobody could cancel it")
    started = str(tmp_path / "started")

    def for_ever(row: dict[str, Any]) -> dict[str, Any]:
        import threading

        os.close(os.open(started, os.O_CREAT))
        threading.Event().wait()
        return row

    tasks = several(2, python(for_ever))
    futures = runtime.submit(tasks)
    until(lambda: os.path.exists(started))
    (other,) = runtime.submit([replace(one_task(), id=TaskId(9, 7))])
    runtime.cancel([task.id for task in tasks])
    assert not wait(futures, timeout=30).not_done
    assert isinstance(other.result(60), TaskResult)


def several(n: int, *steps: Step) -> list[Task]:
    """`n` tasks of one stage."""
    return [replace(one_task(*steps), id=TaskId(9, partition)) for partition in range(n)]


def test_there_is_room_for_a_task(runtime: Runtime) -> None:
    capacity = runtime.capacity()
    assert capacity.slots >= capacity.node_slots >= 1


def test_sql_that_fails_raises_our_error(runtime: Runtime) -> None:
    task = one_task(SqlStep("SELECT error('no such flight') AS x FROM __s0", X))
    with pytest.raises(Exception, match="no such flight"):
        runtime.submit([task])[0].result(60)


@pytest.mark.slow
def test_a_users_exception_keeps_its_traceback(runtime: Runtime) -> None:
    def fails(row: dict[str, Any]) -> dict[str, Any]:
        raise KeyError("tail number")

    with pytest.raises(TaskError, match="tail number") as caught:
        runtime.submit([one_task(python(fails))])[0].result(60)
    assert "in fails" in caught.value.traceback
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.slow
def test_resources_that_no_node_has_are_refused_and_not_waited_for(runtime: Runtime) -> None:
    stage = replace(spread(2), resources=Resources(gpus=8))
    with pytest.raises(OptionError, match="wants 1 CPUs and 8 GPUs for a task, but no node has"):
        run([stage], runtime, ignore)
    skip_in_this_thread(runtime, "it does not know its memory")
    stage = replace(spread(2), resources=Resources(memory_bytes=1 << 50))
    with pytest.raises(OptionError, match="bytes of memory for a task, but no node has more than"):
        run([stage], runtime, ignore)


@pytest.mark.slow
def test_an_exchange_gives_the_rows_of_the_oracle(runtime: Runtime) -> None:
    outcome = run([spread(3), gather(1, 0)], runtime, ignore).only
    assert rows_of(outcome.parts, reading(runtime)) == [
        [x for x in ALL if x % 3 == p] for p in range(3)
    ]


@pytest.mark.slow
def test_a_function_that_prints_and_reads_disturbs_nothing(runtime: Runtime) -> None:
    skip_in_this_thread(runtime, "it would read this process's input")

    def chats(row: dict[str, Any]) -> dict[str, Any]:
        import os
        import sys

        print("hello", row)
        os.write(1, b"and on the descriptor itself\n")
        assert sys.stdin.read() == ""
        return {"x": -row["x"]}

    outcome = run([spread(2), forward(1, 0, python(chats))], runtime, ignore).only
    assert sorted(chain(*rows_of(outcome.parts, reading(runtime)))) == sorted(-x for x in ALL)


@pytest.mark.slow
def test_a_worker_that_is_killed_once_is_replaced(runtime: Runtime, tmp_path: Path) -> None:
    skip_in_this_thread(runtime, "it would kill this process")
    events: list[Event] = []
    dies_once = kills_its_process_at(77, str(tmp_path / "killed"))
    outcome = run([spread(2, python(dies_once)), gather(1, 0)], runtime, events.append).only
    assert sorted(chain(*rows_of(outcome.parts, reading(runtime)))) == list(ALL)
    assert "TaskRetried" in {type(event).__name__ for event in events}


@pytest.mark.slow
def test_a_function_that_always_kills_its_worker_ends_the_run(runtime: Runtime) -> None:
    skip_in_this_thread(runtime, "it would kill this process")
    if hasattr(runtime, "fetch"):
        pytest.skip("Ray takes ten seconds to replace a worker, and the schedule is the same")

    def dies(row: dict[str, Any]) -> dict[str, Any]:
        import os
        import signal

        os.kill(os.getpid(), signal.SIGKILL)
        return row

    with pytest.raises(GaveUp, match="attempt 3: WorkerLost"):
        run([spread(2, python(dies))], runtime, ignore)


@pytest.mark.slow
def test_sys_exit_in_a_function_is_an_error_and_not_a_dead_worker(runtime: Runtime) -> None:
    skip_in_this_thread(runtime, "it would end this process")

    def leaves(row: dict[str, Any]) -> dict[str, Any]:
        raise SystemExit(3)

    with pytest.raises(TaskError, match="SystemExit: 3"):
        runtime.submit([one_task(python(leaves))])[0].result(60)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sql", "python"])
def test_a_cancelled_task_ends(runtime: Runtime, tmp_path: Path, kind: str) -> None:
    skip_in_this_thread(runtime, "nobody could cancel it")
    started = str(tmp_path / "started")

    def for_ever(row: dict[str, Any]) -> dict[str, Any]:
        import threading

        os.close(os.open(started, os.O_CREAT))
        threading.Event().wait()
        return row

    endless = SqlStep(
        "SELECT sum(a.range * b.range) % 7 AS x FROM range(9999999) a, range(9999999) b", X
    )
    task = one_task(python(for_ever) if kind == "python" else endless)
    (future,) = runtime.submit([task])
    if kind == "python":
        until(lambda: os.path.exists(started))
    else:
        until(future.running)
    runtime.cancel([task.id])
    assert wait([future], timeout=30).done


@pytest.mark.slow
def test_what_another_run_left_does_not_disturb(runtime: Runtime) -> None:
    for n in (2, 3):
        outcome = run([spread(n), gather(1, 0)], runtime, ignore).only
        assert rows_of(outcome.parts, reading(runtime)) == [
            [x for x in ALL if x % n == p] for p in range(n)
        ]


@pytest.mark.slow
def test_closing_leaves_no_process_and_no_spill(tmp_path: Path) -> None:
    with local(tmp_path) as runtime:
        run([spread(2, python(lambda row: row))], runtime, ignore)
        assert isinstance(runtime, LocalRuntime)
        pids = runtime.pids
        assert pids
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert list((tmp_path / "processes").iterdir()) == []


@pytest.mark.slow
def test_an_idle_worker_process_that_was_killed_is_replaced(tmp_path: Path) -> None:
    stages = [spread(2, python(lambda row: row))]
    with local(tmp_path) as runtime:
        assert isinstance(runtime, LocalRuntime)
        run(stages, runtime, ignore)
        for pid in runtime.pids:
            os.kill(pid, signal.SIGKILL)
        assert run(stages, runtime, ignore).only.rows == len(ALL)


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that another process does; the test's time-out bounds it."""
    import time

    while not condition():
        time.sleep(0.01)
