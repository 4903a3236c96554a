"""The schedule: events in, commands out."""

from dataclasses import replace

import pytest
from runtime_values import (
    FRAGMENT,
    begun,
    finish,
    ids,
    lost,
    reader,
    result,
    sink,
    source,
    submitted,
)

from millpond.errors import CallLost, GaveUp, OutOfMemory, PartDamaged, TaskError, WorkerLost
from millpond.events import PartsMissing, StageFinished, StagePlanned, TaskRetried
from millpond.physical.stages import Determinism, Edge, PartRows, Resources, TaskId, TaskResult
from millpond.runtime.commands import Cancel, Command, Discard, Finished, GiveUp, Policy, Submit
from millpond.runtime.place import Capacity
from millpond.runtime.progress import Reused
from millpond.runtime.schedule import Schedule

VARIES = Determinism.VARIES


def test_a_stage_starts_when_all_it_reads_is_done_and_is_bound_to_the_parts() -> None:
    schedule = begun(source(0, 3, n=2), reader(1, 0))
    maps = submitted(schedule.free_slots(10))
    assert ids(maps) == [TaskId(0, 0), TaskId(0, 1), TaskId(0, 2)]

    finish(schedule, maps[:2])
    assert schedule.free_slots(10) == []
    finish(schedule, maps[2:])
    reduces = submitted(schedule.free_slots(10))

    assert ids(reduces) == [TaskId(1, 0), TaskId(1, 1)]
    first, second = (task.inputs[0] for task in reduces)
    assert isinstance(first, PartRows)
    assert isinstance(second, PartRows)
    assert [part.task for part in first.parts] == [0, 1, 2]
    assert first.parts is second.parts
    assert finish(schedule, reduces) == [Finished()]


def test_a_task_that_reads_one_part_is_bound_to_that_part_alone() -> None:
    schedule = begun(source(0, 3), reader(1, 0, edge=Edge.FORWARD))
    finish(schedule, submitted(schedule.free_slots(9)))
    item = submitted(schedule.free_slots(9))[2].inputs[0]
    assert isinstance(item, PartRows)
    assert ([part.task for part in item.parts], item.first_part, item.n_parts) == ([2], 0, 1)


def test_independent_stages_overlap() -> None:
    schedule = begun(source(0, 1), source(1, 2), reader(2, 0, 1, edge=Edge.ALL))
    assert ids(submitted(schedule.free_slots(3))) == [TaskId(0, 0), TaskId(1, 0), TaskId(1, 1)]


def test_no_more_is_submitted_than_slots_are_free() -> None:
    schedule = begun(source(0, 5))
    assert len(schedule.free_slots(2)) == 2
    assert schedule.free_slots(0) == []
    assert len(schedule.free_slots(9)) == 3


def test_a_stage_without_tasks_is_done() -> None:
    schedule = begun(source(0, 0), reader(1, 0))
    (task,) = submitted(schedule.free_slots(1))
    assert finish(schedule, [task]) == [Finished()]


def test_events_tell_stages_planned_and_finished() -> None:
    schedule = begun(source(0, 2))
    assert schedule.take_events() == [StagePlanned(0, "stage 0", 2)]
    finish(schedule, submitted(schedule.free_slots(2)))
    assert schedule.take_events()[-1] == StageFinished(0, 0, 20, 160)


# ---- failures ------------------------------------------------------------------------


def test_a_lost_worker_is_tried_again_with_the_next_attempt() -> None:
    schedule = begun(source(0, 1))
    schedule.free_slots(1)
    assert schedule.failed(TaskId(0, 0), WorkerLost("node n1 is gone")) == []
    assert ids(submitted(schedule.free_slots(1))) == [TaskId(0, 0, 1)]
    assert TaskRetried(0, 0, 1, "node n1 is gone") in schedule.take_events()


def test_the_fourth_failure_gives_up_with_the_whole_story() -> None:
    schedule = begun(source(0, 1, title="clean"))
    for attempt in range(3):
        schedule.free_slots(1)
        assert schedule.failed(TaskId(0, 0, attempt), WorkerLost(f"node n{attempt}")) == []
    schedule.free_slots(1)
    (command,) = schedule.failed(TaskId(0, 0, 3), WorkerLost("node n3"))

    assert isinstance(command, GiveUp)
    assert isinstance(command.error, GaveUp)
    for part in ("clean", "partition 0", "attempt 0: WorkerLost: node n0", "node n3"):
        assert part in str(command.error)
    assert schedule.free_slots(1) == []


def test_a_users_exception_is_not_tried_again() -> None:
    schedule = begun(source(0, 1))
    schedule.free_slots(1)
    error = TaskError("boom", stage=0, partition=0, inputs="t.parquet")
    assert schedule.failed(TaskId(0, 0), error) == [GiveUp(error)]


def test_out_of_memory_runs_again_alone_on_its_node() -> None:
    schedule = begun(source(0, 3), slots=2)
    schedule.free_slots(2)
    schedule.failed(TaskId(0, 0), OutOfMemory("2 GB were not enough"))

    assert schedule.free_slots(1) == []  # It waits for the other slot, and no task passes it.
    schedule.succeeded(result_of(schedule, 0, 1))
    (task,) = submitted(schedule.free_slots(2))
    assert task.id == TaskId(0, 0, 1)
    assert task.resources.cpus == 2
    schedule.succeeded(result(task))
    assert ids(submitted(schedule.free_slots(2))) == [TaskId(0, 2)]


def test_out_of_memory_alone_runs_again_in_pieces_smaller_each_time_then_gives_up() -> None:
    schedule = begun(source(0, 2, fragment=replace(FRAGMENT, row_wise=True)), slots=2)
    schedule.free_slots(2)
    full = OutOfMemory("2 GB")
    full.node = "n7"
    ran = []
    assert schedule.failed(TaskId(0, 0), full) == []
    schedule.succeeded(result_of(schedule, 0, 1))
    for attempt in (1, 2):
        (task,) = submitted(schedule.free_slots(2))
        ran.append((task.resources.cpus, task.rows_at_once))
        assert schedule.failed(TaskId(0, 0, attempt), full) == []
    (task,) = submitted(schedule.free_slots(2))
    (command,) = schedule.failed(TaskId(0, 0, 3), full)
    assert [*ran, (task.resources.cpus, task.rows_at_once)] == [(2, None), (2, 8_192), (2, 512)]
    assert isinstance(command, GiveUp)
    assert str(command.error).splitlines()[1:] == [
        "  attempt 0 (on node n7): OutOfMemory: 2 GB",
        "  attempt 1 (on node n7, alone): OutOfMemory: 2 GB",
        "  attempt 2 (on node n7, alone, on one thread, 8,192 rows at a time): OutOfMemory: 2 GB",
        "  attempt 3 (on node n7, alone, on one thread, 512 rows at a time): OutOfMemory: 2 GB",
        "Raise memory_limit, or use more partitions, so that each task holds less.",
    ]


def test_out_of_memory_of_the_only_task_goes_to_one_thread_at_once() -> None:
    """It was alone already; and work that needs all its rows comes in no pieces."""
    schedule = begun(source(0, 1), slots=2)
    schedule.free_slots(2)
    schedule.failed(TaskId(0, 0), OutOfMemory("2 GB"))
    (task,) = submitted(schedule.free_slots(2))
    assert task.rows_at_once == 8_192
    (command,) = schedule.failed(TaskId(0, 0, 1), OutOfMemory("2 GB"))
    assert isinstance(command, GiveUp)
    assert "alone, on one thread)" in str(command.error)


def test_an_attempt_past_the_time_out_is_ended_and_counts_as_failed() -> None:
    schedule = begun(source(0, 2), slots=2, policy=Policy(task_timeout_s=60.0, max_attempts=2))
    schedule.free_slots(2)
    assert schedule.tick(now_s=59.0) == []
    schedule.succeeded(result_of(schedule, 0, 1))
    assert schedule.tick(now_s=60.0) == [Cancel(TaskId(0, 0))]
    assert schedule.failed(TaskId(0, 0), WorkerLost("the task was cancelled")) == []
    assert ids(submitted(schedule.free_slots(2))) == [TaskId(0, 0, 1)]
    cancel, command = schedule.tick(now_s=120.0)
    assert cancel == Cancel(TaskId(0, 0, 1))
    assert isinstance(command, GiveUp)
    assert "attempt 1: TaskTimedOut: it was ended after 60 s (task_timeout)" in str(command.error)


def test_a_task_of_several_cpus_takes_as_many_slots() -> None:
    schedule = begun(source(0, 3, resources=Resources(cpus=2)), slots=4)
    assert len(schedule.free_slots(4)) == 2


def test_a_task_of_much_memory_takes_the_slots_of_as_much() -> None:
    schedule = begun(source(0, 3, resources=Resources(memory_bytes=3 << 30)), slots=4)
    schedule.capacity(Capacity(8, 4, node_bytes=8 << 30))  # 2 GiB for a slot.
    commands = schedule.free_slots(5)
    assert [c.slots for c in commands if isinstance(c, Submit)] == [2, 2]


def test_late_success_of_an_attempt_given_up_is_discarded() -> None:
    schedule = begun(source(0, 1))
    (first,) = submitted(schedule.free_slots(1))
    schedule.failed(first.id, WorkerLost("silent for 60 s"))
    (second,) = submitted(schedule.free_slots(1))

    late = result(first)
    assert late.part is not None
    assert schedule.succeeded(late) == [Discard((late.part,))]
    assert schedule.succeeded(result(second)) == [Finished()]


# ---- slow tasks ----------------------------------------------------------------------


def test_the_twin_of_a_slow_task_wins_and_the_slow_one_is_cancelled() -> None:
    schedule = begun(source(0, 8), reader(1, 0), node_slots=10)
    tasks = submitted(schedule.free_slots(9))
    schedule.tick(now_s=5.0)
    finish(schedule, tasks[:7])

    assert schedule.tick(now_s=14.0) == []
    (twin,) = submitted(schedule.tick(now_s=190.0))
    assert twin.id == TaskId(0, 7, attempt=1)
    assert schedule.succeeded(result(twin)) == [Cancel(TaskId(0, 7))]
    late = result(tasks[7])
    assert late.part is not None
    assert schedule.succeeded(late) == [Discard((late.part,))]


def test_a_slow_task_has_one_twin_and_none_without_a_free_slot() -> None:
    schedule = begun(source(0, 4), node_slots=10)
    tasks = submitted(schedule.free_slots(4))
    finish(schedule, tasks[:3])
    assert schedule.tick(now_s=100.0) == []
    schedule.free_slots(2)
    assert len(schedule.tick(now_s=100.0)) == 1
    assert schedule.tick(now_s=200.0) == []


def test_the_failure_of_one_twin_leaves_the_other() -> None:
    schedule = begun(source(0, 4), node_slots=10)
    tasks = submitted(schedule.free_slots(5))
    finish(schedule, tasks[:3])
    (twin,) = submitted(schedule.tick(now_s=100.0))
    assert schedule.failed(tasks[3].id, WorkerLost("gone")) == []
    assert schedule.free_slots(2) == []
    assert schedule.succeeded(result(twin)) == [Finished()]


def test_a_clock_that_jumps_back_makes_no_task_younger() -> None:
    schedule = begun(source(0, 4), node_slots=10)
    schedule.tick(now_s=1_000.0)
    tasks = submitted(schedule.free_slots(5))
    schedule.tick(now_s=3.0)
    finish(schedule, tasks[:3])
    assert schedule.tick(now_s=4.0) == []
    assert len(schedule.tick(now_s=1_011.0)) == 1


def test_on_one_node_a_slow_task_is_given_longer() -> None:
    schedule = begun(source(0, 4), slots=100)
    finish(schedule, submitted(schedule.free_slots(5))[:3])
    assert schedule.tick(now_s=59.0) == []
    assert len(schedule.tick(now_s=60.0)) == 1


# ---- a change of resources -----------------------------------------------------------

GPU = Resources(gpus=1)


def piped(n: int, slots: int = 9, gpus: float = 9) -> Schedule:
    """Stage 1 runs on GPUs, and reads the parts of stage 0 one to one."""
    stages = source(0, n), reader(1, 0, edge=Edge.FORWARD, resources=GPU)
    schedule = begun(*stages, slots=slots)
    schedule.capacity(Capacity(slots, slots, gpus))
    return schedule


def test_a_gpu_task_starts_as_soon_as_its_own_part_is_there() -> None:
    schedule = piped(3)
    maps = submitted(schedule.free_slots(9))
    assert ids(maps) == [TaskId(0, 0), TaskId(0, 1), TaskId(0, 2)]
    schedule.succeeded(result(maps[1], node="n4"))
    (task,) = submitted(schedule.free_slots(9))
    assert (task.id, task.prefer) == (TaskId(1, 1), ("n4",))
    assert [part.task for part in parts(task)] == [1]
    finish(schedule, [maps[0], maps[2], task])
    assert finish(schedule, submitted(schedule.free_slots(9))) == [Finished()]


def test_gpu_tasks_go_first_but_no_more_than_there_are_gpus() -> None:
    schedule = piped(4, slots=2, gpus=1)
    finish(schedule, submitted(schedule.free_slots(2)))
    assert ids(submitted(schedule.free_slots(2))) == [TaskId(1, 0), TaskId(0, 2)]


def test_a_lost_part_is_computed_again_before_its_gpu_task_is() -> None:
    schedule = piped(3)
    maps = submitted(schedule.free_slots(3))
    finish(schedule, maps[:2])
    first, second = submitted(schedule.free_slots(9))
    schedule.succeeded(result(second))
    schedule.parts_lost(lost(first, *parts(first)))
    (again,) = submitted(schedule.free_slots(9))
    assert again.id == TaskId(0, 0, 1)
    schedule.succeeded(result(maps[2]))
    assert ids(submitted(schedule.free_slots(9))) == [TaskId(1, 2)]
    schedule.succeeded(result(again))
    (task,) = submitted(schedule.free_slots(9))
    assert [part.attempt for part in parts(task)] == [1]


def test_a_gpu_task_that_failed_while_its_part_was_lost_waits_for_the_part() -> None:
    stages = (
        source(0, 2),
        reader(1, 0, edge=Edge.FORWARD, resources=GPU),
        reader(2, 0, edge=Edge.ALL),
    )
    schedule = begun(*stages)
    schedule.capacity(Capacity(9, 9, 9))
    finish(schedule, submitted(schedule.free_slots(9)))
    on_gpu, other, all_parts = submitted(schedule.free_slots(9))
    schedule.parts_lost(lost(all_parts, parts(on_gpu)[0]))
    schedule.failed(on_gpu.id, WorkerLost("gone"))
    (again,) = submitted(schedule.free_slots(9))
    assert again.id == TaskId(0, 0, 1)
    schedule.succeeded(result(again))
    assert set(ids(submitted(schedule.free_slots(9)))) == {TaskId(1, 0, 1), TaskId(2, 0, 1)}
    assert other.id == TaskId(1, 1)


# ---- lost parts ----------------------------------------------------------------------


def test_a_lost_part_is_computed_again_and_its_reader_waits() -> None:
    schedule = begun(source(0, 2, n=2), reader(1, 0))
    finish(schedule, submitted(schedule.free_slots(9)))
    one, two = submitted(schedule.free_slots(9))
    gone = parts(one)[1]

    assert schedule.parts_lost(lost(one, gone)) == [Discard((gone,))]
    (again,) = submitted(schedule.free_slots(9))
    assert again.id == TaskId(0, 1, 1)
    assert PartsMissing(((0, 1),), "node n0 is gone") in schedule.take_events()
    assert schedule.succeeded(result(two)) == []  # Fixed rows: what it read stays good.
    schedule.succeeded(result(again))
    (retried,) = submitted(schedule.free_slots(9))
    assert retried.id == TaskId(1, 0, 1)
    assert [(p.task, p.attempt) for p in parts(retried)] == [(0, 0), (1, 1)]
    assert schedule.succeeded(result(retried)) == [Finished()]


def test_two_readers_that_miss_one_part_cause_one_recompute() -> None:
    schedule = begun(source(0, 1, n=2), reader(1, 0))
    finish(schedule, submitted(schedule.free_slots(9)))
    one, two = submitted(schedule.free_slots(9))
    schedule.parts_lost(lost(one, *parts(one)))
    assert schedule.parts_lost(lost(two, *parts(two))) == []
    assert ids(submitted(schedule.free_slots(9))) == [TaskId(0, 0, 1)]


def test_recompute_goes_back_through_several_stages() -> None:
    schedule = begun(source(0, 1), reader(1, 0), reader(2, 1))
    finish(schedule, submitted(schedule.free_slots(9)))
    finish(schedule, submitted(schedule.free_slots(9)))
    (last,) = submitted(schedule.free_slots(9))
    schedule.parts_lost(lost(last, *parts(last)))
    (middle,) = submitted(schedule.free_slots(9))
    assert middle.id == TaskId(1, 0, 1)
    schedule.parts_lost(lost(middle, *parts(middle)))
    for expected in (TaskId(0, 0, 1), TaskId(1, 0, 2), TaskId(2, 0, 1)):
        (task,) = submitted(schedule.free_slots(9))
        assert task.id == expected
        commands = schedule.succeeded(result(task))
    assert commands == [Finished()]


def test_a_part_that_is_damaged_twice_is_an_error_with_names() -> None:
    schedule = begun(source(0, 1, title="read flights"), reader(1, 0))
    finish(schedule, submitted(schedule.free_slots(9)))
    for _ in range(2):
        (task,) = submitted(schedule.free_slots(9))
        commands = schedule.parts_lost(lost(task, *parts(task), damaged=True))
        finish(schedule, submitted(schedule.free_slots(9)))
    (command,) = commands
    assert isinstance(command, GiveUp)
    assert isinstance(command.error, PartDamaged)
    assert "read flights" in str(command.error)
    assert "0/00000.a1.part" in str(command.error)


def test_a_part_lost_for_ever_gives_up() -> None:
    schedule = begun(source(0, 1), reader(1, 0))
    commands: list[object] = []
    while not any(isinstance(command, GiveUp) for command in commands):
        finish(schedule, submitted(schedule.free_slots(9)))
        (task,) = submitted(schedule.free_slots(9))
        commands = [*schedule.parts_lost(lost(task, *parts(task)))]
    assert task.id.attempt == 4


def test_losing_a_part_that_varies_undoes_every_reader_finished_or_running() -> None:
    schedule = begun(source(0, 2, n=3, determinism=VARIES), reader(1, 0, n=2), sink(2, 1))
    finish(schedule, submitted(schedule.free_slots(9)))
    finished, running, failing = submitted(schedule.free_slots(9))
    kept = result(finished)
    schedule.succeeded(kept)

    commands = schedule.parts_lost(lost(failing, parts(failing)[0]))
    assert Discard((kept.part,)) in commands
    assert Cancel(running.id) in commands
    assert ids(submitted(schedule.free_slots(9))) == [TaskId(0, 0, 1)]


def test_rows_that_vary_are_never_read_from_two_attempts() -> None:
    """Two readers of one random sample: the one that had finished runs again too."""
    schedule = begun(source(0, 1, determinism=VARIES), reader(1, 0), reader(2, 0), reader(3, 1, 2))
    finish(schedule, submitted(schedule.free_slots(9)))
    left, right = submitted(schedule.free_slots(9))
    schedule.succeeded(result(left))
    schedule.parts_lost(lost(right, *parts(right)))
    finish(schedule, submitted(schedule.free_slots(9)))
    again = submitted(schedule.free_slots(9))
    assert [task.id[:2] for task in again] == [(1, 0), (2, 0)]
    assert {part.attempt for task in again for part in parts(task)} == {1}
    assert again[0].id.attempt == 1


def test_undoing_goes_on_through_the_readers_of_readers() -> None:
    stages = (source(0, 1, determinism=VARIES), reader(1, 0), reader(2, 1), reader(3, 0, 2))
    schedule = begun(*stages)
    for _ in range(3):
        finish(schedule, submitted(schedule.free_slots(9)))
    (last,) = submitted(schedule.free_slots(9))
    assert last.id == TaskId(3, 0)
    (sample,) = (part for part in parts(last) if part.stage == 0)
    discarded = [
        c.parts[0].stage for c in schedule.parts_lost(lost(last, sample)) if isinstance(c, Discard)
    ]
    assert sorted(discarded) == [0, 1, 2]


def test_forward_readers_of_other_parts_that_vary_are_left_alone() -> None:
    schedule = begun(source(0, 2, determinism=VARIES), reader(1, 0, edge=Edge.FORWARD))
    finish(schedule, submitted(schedule.free_slots(9)))
    one, two = submitted(schedule.free_slots(9))
    schedule.succeeded(result(one))
    schedule.parts_lost(lost(two, *parts(two)))
    finish(schedule, submitted(schedule.free_slots(9)))
    (again,) = submitted(schedule.free_slots(9))
    assert again.id == TaskId(1, 1, 1)
    assert schedule.succeeded(result(again)) == [Finished()]


def test_a_fixed_stage_that_gave_other_rows_is_treated_as_varying() -> None:
    schedule = begun(source(0, 1, n=2), reader(1, 0))
    (first,) = submitted(schedule.free_slots(9))
    schedule.succeeded(result(first))
    one, two = submitted(schedule.free_slots(9))
    kept = result(one)
    schedule.succeeded(kept)
    schedule.parts_lost(lost(two, *parts(two)))
    (again,) = submitted(schedule.free_slots(9))
    assert schedule.succeeded(result(again, rows=11)) == [Discard((kept.part,))]
    assert ids(submitted(schedule.free_slots(9))) == [TaskId(1, 0, 1), TaskId(1, 1, 1)]


# ---- conservation --------------------------------------------------------------------


@pytest.mark.parametrize("rows_in", [19, 21, 0])
def test_a_task_that_read_other_rows_than_were_written_is_tried_again(rows_in: int) -> None:
    schedule = begun(source(0, 2), reader(1, 0))
    finish(schedule, submitted(schedule.free_slots(9)))
    (task,) = submitted(schedule.free_slots(9))
    wrong = result(task, rows_in=rows_in)
    assert schedule.succeeded(wrong) == [Discard((wrong.part,))]
    (again,) = submitted(schedule.free_slots(9))
    assert schedule.succeeded(result(again)) == [Finished()]


def test_a_task_that_wrote_other_rows_than_it_computed_is_tried_again() -> None:
    schedule = begun(source(0, 1), reader(1, 0))
    (task,) = submitted(schedule.free_slots(9))
    whole = result(task)
    wrong = replace(whole, rows=whole.rows + 1)  # A row that is in none of its segments.
    assert schedule.succeeded(wrong) == [Discard((whole.part,))]
    (again,) = submitted(schedule.free_slots(9))
    assert again.id == TaskId(0, 0, 1)


def test_a_worker_that_stopped_early_on_purpose_is_believed() -> None:
    schedule = begun(source(0, 2), reader(1, 0))
    finish(schedule, submitted(schedule.free_slots(9)))
    (task,) = submitted(schedule.free_slots(9))
    assert schedule.succeeded(result(task, rows_in=-1)) == [Finished()]


def test_totals_that_disagree_end_the_run_even_where_partitions_cannot_be_compared() -> None:
    schedule = begun(source(0, 2), reader(1, 0))
    finish(schedule, submitted(schedule.free_slots(9)))
    schedule.progress[0].exact = False
    (task,) = submitted(schedule.free_slots(9))
    (command,) = schedule.succeeded(result(task, rows_in=21))
    assert isinstance(command, GiveUp)
    assert "read 21 rows in all, but stage 0 wrote 20" in str(command.error)


@pytest.mark.parametrize(("read", "command"), [(12, Finished), (13, GiveUp)])
def test_with_hashes_other_rows_in_the_same_number_end_the_run(read: int, command: type) -> None:
    schedule = begun(source(0, 2), reader(1, 0))
    one, two = submitted(schedule.free_slots(9))
    for task, written in ((one, 2**64 - 3), (two, 15)):
        schedule.succeeded(replace(result(task), rows_hash=0, written_hash=written))
    (task,) = submitted(schedule.free_slots(9))
    last = replace(result(task), rows_hash=read, written_hash=0)
    assert [type(given) for given in schedule.succeeded(last)] == [command]


# ---- reuse ---------------------------------------------------------------------------


def earlier(stage: object, *partitions: int) -> Reused:
    tasks = submitted(begun(stage).free_slots(99))  # type: ignore[arg-type]
    return Reused(len(tasks), {p: result(tasks[p]) for p in partitions})


def test_what_is_there_from_an_earlier_run_is_not_run_again() -> None:
    scan = source(0, 3)
    schedule = begun(scan, reader(1, 0), reused={0: earlier(scan, 0, 2)})
    (task,) = submitted(schedule.free_slots(9))
    assert task.id == TaskId(0, 1)
    assert StagePlanned(0, "stage 0", 3, reused=2) in schedule.take_events()


def test_a_complete_run_runs_nothing() -> None:
    scan = source(0, 3)
    schedule = Schedule([scan], reused={0: earlier(scan, 0, 1, 2)})
    assert schedule.start() == [Finished()]


def test_what_only_reused_stages_need_is_not_run() -> None:
    middle = source(1, 1)  # Its content does not matter: one task, whole.
    schedule = begun(source(0, 3), reader(1, 0), reader(2, 1), reused={1: earlier(middle, 0)})
    (task,) = submitted(schedule.free_slots(9))
    assert task.id == TaskId(2, 0)
    assert schedule.succeeded(result(task)) == [Finished()]


def test_a_lost_part_of_a_reused_stage_runs_what_it_needs() -> None:
    middle = source(1, 1)
    schedule = begun(source(0, 2), reader(1, 0), reader(2, 1), reused={1: earlier(middle, 0)})
    (task,) = submitted(schedule.free_slots(9))
    schedule.parts_lost(lost(task, *parts(task)))
    maps = submitted(schedule.free_slots(9))
    assert ids(maps) == [TaskId(0, 0), TaskId(0, 1)]
    finish(schedule, maps)
    (again,) = submitted(schedule.free_slots(9))
    assert again.id == TaskId(1, 0, 1)


# ---- several tasks in one call -------------------------------------------------------


def sizes(commands: list[Command]) -> list[int]:
    """How many tasks go together."""
    return [len(command.tasks) for command in commands if isinstance(command, Submit)]


def after_one(wall_s: float, n_tasks: int = 41, **fields: object) -> Schedule:
    """Four slots, calls of up to eight tasks; one is done, and took `wall_s`."""
    schedule = begun(source(0, n_tasks, **fields))
    schedule.capacity(Capacity(4, 4, gpus=9.0, together=8))
    (task,) = submitted(schedule.free_slots(1))
    schedule.succeeded(replace(result(task), wall_s=wall_s))
    schedule.take_events()
    return schedule


def test_short_tasks_go_together_and_leave_some_for_the_other_slots() -> None:
    schedule = after_one(0.001)
    commands = schedule.free_slots(4)
    assert sizes(commands) == [8, 8, 6, 5]
    assert ids(submitted(commands)) == [TaskId(0, p) for p in range(1, 28)]
    assert sizes(schedule.free_slots(4)) == [4, 3, 2, 1]


@pytest.mark.parametrize(("wall_s", "together"), [(0.009, 5), (0.02, 2), (0.03, 1), (60.0, 1)])
def test_a_call_ends_soon(wall_s: float, together: int) -> None:
    assert sizes(after_one(wall_s).free_slots(1)) == [together]


def test_tasks_of_which_none_is_done_go_one_by_one() -> None:
    schedule = begun(source(0, 40))
    schedule.capacity(Capacity(4, 4, together=8))
    assert sizes(schedule.free_slots(4)) == [1, 1, 1, 1]


def test_tasks_with_gpus_go_one_by_one() -> None:
    assert sizes(after_one(0.001, resources=Resources(gpus=1)).free_slots(2)) == [1, 1]


def test_a_task_that_has_failed_goes_by_itself() -> None:
    """What it does to its process, it does to it alone."""
    schedule = after_one(0.001)
    first, second, *_ = submitted(schedule.free_slots(1))
    schedule.failed(second.id, WorkerLost("killed"))
    assert ids(submitted(schedule.free_slots(1))) == [second.id._replace(attempt=1)]
    schedule.failed(first.id, WorkerLost("killed"))
    again = schedule.free_slots(2)
    assert sizes(again) == [1, 8]
    assert submitted(again)[0].id == first.id._replace(attempt=1)


def test_what_befell_a_call_of_several_counts_for_none_of_them() -> None:
    """Which of them it was shows when each goes by itself, and then it has all its attempts."""
    schedule = after_one(0.001)
    first, second, *_ = submitted(schedule.free_slots(1))
    for task in (second, first):
        assert schedule.failed(task.id, CallLost("killed")) == []
    for attempt in range(1, Policy().max_attempts):
        assert ids(submitted(schedule.free_slots(1))) == [TaskId(0, 1, attempt)]
        assert schedule.failed(TaskId(0, 1, attempt), WorkerLost("killed")) == []
    assert ids(submitted(schedule.free_slots(1))) == [TaskId(0, 1, 4)]
    (command,) = schedule.failed(TaskId(0, 1, 4), WorkerLost("killed"))
    assert isinstance(command, GiveUp)
    assert "no attempt succeeded, of 5" in str(command.error)


def test_a_task_that_was_given_back_has_not_failed() -> None:
    """However often: it waits again, first in line, and nobody is told of a retry."""
    schedule = after_one(0.001, n_tasks=2)
    for attempt in range(9):
        (task,) = submitted(schedule.free_slots(1))
        assert task.id == TaskId(0, 1, attempt)
        assert schedule.not_begun(task.id) == []
    assert schedule.take_events() == []
    (task,) = submitted(schedule.free_slots(1))
    assert schedule.succeeded(result(task)) == [Finished()]


def test_what_is_given_back_late_changes_nothing() -> None:
    schedule = after_one(0.001, n_tasks=2)
    (task,) = submitted(schedule.free_slots(1))
    schedule.succeeded(result(task))
    assert schedule.not_begun(task.id) == []
    assert schedule.free_slots(4) == []


# ---- helpers -------------------------------------------------------------------------


def parts(task: object) -> list:  # type: ignore[type-arg]
    return [part for item in task.inputs for part in item.parts]  # type: ignore[attr-defined]


def result_of(schedule: Schedule, stage: int, partition: int) -> TaskResult:
    return result(schedule.progress[stage].tasks[partition])


def test_submit_of_a_stage_that_reads_nothing_is_the_task_itself() -> None:
    schedule = begun(source(0, 1))
    assert schedule.free_slots(1) == [Submit((schedule.progress[0].tasks[0],))]
