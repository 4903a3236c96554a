"""Bytes on the driver stay within a + b · tasks + c · partitions; steps, linear."""

import hashlib
import pickle
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from runtime_values import begun, reader, result, source, submitted

from millpond.physical.stages import Edge, PartRef, Resources, Stage, TaskId, TaskResult
from millpond.runtime.commands import Finished
from millpond.runtime.journal import StoredJournal
from millpond.runtime.node import parts_folder
from millpond.runtime.schedule import Schedule
from millpond.storage import LocalStorage

# Measured: 510 bytes a task (its split, its PartRef and their names), 17 a partition.
A_BYTES, B_BYTES, C_BYTES = 50_000, 600, 50


def drain(schedule: Schedule, slots: int = 100) -> None:
    """Run all tasks, `slots` at a time, with results that count each partition."""
    commands: list[object] = []
    while Finished() not in commands:
        commands = []
        for task in submitted(schedule.free_slots(slots)):
            commands += schedule.succeeded(result(task, rows_in=-1))
        schedule.take_events()


def exchange(n_tasks: int, n_partitions: int) -> list[Stage]:
    return [source(0, n_tasks, n=n_partitions), reader(1, 0)]


@contextmanager
def traced() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()


@pytest.mark.slow
@pytest.mark.parametrize(("n_tasks", "n_partitions"), [(10_000, 1_000), (1_000, 10_000)])
def test_bytes_on_the_driver_are_linear_in_tasks_and_partitions(
    n_tasks: int, n_partitions: int
) -> None:
    stages = exchange(n_tasks, n_partitions)
    with traced():
        schedule = begun(*stages)
        drain(schedule)
        _, peak = tracemalloc.get_traced_memory()
    # The readers are tasks as well: one per partition.
    assert peak <= A_BYTES + B_BYTES * (n_tasks + n_partitions) + C_BYTES * n_partitions


@pytest.mark.slow
def test_the_bytes_of_a_task_are_those_of_the_model() -> None:
    """docs/scale.md: 0.5 KB of objects per task, within 20 %."""
    with traced():
        schedule = begun(source(0, 20_000), reader(1, 0))
        drain(schedule)
        kept, _ = tracemalloc.get_traced_memory()
    assert kept / 20_000 == pytest.approx(510, rel=0.2)


def test_the_bytes_of_a_part_that_readers_know_are_those_of_the_model() -> None:
    """docs/scale.md: 230 bytes, the names being those that nodes of a cluster give."""
    nodes = [hashlib.sha224(bytes([i])).hexdigest() for i in range(50)]  # As long as Ray's.
    parts = []
    for i in range(2_000):
        folder = f"/tmp/millpond-1000/{parts_folder(f'0123456789ab-{nodes[i % 50]}')}"
        path = f"{folder}/0123456789ab-1/0000/{i:05d}.a0.part"
        node = "".join(list(nodes[i % 50]))  # Each result brings a text of its own.
        parts.append(PartRef(0, i, 0, node, path, 10**9 + i, 21_600, 1, 10**9, 2**31 + i, 10**7))
    assert len(pickle.dumps(tuple(parts))) / len(parts) == pytest.approx(230, rel=0.2)


def test_the_bytes_of_a_record_of_the_journal_are_those_of_the_model(tmp_path: Path) -> None:
    """docs/scale.md: 0.4 KB a task, in segments of a thousand."""
    journal = StoredJournal(LocalStorage(), str(tmp_path), "0123456789ab", lambda *_: True)
    (stage,) = [replace(source(0, 1_000), fingerprint="0123456789abcdef0123456789abcdef")]
    for i in range(1_000):
        path = f"{tmp_path}/parts/0123456789ab-1/0000/{i:05d}.a0.part"
        part = PartRef(0, i, 0, "", path, 10**9 + i, 21_600, 1, 10**9, 2**31 + i, 10**7)
        journal.record(stage, 1_000, TaskResult(TaskId(0, i), part, rows=10**7, size_bytes=10**9))
    (segment,) = (tmp_path / "journal").iterdir()
    assert segment.stat().st_size / 1_000 == pytest.approx(400, rel=0.2)


def steps(stages: list[Stage]) -> int:
    """Operations of Python's own that a run of these stages takes, the same each time.

    What C does inside one operation, over however many items, counts as one.
    """
    n = 0

    def count(frame: FrameType, event: str, _: object) -> Any:
        nonlocal n
        frame.f_trace_opcodes = True
        n += event == "opcode"
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        drain(begun(*stages))
    finally:
        sys.settrace(before)
    return n


@pytest.mark.parametrize(
    "shape",
    [
        lambda n: [source(0, n), reader(1, 0)],
        lambda n: [source(0, n, n=n), reader(1, 0)],
        lambda n: [source(0, n), reader(1, 0, edge=Edge.FORWARD)],
        lambda n: [source(0, n), reader(1, 0, edge=Edge.FORWARD, resources=Resources(cpus=2))],
    ],
    ids=["tasks", "exchange", "forward", "forward to other resources"],
)
def test_four_times_the_tasks_take_four_times_the_steps(
    shape: Callable[[int], list[Stage]],
) -> None:
    few, many = steps(shape(100)), steps(shape(400))
    assert few == steps(shape(100)), "the count is not the same each time"
    # What does not grow with the tasks makes it less; one step more for each pair of tasks
    # would be 80,000 in all, and a tenth of it here.
    assert 3.5 * few < many <= 4.02 * few
