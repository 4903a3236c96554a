"""Bytes on the driver stay within a + b · tasks + c · partitions; the time, linear."""

import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from runtime_values import begun, reader, result, source, submitted

from millpond.physical.stages import Stage
from millpond.runtime.commands import Finished
from millpond.runtime.schedule import Schedule

# Measured: 690 bytes a task (its Task, its PartRef and their names), 17 a partition.
A_BYTES, B_BYTES, C_BYTES = 50_000, 1_000, 50


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
    """docs/scale.md: 0.8 KB of objects per task, within 20 %."""
    with traced():
        schedule = begun(source(0, 20_000), reader(1, 0))
        drain(schedule)
        kept, _ = tracemalloc.get_traced_memory()
    assert kept / 20_000 == pytest.approx(800, rel=0.2)


@pytest.mark.full  # It takes times, which a busy machine may spoil.
def test_four_times_the_tasks_take_four_times_as_long() -> None:
    def seconds(n_tasks: int) -> float:
        schedule = begun(source(0, n_tasks), reader(1, 0))
        start = time.process_time()
        drain(schedule)
        return time.process_time() - start

    seconds(2_000)
    small, large = min(seconds(5_000) for _ in range(3)), seconds(20_000)
    # Twice the ideal: a shared machine. A quadratic term would give sixteen times.
    assert large < 8 * small
