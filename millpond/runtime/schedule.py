"""What happens next: order, retry, twin of a slow task, recompute of a lost part, give up.

No clock, no thread, no file: every event is a call that returns commands, and time
is an argument. `run` in this room carries the commands out.

A stage starts when all that it reads is complete; but where it runs on something else than
the stage before, and reads that one to one, each task starts on its own part. A lost part
sends its own task back to wait, and whoever reads that stage waits for it, through as many
stages as need be. Two attempts of a task whose rows vary are never both read: losing such a
part undoes every task that has read any attempt of it (see ARCHITECTURE.md,
"Recomputing must not mix attempts").
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import ceil

import numpy as np

from millpond.errors import MillpondError, OutOfMemory, TaskTimedOut, Transient
from millpond.events import (
    Event,
    PartsMissing,
    StageFinished,
    StagePlanned,
    TaskFinished,
    TaskRetried,
)
from millpond.physical.stages import (
    Determinism,
    Edge,
    PartRef,
    PartRows,
    PartsLost,
    Stage,
    StageInput,
    Task,
    TaskId,
    TaskInput,
    TaskResult,
)
from millpond.physical.tasks import tasks
from millpond.runtime.commands import Cancel, Command, Finished, GiveUp, Policy, Submit, discards
from millpond.runtime.conservation import RowsNotConserved, check, check_stage
from millpond.runtime.giving_up import (
    attempt_failed,
    part_damaged,
    part_lost_again,
    task_failed,
)
from millpond.runtime.progress import DONE, RUNNING, WAITING, Progress, Reused


class Schedule:
    """Decides over a DAG of stages, listed so that each comes after those it reads.

    `reused` are results of an earlier run. A stage whose results are all there is not
    run, and neither is what only such stages need.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        *,
        reused: Mapping[int, Reused] | None = None,
        policy: Policy = Policy(),  # noqa: B008  A frozen value.
    ) -> None:
        self.progress = {stage.id: Progress(stage) for stage in stages}
        self._readers: dict[int, list[int]] = {stage.id: [] for stage in stages}
        for progress in self.progress.values():
            for before in progress.reads:
                self._readers[before].append(progress.stage.id)
            progress.follows = self._follows(progress.stage)
        self._reused = dict(reused or {})
        self._policy = policy
        self._open: list[int] = []  # Stages that may submit, in order.
        self._running: dict[tuple[int, int], dict[int, float]] = {}  # Attempt: start in s.
        self._stories: dict[tuple[int, int], list[str]] = {}  # Of tasks that have failed.
        self._events: list[Event] = []
        self._now_s = 0.0
        self._free = self._slots = self._node_slots = 0
        self._gpus = 0.0
        self.closed = False
        for stage in [stage for stage, kept in self._reused.items() if kept.complete]:
            self.progress[stage].restore(self._reused.pop(stage))
            self._announce(self.progress[stage])

    @property
    def final(self) -> list[int]:
        """The stages that no other reads: the answer."""
        return [stage for stage, readers in self._readers.items() if not readers]

    def take_events(self) -> list[Event]:
        """What happened since the last call, for reports."""
        events, self._events = self._events, []
        return events

    def running(self) -> Iterator[TaskId]:
        """The attempts that were submitted, and neither ended nor were cancelled."""
        for (stage, partition), attempts in self._running.items():
            for attempt in attempts:
                yield TaskId(stage, partition, attempt)

    # ---- events in, commands out -----------------------------------------------------

    def start(self) -> list[Command]:
        """Begin. Finishes at once if everything is reused."""
        return self._advance()

    def capacity(self, slots: int, node_slots: int, gpus: float = 0.0) -> None:
        """How much runs at once, in all and on the largest node. May change at any time."""
        self._slots, self._node_slots, self._gpus = max(1, slots), max(1, node_slots), gpus

    def free_slots(self, n: int) -> list[Command]:
        """`n` slots are free now: tasks to fill them, earliest stage first."""
        commands: list[Command] = []
        self._free = n
        while self._free > 0 and not self.closed:
            waiting = (self.progress[s] for s in self._open if self.progress[s].waiting)
            progress = next((p for p in waiting if self._has_gpus(p)), None)
            if progress is None:
                break
            partition = progress.waiting[0]
            need = self._need(progress, partition)
            # A task that needs several slots waits for them, and others wait behind
            # it: filling the gaps with small tasks would starve it.
            if need > self._free and self._running:
                break
            progress.waiting.popleft()
            self._free -= need
            commands.append(Submit(self._begin(progress, partition)))
        return commands

    def tick(self, now_s: float) -> list[Command]:
        """Time passed. Attempts that hang are ended, and free slots take twins of slow tasks."""
        self._now_s = max(self._now_s, now_s)  # A clock may jump; a task never gets younger.
        commands = self._timed_out()
        if self._free <= 0 or self.closed:
            return commands
        limits = dict[int, float | None]()
        for (stage, partition), attempts in list(self._running.items()):
            if stage not in limits:
                limits[stage] = self._slow_after_s(self.progress[stage])
            limit_s, since_s = limits[stage], min(attempts.values())
            if limit_s is None or len(attempts) > 1 or self._now_s - since_s < limit_s:
                continue
            need = self._need(self.progress[stage], partition)
            if need > self._free or not self._has_gpus(self.progress[stage]):
                break
            self._free -= need
            commands.append(Submit(self._begin(self.progress[stage], partition)))
        return commands

    def succeeded(self, result: TaskResult) -> list[Command]:
        """A task is done. The first attempt wins; what another attempt gives is dropped."""
        stage, partition, attempt = result.task
        attempts = self._running.get((stage, partition), {})
        if attempt not in attempts or self.closed:
            return discards(result.part, result.files)
        progress = self.progress[stage]
        try:
            check(result, progress.task(partition), self.progress)
        except RowsNotConserved as error:
            return [*discards(result.part, result.files), *self.failed(result.task, error)]
        progress.durations_s.append(self._now_s - attempts.pop(attempt))
        commands = self._cancel(stage, partition)
        self._stories.pop((stage, partition), None)
        if progress.accept(result):
            for reader in self._readers[stage]:
                follower = self.progress[reader]
                if follower.follows == stage and follower.waits(partition):
                    follower.waiting.append(partition)
        else:
            # The stage was said to give the same rows each time, and did not.
            progress.varies = True
            commands += self._roll_back(stage, {partition})
        self._events.append(_finished(result))
        return commands + (self._completed(progress) if progress.complete else [])

    def failed(self, task: TaskId, error: BaseException) -> list[Command]:
        """An attempt failed. What may pass is tried again; what will not ends the run."""
        if not self._ended(task) or self.closed:
            return []
        if not isinstance(error, Transient):
            return self._give_up(error)
        progress, partition = self.progress[task.stage], task.partition
        story = self._stories.setdefault((task.stage, partition), [])
        story.append(attempt_failed(task.attempt, self._how(progress, partition), error))
        progress.failures[partition] += 1
        may_pass = not isinstance(error, OutOfMemory) or self._take_less(progress, partition)
        if not may_pass or progress.failures[partition] >= self._policy.max_attempts:
            return self._give_up(task_failed(progress.stage, partition, story, error))
        self._wait_again(progress, partition, str(error))
        return []

    def parts_lost(self, lost: PartsLost) -> list[Command]:
        """A task could not read these parts: their tasks run again, and then it does."""
        if not lost.refs:
            return self.failed(lost.task, Transient(lost.reason))
        if not self._ended(lost.task) or self.closed:
            return []
        self._wait_again(self.progress[lost.task.stage], lost.task.partition, lost.reason)
        commands: list[Command] = []
        missing: dict[int, set[int]] = {}
        for ref in lost.refs:
            progress = self.progress[ref.stage]
            current = progress.parts[ref.task] if ref.task < progress.n else None
            if current is None or current.attempt != ref.attempt:
                continue  # Known already: another reader was first.
            error = self._count_loss(progress, ref, lost)
            if error is not None:
                return commands + self._give_up(error)
            progress.undo(ref.task)
            commands += discards(ref, ())
            missing.setdefault(ref.stage, set()).add(ref.task)
        self._tell_missing(missing, lost.reason)
        for stage, parts in missing.items():
            if self._may_vary(stage):
                commands += self._roll_back(stage, parts)
        return commands + self._advance()

    # ---- starting and ending attempts ------------------------------------------------

    def _follows(self, stage: Stage) -> int | None:
        """The stage that `stage` reads one to one, if it runs on something else than that does."""
        match stage.inputs:
            case (StageInput(before, Edge.FORWARD, None),):
                other = self.progress[before].stage.resources != stage.resources
                return before if other else None
        return None

    def _has_gpus(self, progress: Progress) -> bool:
        """Are there GPUs for one more task? Where they wait for each other, CPUs would, too."""
        wants = progress.stage.resources.gpus
        if not wants:
            return True
        taken = sum(
            self.progress[stage].stage.resources.gpus * len(attempts)
            for (stage, _), attempts in self._running.items()
        )
        return taken + wants <= self._gpus

    def _begin(self, progress: Progress, partition: int) -> Task:
        task = progress.start(partition)
        attempts = self._running.setdefault((task.id.stage, partition), {})
        attempts[task.id.attempt] = self._now_s
        if partition in progress.alone:
            cpus = float(max(self._node_slots, ceil(task.resources.cpus)))
            resources = replace(task.resources, cpus=cpus)
            rows = self._rows_at_once(progress, partition)
            task = replace(task, resources=resources, alone=True, rows_at_once=rows)
        if not progress.reads:
            return task
        if progress.follows is not None:  # Where that part lies was not known before.
            part = self.progress[progress.follows].parts[partition]
            task = replace(task, prefer=(part.node,) if part and part.node else ())
        return replace(task, inputs=tuple(self._bound(item) for item in task.inputs))

    def _take_less(self, progress: Progress, partition: int) -> bool:
        """After a task ran out of memory: how it runs from now on. False if there is no less."""
        was_alone = partition in progress.alone or not self._running
        progress.alone[partition] = progress.alone.get(partition, 0) + was_alone
        # Work that is not row by row has one step down: one thread instead of several.
        pieces = self._policy.rows_at_once[: None if progress.stage.fragment.row_wise else 1]
        return progress.alone[partition] <= len(pieces)

    def _rows_at_once(self, progress: Progress, partition: int) -> int | None:
        step = progress.alone.get(partition, 0)
        return self._policy.rows_at_once[step - 1] if step else None

    def _how(self, progress: Progress, partition: int) -> str:
        """How the last attempt of a task ran, in words."""
        if partition not in progress.alone:
            return ""
        rows = self._rows_at_once(progress, partition)
        if rows is None:
            return "alone"
        in_pieces = f", {rows:,} rows at a time" if progress.stage.fragment.row_wise else ""
        return f"alone, on one thread{in_pieces}"

    def _timed_out(self) -> list[Command]:
        limit_s, commands = self._policy.task_timeout_s, list[Command]()
        if limit_s is None or self.closed:
            return commands
        late = [
            TaskId(stage, partition, attempt)
            for (stage, partition), attempts in self._running.items()
            for attempt, since_s in attempts.items()
            if self._now_s - since_s >= limit_s
        ]
        for task in late:
            error = TaskTimedOut(f"it was ended after {limit_s:g} s (task_timeout)")
            commands += [Cancel(task), *self.failed(task, error)]
            if self.closed:
                break
        return commands

    def _bound(self, item: TaskInput) -> TaskInput:
        """The input with the parts that exist: all, in one shared tuple, or the few it reads."""
        if not isinstance(item, PartRows):
            return item
        before = self.progress[item.stage]
        if item.n_parts is None:
            return replace(item, parts=before.bound())
        few = before.parts[item.first_part : item.first_part + item.n_parts]
        return replace(item, parts=tuple(part for part in few if part), first_part=0)

    def _need(self, progress: Progress, partition: int) -> int:
        wants = ceil(progress.stage.resources.cpus)
        if partition in progress.alone:
            wants = max(wants, self._node_slots)
        return max(1, min(wants, self._slots))

    def _ended(self, task: TaskId) -> bool:
        """Strike an attempt off. False if nobody waits for it any more."""
        attempts = self._running.get((task.stage, task.partition), {})
        if attempts.pop(task.attempt, None) is None:
            return False
        if not attempts:
            del self._running[task.stage, task.partition]
        return True

    def _cancel(self, stage: int, partition: int) -> list[Command]:
        attempts = self._running.pop((stage, partition), {})
        return [Cancel(TaskId(stage, partition, attempt)) for attempt in attempts]

    def _wait_again(self, progress: Progress, partition: int, reason: str) -> None:
        stage = progress.stage.id
        if (stage, partition) in self._running:
            return  # Its twin still runs.
        progress.state[partition] = WAITING
        if self._has_its_part(progress, partition):
            progress.waiting.appendleft(partition)
        attempt = progress.next_attempt[partition]
        self._events.append(TaskRetried(stage, partition, attempt, reason))

    def _has_its_part(self, progress: Progress, partition: int) -> bool:
        """False where only the part of one task is read, and that has to run again first."""
        before = progress.follows
        return before is None or self.progress[before].parts[partition] is not None

    def _slow_after_s(self, progress: Progress) -> float | None:
        durations, policy = progress.durations_s, self._policy
        if len(durations) < policy.twin_after or 2 * progress.n_done < progress.n:
            return None
        usual_s = float(np.quantile(np.fromiter(durations, float), policy.twin_quantile))
        limit_s = max(policy.twin_min_s, policy.twin_factor * usual_s)
        return limit_s * (policy.one_node_factor if self._slots <= self._node_slots else 1.0)

    # ---- stages ----------------------------------------------------------------------

    def _advance(self) -> list[Command]:
        """A stage is complete, or is so no longer: what may be planned and submitted now."""
        while True:
            wanted = self._wanted()
            if not wanted:
                return self._finish()
            ready = [s for s in self.progress if s in wanted and self._can_start(s)]
            new = [s for s in ready if not self.progress[s].tasks]
            for stage in new:
                self._plan(self.progress[stage])
            if not any(self._opens_more(stage) for stage in new):
                break
        followers = [s for s in ready if self.progress[s].follows is not None]
        for stage in followers:
            before = self.progress[stage].follows
            assert before is not None
            self.progress[stage].wait_for(self.progress[before])
        # A task that follows another goes first: what it waits for is costlier than a CPU.
        self._open = followers + [stage for stage in ready if stage not in followers]
        return []

    def _opens_more(self, stage: int) -> bool:
        """Now that a stage is planned, may others be?"""
        followed = any(self.progress[r].follows == stage for r in self._readers[stage])
        return self.progress[stage].complete or followed

    def _completed(self, progress: Progress) -> list[Command]:
        self._tell_complete(progress)
        try:
            check_stage(progress, self.progress)
        except RowsNotConserved as error:
            return self._give_up(error)
        return self._advance()

    def _wanted(self) -> set[int]:
        """Stages that have to run: incomplete, and final or read by one that has to run."""
        wanted: set[int] = set()
        for stage in reversed(self.progress):
            readers = self._readers[stage]
            if not self.progress[stage].complete and (
                not readers or any(reader in wanted for reader in readers)
            ):
                wanted.add(stage)
        return wanted

    def _can_start(self, stage: int) -> bool:
        follows = self.progress[stage].follows
        if follows is not None and self.progress[follows].tasks:
            return True
        return all(self.progress[before].complete for before in self.progress[stage].reads)

    def _plan(self, progress: Progress) -> None:
        done = {before: self.progress[before].done() for before in progress.reads}
        progress.plan(tasks(progress.stage, done), self._reused.pop(progress.stage.id, None))
        self._announce(progress)

    def _announce(self, progress: Progress) -> None:
        stage = progress.stage
        self._events.append(StagePlanned(stage.id, stage.title, progress.n, progress.n_done))
        self._tell_complete(progress)

    def _tell_complete(self, progress: Progress) -> None:
        if progress.complete:
            rows_in, rows = sum(progress.rows_in), sum(progress.rows)
            size_bytes = sum(progress.size_bytes)
            self._events.append(StageFinished(progress.stage.id, rows_in, rows, size_bytes))

    def _finish(self) -> list[Command]:
        self.closed = True
        return [*(Cancel(task) for task in self.running()), Finished()]

    # ---- losing and undoing ----------------------------------------------------------

    def _count_loss(
        self, progress: Progress, ref: PartRef, lost: PartsLost
    ) -> MillpondError | None:
        """One more loss of a part; the error if it was one too many."""
        progress.losses[ref.task] += 1
        progress.damages[ref.task] += lost.damaged
        if progress.damages[ref.task] > 1:
            return part_damaged(progress.stage.title, ref, lost.reason)
        if progress.losses[ref.task] > self._policy.max_losses:
            return part_lost_again(
                progress.stage.title, ref, lost.reason, progress.losses[ref.task]
            )
        return None

    def _may_vary(self, stage: int) -> bool:
        progress = self.progress[stage]
        if progress.stage.determinism is Determinism.ANY_ORDER and not progress.varies:
            return any(self.progress[r].cuts_rows(stage) for r in self._readers[stage])
        return progress.varies

    def _roll_back(self, stage: int, parts: set[int] | None) -> list[Command]:
        """Undo every task that has read these parts (None: any part of a stage replanned)."""
        commands: list[Command] = []
        for reader in self._readers[stage]:
            progress = self.progress[reader]
            if not progress.planned:
                continue
            whole = parts is None or not progress.tasks or progress.reads_whole(stage)
            hit = range(progress.n) if whole else progress.readers(stage, parts or ())
            undone = set()
            for partition in hit:
                if progress.state[partition] == DONE:
                    commands += discards(*progress.undo(partition))
                    undone.add(partition)
                elif progress.state[partition] == RUNNING:
                    commands += self._cancel(reader, partition)
                    self._wait_again(progress, partition, "what it had read was lost")
            if whole:  # Its tasks may be cut otherwise next time: made anew from new counts.
                progress.unplan()
            elif progress.follows is not None:
                progress.wait_for(self.progress[progress.follows])
            if whole or undone:
                commands += self._roll_back(reader, None if whole else undone)
        return commands

    def _tell_missing(self, missing: Mapping[int, set[int]], reason: str) -> None:
        pairs = tuple((stage, part) for stage, parts in missing.items() for part in sorted(parts))
        if pairs:
            self._events.append(PartsMissing(pairs, reason))
        for stage, part in pairs:
            attempt = self.progress[stage].next_attempt[part]
            self._events.append(TaskRetried(stage, part, attempt, reason))

    # ---- the end ---------------------------------------------------------------------

    def _give_up(self, error: BaseException) -> list[Command]:
        self.closed = True
        return [GiveUp(error)]


def _finished(result: TaskResult) -> TaskFinished:
    return TaskFinished(*result.task, result.rows, result.size_bytes, result.wall_s, result.cpu_s)
