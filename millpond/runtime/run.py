"""Carries out what the schedule orders: futures become events, commands become calls.

Nothing is decided here. Whatever happens to a task reaches one queue, and one
thread, the caller's, takes from it.
"""

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, wait
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import Protocol

from millpond.errors import WorkerLost
from millpond.events import Event, StageFinished, TaskFinished, TaskStarted
from millpond.physical.stages import OutputFile, PartRef, PartsLost, Stage, Task, TaskId, TaskResult
from millpond.physical.tasks import reads
from millpond.runtime.commands import Cancel, Command, Discard, Finished, GiveUp, Policy, Submit
from millpond.runtime.outcome import Outcome, stage_outcome
from millpond.runtime.place import Capacity, Ended, NotBegun, Runtime, check_fits
from millpond.runtime.progress import Reused
from millpond.runtime.schedule import Schedule

_TICK_S = 0.25
# More cannot pass between two ticks unless this process was stopped: its tasks are no
# later for that.
_STEP_S = 5.0
# A cancelled task ends within a moment. After a failure, files that are still being
# written are worth a longer wait; what ends later yet is discarded when it ends.
_END_S, _FAILED_END_S = 2.0, 30.0
# Objects made between two looks for cycles among the young ones; see docs/scale.md.
_YOUNG = 10_000
_OLD = 50  # Looks at the middle generation to one at all objects.


class Journal(Protocol):
    """Remembers finished tasks from run to run: on storage, or in a session's memory."""

    def find(self, stage: Stage) -> Reused | None:
        """What is there of this stage and can be read."""

    def record(self, stage: Stage, n_tasks: int, result: TaskResult) -> None:
        """A task of this stage is done; `n_tasks` is how many the stage has."""

    def tick(self, now_s: float) -> None:
        """Time passed: records that waited long enough are made durable."""

    def flush(self) -> None:
        """Make all records durable."""


def discard_nothing(parts: Sequence[PartRef], files: Sequence[OutputFile]) -> None:
    """For runs whose leftovers go with the folder that they lie in."""


def run(
    stages: Sequence[Stage],
    runtime: Runtime,
    emit: Callable[[Event], None],
    *,
    journal: Journal | None = None,
    discard: Callable[[Sequence[PartRef], Sequence[OutputFile]], None] = discard_nothing,
    policy: Policy = Policy(),  # noqa: B008  A frozen value.
) -> Outcome:
    """Run all stages; the results of those that no other reads.

    `stages` are listed so that each comes after those it reads. On an error, and on
    Ctrl-C, all tasks are cancelled and awaited, and `discard` gets every file that
    was staged (and every part, unless a journal keeps them for the next run) before
    the error is raised.
    """
    with _seldom_collected():
        reused = find_reused(stages, journal) if journal else {}
        schedule = Schedule(stages, reused=reused, policy=policy)
        going = _Run(schedule, runtime, emit, journal, discard)
        try:
            going.go()
        except BaseException:
            going.abandon()
            raise
        finally:
            if journal:
                journal.flush()
    return Outcome({stage: stage_outcome(schedule.progress[stage]) for stage in schedule.final})


def find_reused(stages: Sequence[Stage], journal: Journal) -> dict[int, Reused]:
    """What the journal has, from the final stages back: no further than is needed."""
    by_id = {stage.id: stage for stage in stages}
    read = {before for stage in stages for before in reads(stage)}
    needed = [stage for stage in by_id if stage not in read]
    seen, found = set(needed), {}
    while needed:
        stage = by_id[needed.pop()]
        kept = journal.find(stage) if stage.fingerprint else None
        if kept is not None:
            found[stage.id] = kept
        if kept is None or not kept.complete:
            new = [before for before in reads(stage) if before not in seen]
            needed += new
            seen.update(new)
    return found


@contextmanager
def _seldom_collected() -> Iterator[None]:
    """Tasks run by the ten thousand, none in a cycle: to look for one was half of a run's time.

    A look at all objects costs by their number: ten times the tasks took 13 times as long.
    """
    before = gc.get_threshold()
    raised = 0 < before[0] < _YOUNG
    if raised:
        gc.set_threshold(_YOUNG, before[1], max(_OLD, before[2]))
    try:
        yield
    finally:
        if raised:
            gc.set_threshold(*before)


class _Run:
    """One run's futures and their queue. Everything here happens on the caller's thread."""

    def __init__(
        self,
        schedule: Schedule,
        runtime: Runtime,
        emit: Callable[[Event], None],
        journal: Journal | None,
        discard: Callable[[Sequence[PartRef], Sequence[OutputFile]], None],
    ) -> None:
        self._schedule, self._runtime, self._emit = schedule, runtime, emit
        self._journal, self._discard = journal, discard
        self._ended: SimpleQueue[tuple[TaskId, Future[Ended]]] = SimpleQueue()
        self._futures: dict[TaskId, tuple[Future[Ended], int]] = {}
        self._busy = 0  # Slots of futures that have not ended, cancelled ones included.
        self._finished = False
        self._clock_s = 0.0  # The schedule's.
        self._capacity: Capacity | None = None

    def go(self) -> None:
        self._measure()
        self._do(self._schedule.start())
        ticked_s = float("-inf")
        while not self._finished:
            now_s = time.monotonic()
            if now_s >= ticked_s + _TICK_S:
                self._clock_s += min(now_s - ticked_s, _STEP_S)
                ticked_s = now_s
                self._do(self._schedule.tick(self._clock_s))
                if self._journal is not None:
                    self._journal.tick(now_s)
            self._fill()
            self._wait_for_events()
        self._wait_for_the_rest(_END_S)

    def abandon(self) -> None:
        """End everything, and hand over what was left behind."""
        self._schedule.closed = True
        self._runtime.cancel([*self._futures])
        self._wait_for_the_rest(_FAILED_END_S)
        parts: list[PartRef] = []
        files: list[OutputFile] = []
        for progress in self._schedule.progress.values():
            parts += [part for part in progress.parts if part is not None]
            files += [file for some in progress.files for file in some]
        self._discard([] if self._journal else parts, files)

    def _measure(self) -> Capacity:
        """What there is now. An error if no node has what a stage still needs."""
        capacity = self._runtime.capacity()
        if capacity != self._capacity:
            for progress in self._schedule.progress.values():
                if not progress.complete:
                    check_fits(progress.stage.id, progress.stage.resources, capacity)
            self._capacity = capacity
        return capacity

    def _fill(self) -> None:
        capacity = self._measure()
        self._schedule.capacity(capacity)
        self._do(self._schedule.free_slots(capacity.slots - self._busy))

    def _wait_for_events(self) -> None:
        """Block until a task ends or a tick is due, then take all that has ended."""
        try:
            ended = self._ended.get(timeout=_TICK_S)
            while not self._finished:
                self._take(*ended)
                ended = self._ended.get_nowait()
        except Empty:
            pass

    def _wait_for_the_rest(self, timeout_s: float) -> None:
        """Cancelled tasks still hold a slot, and may still leave a part: see them end."""
        wait([future for future, _ in self._futures.values()], timeout=timeout_s)
        for task, (future, _) in list(self._futures.items()):
            if future.done():
                self._take(task, future)
            else:
                future.add_done_callback(self._discard_late)

    def _discard_late(self, future: Future[Ended]) -> None:
        if not future.cancelled() and future.exception() is None:
            ended = future.result()
            if isinstance(ended, TaskResult):
                self._discard([ended.part] if ended.part else [], ended.files)

    def _take(self, task: TaskId, future: Future[Ended]) -> None:
        if task not in self._futures:
            return  # Seen at the end already.
        _, slots = self._futures.pop(task)
        self._busy -= slots
        try:
            ended = future.result(timeout=0)
        except CancelledError:
            self._do(self._schedule.failed(task, WorkerLost("the task was cancelled")))
        except Exception as error:  # The task ends here; the schedule knows which may pass.
            self._do(self._schedule.failed(task, error))
        else:
            if isinstance(ended, PartsLost):
                self._do(self._schedule.parts_lost(ended))
            elif isinstance(ended, NotBegun):
                self._do(self._schedule.not_begun(ended.task))
            else:
                self._do(self._schedule.succeeded(ended), ended)

    def _do(self, commands: Sequence[Command], result: TaskResult | None = None) -> None:
        self._tell(result)
        for command in commands:
            match command:
                case Submit(tasks, slots):
                    self._submit(tasks, slots)
                case Cancel(task_id):
                    self._runtime.cancel([task_id])
                case Discard(parts, files):
                    self._discard(parts, files)
                case Finished():
                    self._finished = True
                case GiveUp(error):
                    raise error

    def _submit(self, tasks: Sequence[Task], slots: int) -> None:
        for task in tasks:
            self._emit(TaskStarted(*task.id))
        for task, future in zip(tasks, self._runtime.submit(tasks), strict=True):
            self._futures[task.id] = future, slots
            self._busy += slots
            slots = 0  # They run one after another.
            self._notice(task.id, future)

    def _notice(self, task: TaskId, future: Future[Ended]) -> None:
        future.add_done_callback(lambda ended: self._ended.put((task, ended)))

    def _tell(self, result: TaskResult | None) -> None:
        for event in self._schedule.take_events():
            if self._journal is not None:
                if isinstance(event, TaskFinished) and result is not None:
                    self._record(result)
                elif isinstance(event, StageFinished):
                    self._journal.flush()
            self._emit(event)

    def _record(self, result: TaskResult) -> None:
        progress = self._schedule.progress[result.task.stage]
        if self._journal is not None and progress.stage.fingerprint:
            self._journal.record(progress.stage, progress.n, result)
