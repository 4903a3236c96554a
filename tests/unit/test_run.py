"""`run` carries out the schedule's commands, on a runtime without workers."""

import sys
from collections.abc import Sequence
from concurrent.futures import Future

import pytest
from fake_runtime import FakeRuntime, Faulty
from runtime_values import lost, reader, result, sink, source

from millpond.errors import GaveUp, TaskError, WorkerLost
from millpond.events import Event, StageFinished, StagePlanned, TaskFinished, TaskStarted
from millpond.physical.stages import OutputFile, PartRef, Stage, Task, TaskId, TaskResult
from millpond.runtime import Capacity, Ended, Policy, run
from millpond.runtime.place import NotBegun
from millpond.runtime.progress import Reused


def ignore(event: Event) -> None:
    pass


class Bin:
    """Takes what a run discards."""

    def __init__(self) -> None:
        self.parts: list[PartRef] = []
        self.files: list[OutputFile] = []

    def __call__(self, parts: list[PartRef], files: list[OutputFile]) -> None:
        self.parts += parts
        self.files += files


class Memory:
    """A journal that lasts as long as the process."""

    def __init__(self) -> None:
        self.found: dict[str, Reused] = {}
        self.flushed = 0

    def find(self, stage: Stage) -> Reused | None:
        return self.found.get(stage.fingerprint)

    def record(self, stage: Stage, n_tasks: int, result: TaskResult) -> None:
        known = self.found.get(stage.fingerprint, Reused(n_tasks, {})).results
        self.found[stage.fingerprint] = Reused(n_tasks, {**known, result.task.partition: result})

    def tick(self, now_s: float) -> None:
        pass

    def flush(self) -> None:
        self.flushed += 1


def part_task(task: Task, number: int = 0) -> PartRef:
    return task.inputs[0].parts[number]  # type: ignore[union-attr]


def test_a_run_gives_the_final_stages_in_task_order() -> None:
    outcome = run([source(0, 3, n=2), reader(1, 0, n=5)], FakeRuntime(), ignore).only
    assert [part.task for part in outcome.parts] == [0, 1]
    assert outcome.rows == 100
    assert outcome.partition_rows is not None
    assert outcome.partition_rows.tolist() == [20] * 5


def test_events_are_told_in_the_order_of_what_happened() -> None:
    events: list[Event] = []
    run([source(0, 1)], FakeRuntime(), events.append)
    kinds = [type(event) for event in events]
    assert kinds == [StagePlanned, TaskStarted, TaskFinished, StageFinished]


def test_a_sink_gives_its_staged_files() -> None:
    files = run([source(0, 1, n=3), sink(1, 0)], FakeRuntime(), ignore).only.files
    assert [file.staged.path for file in files] == [f"out/{p}.parquet" for p in range(3)]


def test_a_killed_worker_is_survived() -> None:
    runtime = FakeRuntime()
    outcome = run(
        [source(0, 3, n=2), reader(1, 0)],
        Faulty(runtime, fail={(0, 1, 0), (1, 0, 0), (1, 0, 1)}),
        ignore,
    )
    assert outcome.only.rows == 20
    assert TaskId(1, 0, 2) in runtime.submitted


def test_a_call_takes_one_slot_and_what_has_not_begun_is_submitted_again() -> None:
    class Calls(FakeRuntime):
        """A call does half of its tasks, rounded up."""

        calls: list[int] = []  # noqa: RUF012

        def capacity(self) -> Capacity:
            return Capacity(1, 1, together=8)

        def submit(self, tasks: Sequence[Task]) -> list[Future]:  # type: ignore[type-arg]
            self.calls.append(len(tasks))
            futures = [self._submit(task) for task in tasks[: (len(tasks) + 1) // 2]]
            for task in tasks[len(futures) :]:
                futures.append(Future())
                futures[-1].set_result(NotBegun(task.id))
            return futures

    runtime = Calls()
    assert run([source(0, 20)], runtime, ignore).only.rows == 200
    assert runtime.calls == [1, 8, 8, 8, 7, 3, 1]
    done = [(task.stage, task.partition) for task in runtime.submitted]
    assert sorted(done) == [(0, p) for p in range(20)]


def test_a_node_lost_while_its_parts_are_read_is_survived() -> None:
    def gone(task: Task) -> Ended:
        return lost(task, part_task(task, 1))

    runtime = FakeRuntime()
    stages = [source(0, 3, n=2), reader(1, 0)]
    assert run(stages, Faulty(runtime, replace={(1, 0, 0): gone}), ignore).only.rows == 20
    assert TaskId(0, 1, 1) in runtime.submitted


def test_a_failed_run_cancels_the_rest_and_discards_every_file() -> None:
    runtime, leftovers = FakeRuntime(slots=2), Bin()
    error = TaskError("boom", stage=1, partition=1, inputs="stage 0")
    faulty = Faulty(runtime, fail={(1, 1, 0): error}, hang={(1, 2, 0)})
    with pytest.raises(TaskError, match="boom"):
        run([source(0, 1, n=3), sink(1, 0)], faulty, ignore, discard=leftovers)
    assert [file.staged.path for file in leftovers.files] == ["out/0.parquet"]
    assert [part.stage for part in leftovers.parts] == [0]


def test_giving_up_raises_the_story() -> None:
    faulty = Faulty(FakeRuntime(), fail={(0, 0, attempt) for attempt in range(4)})
    with pytest.raises(GaveUp, match=r"attempt 3: WorkerLost: the worker was killed"):
        run([source(0, 1)], faulty, ignore)


def test_ctrl_c_cancels_and_discards_before_it_is_raised() -> None:
    leftovers = Bin()

    def interrupt(event: Event) -> None:
        if event == TaskStarted(1, 1, 0):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run([source(0, 1, n=2), sink(1, 0)], FakeRuntime(1), interrupt, discard=leftovers)
    assert len(leftovers.files) == 1


@pytest.mark.slow
def test_a_task_that_hangs_is_overtaken_by_its_twin() -> None:
    runtime = FakeRuntime()
    faulty = Faulty(runtime, hang={(0, 3, 0)})
    policy = Policy(twin_min_s=0.0, twin_factor=0.0)
    assert run([source(0, 4)], faulty, ignore, policy=policy).only.rows == 40
    assert runtime.submitted[-1] == TaskId(0, 3, 1)


def test_an_attempt_that_ends_between_its_part_and_its_result_leaves_no_trace() -> None:
    faulty = Faulty(FakeRuntime(), fail_after={(0, 0, 0): WorkerLost("killed after writing")})
    outcome = run([source(0, 1)], faulty, ignore).only
    assert [part.attempt for part in outcome.parts] == [1]


def test_what_ends_after_the_run_is_discarded_when_it_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The loser of twins that nobody could end in time: its file has nobody who wants it."""
    monkeypatch.setattr(sys.modules["millpond.runtime.run"], "_END_S", 0.0)
    late: Future[Ended] = Future()
    slow: list[Task] = []

    class Slow(FakeRuntime):
        def _submit(self, task: Task) -> Future[Ended]:
            if task.id == TaskId(1, 0, 0):
                slow.append(task)
                return late
            return super()._submit(task)

    thrown, twins = Bin(), Policy(twin_min_s=0.0, twin_factor=0.0, twin_after=1)
    plan = [source(0, 3, n=3), sink(1, 0)]
    outcome = run(plan, Slow(), ignore, discard=thrown, policy=twins).only
    assert [file.staged.path for file in thrown.files] == []
    ended = result(slow[0])
    late.set_result(ended)
    assert thrown.files == list(ended.files)
    assert not set(thrown.files) & set(outcome.files)


# ---- the journal ---------------------------------------------------------------------


def stages(broken: str = "") -> list[Stage]:
    return [
        source(0, 3, n=2, fingerprint="scan" + broken),
        reader(1, 0, n=2, fingerprint="middle" + broken),
        sink(2, 1, fingerprint="write"),
    ]


def test_a_rerun_runs_nothing_and_an_interrupted_one_only_the_rest() -> None:
    journal = Memory()
    error = TaskError("boom", stage=1, partition=1, inputs="stage 0")
    with pytest.raises(TaskError):
        run(stages(), Faulty(FakeRuntime(1), fail={(1, 1, 0): error}), ignore, journal=journal)
    assert journal.flushed > 0

    runtime = FakeRuntime()
    run(stages(), runtime, ignore, journal=journal)
    assert runtime.submitted == [TaskId(1, 1), TaskId(2, 0), TaskId(2, 1)]
    again = FakeRuntime()
    run(stages(), again, ignore, journal=journal)
    assert again.submitted == []


def test_an_edited_step_computes_itself_and_what_follows() -> None:
    journal = Memory()
    run(stages(), FakeRuntime(), ignore, journal=journal)
    runtime = FakeRuntime()
    edited = stages()
    edited[1:] = [
        reader(1, 0, n=2, fingerprint="edited"),
        sink(2, 1, fingerprint="write edited"),
    ]
    run(edited, runtime, ignore, journal=journal)
    assert {task.stage for task in runtime.submitted} == {1, 2}


def test_a_stage_without_fingerprint_is_neither_recorded_nor_sought() -> None:
    journal = Memory()
    run([source(0, 1)], FakeRuntime(), ignore, journal=journal)
    assert journal.found == {}


def test_a_journal_keeps_the_parts_of_a_failed_run() -> None:
    leftovers = Bin()
    error = TaskError("boom", stage=1, partition=0, inputs="stage 0")
    faulty = Faulty(FakeRuntime(1), fail={(1, 0, 0): error})
    with pytest.raises(TaskError):
        run(stages(), faulty, ignore, journal=Memory(), discard=leftovers)
    assert leftovers.parts == []


def test_a_clock_that_jumps_forward_ends_no_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process was stopped for an hour; its tasks ran no longer than before."""
    hours = iter(range(0, 10**9, 3_600))
    monkeypatch.setattr("time.monotonic", lambda: float(next(hours)))
    runtime, late = FakeRuntime(), Future()  # type: ignore[var-annotated]

    class Late(Faulty):
        """Task 1 ends when it was asked for room a few more times."""

        asked = 0

        def capacity(self) -> Capacity:
            self.asked += 1
            if self.asked == 6 and not late.done():
                late.set_result(result(self.held))
            return super().capacity()

        def _submit(self, task: Task) -> Future:  # type: ignore[type-arg]
            if task.id != (0, 1, 0):
                return super()._submit(task)
            self.held = task
            return late

    policy = Policy(task_timeout_s=60.0)
    assert run([source(0, 2)], Late(runtime), ignore, policy=policy).only.rows == 20
    assert runtime.cancelled == []
