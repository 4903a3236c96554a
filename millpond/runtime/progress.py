"""How far one stage is: which of its tasks wait, run or are done, and what they wrote.

Memory is what shapes this module. A stage of M tasks and P partitions keeps a
`PartRef` and a few small integers per task and two arrays of length P; the rows
and bytes per (task, partition) of a result are added up and forgotten.
"""

from array import array
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from millpond.physical.stages import (
    Determinism,
    Edge,
    OutputFile,
    PartRef,
    PartRows,
    RowsInput,
    ShardsInput,
    Stage,
    StageInput,
    Task,
    TaskResult,
    ToPart,
)
from millpond.physical.tasks import Done, reads

WAITING, RUNNING, DONE = 0, 1, 2

# Enough finished tasks for a quantile, few enough to look at on every tick.
_DURATIONS = 1_000
_LAST = 15


@dataclass(frozen=True, slots=True)
class Reused:
    """Results of a stage that an earlier run left, by partition, of `n_tasks` in all."""

    n_tasks: int
    results: Mapping[int, TaskResult]

    @property
    def complete(self) -> bool:
        return len(self.results) == self.n_tasks


class Progress:
    """The state of one stage. Changed by the schedule alone."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.varies = stage.determinism is Determinism.VARIES
        self.reads = reads(stage)
        # The stage whose task p is all that task p reads, where it may start on that alone:
        # a GPU shall not wait for the last partition.
        self.follows: int | None = None
        self.n_partitions = stage.output.n if isinstance(stage.output, ToPart) else 1
        self.first_attempt = 0
        self._clear(0)

    def _clear(self, n: int) -> None:
        self.n = n
        self.planned = False
        self.tasks: Sequence[Task] = ()  # Empty for a stage that was reused whole.
        self._begun: dict[int, Task] = {}  # Those that have begun and not ended, made once.
        self.waiting: deque[int] = deque()
        self.n_done = 0
        self.state = bytearray(n)
        self.next_attempt = array("L", [self.first_attempt]) * n
        self.failures = bytearray(n)
        self.apart = set[int]()  # Tasks that go by themselves, as something befell them.
        self.losses = bytearray(n)
        self.damages = bytearray(n)
        # Tasks that ran out of memory, and how they run since: 0 is alone on their node, then
        # alone and in pieces, smaller and smaller.
        self.alone: dict[int, int] = {}
        self.durations_s: deque[float] = deque(maxlen=_DURATIONS)
        self._work_s: deque[float] = deque(maxlen=_LAST)
        self.parts: list[PartRef | None] = [None] * n
        self.files: list[tuple[OutputFile, ...]] = [()] * n
        # -1: never finished. Kept when a part is lost, to tell whether the next
        # attempt gave as many rows.
        self.rows = array("q", [-1]) * n
        self.rows_in = array("q", [0]) * n
        self.size_bytes = array("q", [0]) * n
        self.value_bytes = array("q", [0]) * n
        # With verify="rows"; one result without a hash, and the stage has none.
        self.hashed_in = self.hashed_out = True
        self.hash_in = array("Q", [0]) * n
        self.hash_out = array("Q", [0]) * n
        self.partition_rows: NDArray[np.int64] = np.zeros(self.n_partitions, np.int64)
        self.partition_bytes: NDArray[np.int64] = np.zeros(self.n_partitions, np.int64)
        # False: `partition_rows` hold counts of an attempt undone, or lack some.
        self.exact = True
        self._bound: tuple[PartRef, ...] | None = None

    @property
    def complete(self) -> bool:
        return self.planned and self.n_done == self.n

    # ---- planning --------------------------------------------------------------------

    def restore(self, reused: Reused) -> None:
        """Take a whole stage from an earlier run; its tasks are made only if a part is lost."""
        self._clear(reused.n_tasks)
        self.planned = True
        for result in reused.results.values():
            self.accept(result)

    def plan(self, tasks: Sequence[Task], reused: Reused | None) -> int:
        """The tasks are known now. How many of them an earlier run has done."""
        if self.planned and self.n == len(tasks):  # Restored before, and a part was lost.
            self.tasks = tasks
            self.waiting = deque(p for p in range(self.n) if self.state[p] == WAITING)
            return self.n_done
        self._clear(len(tasks))
        self.planned, self.tasks = True, tasks
        if reused is not None and reused.n_tasks == self.n:
            for result in reused.results.values():
                self.accept(result)
        self.waiting = deque(p for p in range(self.n) if self.state[p] == WAITING)
        return self.n_done

    def waits(self, partition: int) -> bool:
        """Has the task neither begun nor ended, of those that are planned?"""
        return partition < self.n and self.state[partition] == WAITING

    def wait_for(self, before: "Progress") -> None:
        """Only tasks whose part is there wait to be submitted."""
        self.waiting = deque(
            p for p in range(self.n) if self.state[p] == WAITING and before.parts[p] is not None
        )

    def unplan(self) -> None:
        """Forget everything but the attempts used: the rows before it will be others."""
        self.first_attempt = max(self.next_attempt, default=self.first_attempt)
        self._clear(0)

    def task(self, partition: int) -> Task:
        """The first attempt of a task that runs."""
        if partition not in self._begun:
            self._begun[partition] = self.tasks[partition]
        return self._begun[partition]

    def start(self, partition: int) -> Task:
        """The next attempt of a task. Its parts are not bound yet."""
        attempt = self.next_attempt[partition]
        self.next_attempt[partition] = attempt + 1
        self.state[partition] = RUNNING
        task = self.task(partition)
        return task if attempt == 0 else replace(task, id=task.id._replace(attempt=attempt))

    # ---- results ---------------------------------------------------------------------

    def took(self, work_s: float, in_all_s: float) -> None:
        """How long a task worked, and how long it took with the way there and back."""
        self.durations_s.append(in_all_s)
        self._work_s.append(work_s)

    @property
    def usual_s(self) -> float:
        """What the work of a task takes: the middle of the last few, for one may be delayed."""
        return sorted(self._work_s)[len(self._work_s) // 2] if self._work_s else float("inf")

    def accept(self, result: TaskResult) -> bool:
        """Keep a result. False if an earlier attempt gave another number of rows."""
        p = result.task.partition
        before = self.rows[p]
        self.state[p] = DONE
        self._begun.pop(p, None)
        self.n_done += 1
        self.next_attempt[p] = max(self.next_attempt[p], result.task.attempt + 1)
        self.parts[p], self.files[p] = result.part, result.files
        self.rows[p], self.rows_in[p] = result.rows, result.rows_in
        self.size_bytes[p], self.value_bytes[p] = result.size_bytes, result.value_bytes
        self.hashed_in = self.hashed_in and result.rows_hash is not None
        self.hashed_out = self.hashed_out and result.written_hash is not None
        self.hash_in[p], self.hash_out[p] = result.rows_hash or 0, result.written_hash or 0
        self._bound = None
        if before < 0:
            self._add(result)
        elif self.varies or before != result.rows:
            self.exact = False
        return before < 0 or before == result.rows

    def _add(self, result: TaskResult) -> None:
        if result.partition_rows:
            self.partition_rows += np.frombuffer(result.partition_rows, "<i8")
        else:
            self.exact = False
        if result.partition_bytes:
            self.partition_bytes += np.frombuffer(result.partition_bytes, "<i8")

    def undo(self, partition: int) -> tuple[PartRef | None, tuple[OutputFile, ...]]:
        """A finished task has to run again. What it had left."""
        assert self.state[partition] == DONE
        left = self.parts[partition], self.files[partition]
        self.state[partition] = WAITING
        self.n_done -= 1
        self.parts[partition], self.files[partition] = None, ()
        self._bound = None
        self.waiting.appendleft(partition)
        return left

    # ---- what others ask -------------------------------------------------------------

    def bound(self) -> tuple[PartRef, ...]:
        """The parts in task order: one tuple, shared by all tasks that read the stage."""
        if self._bound is None:
            self._bound = tuple(part for part in self.parts if part is not None)
            assert len(self._bound) == self.n, f"stage {self.stage.id} lacks parts"
        return self._bound

    def done(self) -> Done:
        """What the tasks of the next stage are made from."""
        return Done(
            n_tasks=self.n,
            n_partitions=self.n_partitions,
            schema=self.stage.schema,
            part_rows=tuple(self.rows),
            nodes=tuple(part.node if part else "" for part in self.parts),
            partition_bytes=tuple(self.partition_bytes.tolist()) if self.exact else (),
            value_bytes=sum(self.value_bytes),
        )

    def reads_whole(self, stage: int) -> bool:
        """Does every task of this stage read every part of `stage`, or depend on its rows?"""
        return any(
            (isinstance(i, StageInput) and i.stage == stage and i.edge is not Edge.FORWARD)
            or (isinstance(i, RowsInput | ShardsInput) and i.stage == stage)
            for i in self.stage.inputs
        )

    def readers(self, stage: int, parts: Iterable[int]) -> list[int]:
        """The partitions of tasks that read one of these parts of `stage`."""
        wanted = set(parts)
        return [p for p, task in enumerate(self.tasks) if _reads(task, stage, wanted)]

    def cuts_rows(self, stage: int) -> bool:
        """Does a task read a run of rows, whose content depends on their order?"""
        return any(
            isinstance(i, PartRows) and i.stage == stage and (i.skip_rows or i.n_rows is not None)
            for task in self.tasks
            for i in task.inputs
        )


def _reads(task: Task, stage: int, parts: set[int]) -> bool:
    for item in task.inputs:
        if isinstance(item, PartRows) and item.stage == stage:
            if item.n_parts is None:
                return any(part >= item.first_part for part in parts)
            if not parts.isdisjoint(range(item.first_part, item.first_part + item.n_parts)):
                return True
    return False
