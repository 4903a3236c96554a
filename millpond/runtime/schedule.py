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

from collections.abc import Mapping, Sequence

from millpond.errors import CallLost, MillpondError, OutOfMemory, TaskTimedOut, Transient
from millpond.events import (
    Event,
    PartsMissing,
    StageFinished,
    StagePlanned,
    TaskFinished,
    TaskRetried,
)
from millpond.physical.stages import PartRef, PartsLost, Stage, Task, TaskId, TaskResult
from millpond.physical.tasks import tasks
from millpond.runtime.attempts import Attempts
from millpond.runtime.commands import Cancel, Command, Finished, GiveUp, Policy, Submit, discards
from millpond.runtime.conservation import RowsNotConserved, check, check_stage
from millpond.runtime.giving_up import attempt_failed, part_damaged, part_lost_again, task_failed
from millpond.runtime.graph import Graph
from millpond.runtime.place import Capacity
from millpond.runtime.progress import DONE, RUNNING, WAITING, Progress, Reused
from millpond.runtime.sizing import Sizing


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
        self._graph = Graph(stages)
        self.progress = self._graph.progress
        self._reused = dict(reused or {})
        self._policy = policy
        self._sizing = Sizing(policy)
        self._open: list[int] = []  # Stages that may submit, in order.
        self._attempts = Attempts()
        self._events: list[Event] = []
        self._now_s = 0.0
        self._free = 0
        self.closed = False
        for stage in [stage for stage, kept in self._reused.items() if kept.complete]:
            self.progress[stage].restore(self._reused.pop(stage))
            self._announce(self.progress[stage])

    @property
    def final(self) -> list[int]:
        """The stages that no other reads: the answer."""
        return self._graph.final

    def take_events(self) -> list[Event]:
        """What happened since the last call, for reports."""
        events, self._events = self._events, []
        return events

    # ---- events in, commands out -----------------------------------------------------

    def start(self) -> list[Command]:
        """Begin. Finishes at once if everything is reused."""
        return self._advance()

    def capacity(self, has: Capacity) -> None:
        """How much runs at once. May change at any time."""
        self._sizing.has = has

    def free_slots(self, n: int) -> list[Command]:
        """`n` slots are free now: tasks to fill them, earliest stage first."""
        commands: list[Command] = []
        self._free = n
        while self._free > 0 and not self.closed:
            waiting = (self.progress[s] for s in self._open if self.progress[s].waiting)
            progress = next((p for p in waiting if self._fits(p)), None)
            if progress is None:
                break
            need = self._sizing.slots_of(progress, progress.waiting[0])
            # A task that needs several slots waits for them, and others wait behind
            # it: filling the gaps with small tasks would starve it.
            if need > self._free and self._attempts:
                break
            self._free -= need
            together = range(self._sizing.in_one_call(progress))
            chosen = [progress.waiting.popleft() for _ in together]
            commands.append(Submit(tuple(self._begin(progress, p) for p in chosen), need))
        return commands

    def tick(self, now_s: float) -> list[Command]:
        """Time passed. Attempts that hang are ended, and free slots take twins of slow tasks."""
        self._now_s = max(self._now_s, now_s)  # A clock may jump; a task never gets younger.
        commands = self._timed_out()
        if self._free <= 0 or self.closed:
            return commands
        limits = dict[int, float | None]()
        for stage, partition, since_s in self._attempts.single():
            progress = self.progress[stage]
            if stage not in limits:
                limits[stage] = self._sizing.slow_after_s(progress)
            limit_s = limits[stage]
            if limit_s is None or self._now_s - since_s < limit_s:
                continue
            need = self._sizing.slots_of(progress, partition)
            if need > self._free or not self._fits(progress):
                break
            self._free -= need
            commands.append(Submit((self._begin(progress, partition),), need))
        return commands

    def succeeded(self, result: TaskResult) -> list[Command]:
        """A task is done. The first attempt wins; what another attempt gives is dropped."""
        stage, partition, _ = result.task
        if self.closed or not self._attempts.runs(result.task):
            return discards(result.part, result.files)
        progress = self.progress[stage]
        try:
            check(result, progress.task(partition), self.progress)
        except RowsNotConserved as error:
            return [*discards(result.part, result.files), *self.failed(result.task, error)]
        progress.took(result.wall_s, self._now_s - (self._attempts.end(result.task) or 0.0))
        commands = self._cancel(stage, partition)
        self._attempts.forget_story(stage, partition)
        if progress.accept(result):
            for reader in self._graph.readers[stage]:
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
        if self._attempts.end(task) is None or self.closed:
            return []
        if not isinstance(error, Transient):
            return self._give_up(error)
        progress, partition = self.progress[task.stage], task.partition
        how = self._sizing.in_words(progress, partition)
        story = self._attempts.tell(task, attempt_failed(task.attempt, how, error))
        progress.apart.add(partition)
        # What befell others of its call is none of its own failures: by itself it shows.
        progress.failures[partition] += not isinstance(error, CallLost)
        may_pass = not isinstance(error, OutOfMemory) or self._sizing.take_less(
            progress, partition, was_alone=not self._attempts
        )
        if not may_pass or progress.failures[partition] >= self._policy.max_attempts:
            return self._give_up(task_failed(progress.stage, partition, story, error))
        self._wait_again(progress, partition, str(error))
        return []

    def not_begun(self, task: TaskId) -> list[Command]:
        """An attempt was given back as it was: it waits again, and has not failed."""
        if self._attempts.end(task) is not None and not self.closed:
            self._put_back(self.progress[task.stage], task.partition)
        return []

    def parts_lost(self, lost: PartsLost) -> list[Command]:
        """A task could not read these parts: their tasks run again, and then it does."""
        if not lost.refs:
            return self.failed(lost.task, Transient(lost.reason))
        if self._attempts.end(lost.task) is None or self.closed:
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
            if self._graph.may_vary(stage):
                commands += self._roll_back(stage, parts)
        return commands + self._advance()

    # ---- starting and ending attempts ------------------------------------------------

    def _begin(self, progress: Progress, partition: int) -> Task:
        task = self._sizing.sized(progress.start(partition), progress)
        self._attempts.begin(task.id, self._now_s)
        return self._graph.bound(task) if progress.reads else task

    def _fits(self, progress: Progress) -> bool:
        """Are there GPUs for one more task? Where they wait for each other, CPUs would, too."""
        wants = progress.stage.resources.gpus
        if not wants:
            return True
        running = self._attempts.count().items()
        taken = sum(self.progress[stage].stage.resources.gpus * n for stage, n in running)
        return taken + wants <= self._sizing.has.gpus

    def _timed_out(self) -> list[Command]:
        limit_s, commands = self._policy.task_timeout_s, list[Command]()
        if limit_s is None or self.closed:
            return commands
        for task in self._attempts.late(self._now_s, limit_s):
            error = TaskTimedOut(f"it was ended after {limit_s:g} s (task_timeout)")
            commands += [Cancel(task), *self.failed(task, error)]
            if self.closed:
                break
        return commands

    def _cancel(self, stage: int, partition: int) -> list[Command]:
        return [Cancel(task) for task in self._attempts.end_all(stage, partition)]

    def _wait_again(self, progress: Progress, partition: int, reason: str) -> None:
        if self._put_back(progress, partition):
            stage, attempt = progress.stage.id, progress.next_attempt[partition]
            self._events.append(TaskRetried(stage, partition, attempt, reason))

    def _put_back(self, progress: Progress, partition: int) -> bool:
        """Let a task wait for its next attempt. False if another of its attempts still runs."""
        if self._attempts.any_of(progress.stage.id, partition):
            return False
        progress.state[partition] = WAITING
        if self._graph.has_its_part(progress, partition):
            progress.waiting.appendleft(partition)
        return True

    # ---- stages ----------------------------------------------------------------------

    def _advance(self) -> list[Command]:
        """A stage is complete, or is so no longer: what may be planned and submitted now."""
        while True:
            if self._graph.done:
                return self._finish()
            ready = self._graph.ready()
            new = [s for s in ready if not self.progress[s].tasks]
            for stage in new:
                self._plan(self.progress[stage])
            if not any(self._graph.opens_more(stage) for stage in new):
                break
        followers = [s for s in ready if self.progress[s].follows is not None]
        for stage in followers:
            before = self.progress[stage].follows
            assert before is not None
            self.progress[stage].wait_for(self.progress[before])
        # A task that follows another goes first: what it waits for is costlier than a CPU.
        self._open = followers + [stage for stage in ready if stage not in followers]
        return []

    def _completed(self, progress: Progress) -> list[Command]:
        self._tell_complete(progress)
        try:
            check_stage(progress, self.progress)
        except RowsNotConserved as error:
            return self._give_up(error)
        return self._advance()

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
        return [*(Cancel(task) for task in self._attempts), Finished()]

    # ---- losing and undoing ----------------------------------------------------------

    def _count_loss(
        self, progress: Progress, ref: PartRef, lost: PartsLost
    ) -> MillpondError | None:
        """One more loss of a part; the error if it was one too many."""
        progress.losses[ref.task] += 1
        progress.damages[ref.task] += lost.damaged
        if progress.damages[ref.task] > 1:
            return part_damaged(progress.stage.title, ref, lost.reason)
        times = progress.losses[ref.task]
        if times > self._policy.max_losses:
            return part_lost_again(progress.stage.title, ref, lost.reason, times)
        return None

    def _roll_back(self, stage: int, parts: set[int] | None) -> list[Command]:
        """Undo every task that has read these parts (None: any part of a stage replanned)."""
        commands: list[Command] = []
        for reader in self._graph.readers[stage]:
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
