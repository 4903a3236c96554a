"""The stages of a run and who reads whom: which have to run, and which may start now."""

from collections.abc import Sequence
from dataclasses import replace

from millpond.physical.stages import (
    Determinism,
    Edge,
    PartRows,
    Stage,
    StageInput,
    Task,
    TaskInput,
)
from millpond.runtime.progress import Progress


class Graph:
    """How far each stage is. Stages are listed so that each comes after those it reads."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self.progress = {stage.id: Progress(stage) for stage in stages}
        self.readers: dict[int, list[int]] = {stage.id: [] for stage in stages}
        for progress in self.progress.values():
            for before in progress.reads:
                self.readers[before].append(progress.stage.id)
            progress.follows = self._follows(progress.stage)

    @property
    def final(self) -> list[int]:
        """The stages that no other reads: the answer."""
        return [stage for stage, readers in self.readers.items() if not readers]

    @property
    def done(self) -> bool:
        return all(self.progress[stage].complete for stage in self.final)

    def ready(self) -> list[int]:
        """Stages that have to run, and can."""
        wanted = self._wanted()
        return [s for s in self.progress if s in wanted and self._can_start(s)]

    def opens_more(self, stage: int) -> bool:
        """Now that a stage is planned, may others be?"""
        followed = any(self.progress[r].follows == stage for r in self.readers[stage])
        return self.progress[stage].complete or followed

    def may_vary(self, stage: int) -> bool:
        """May another attempt give its readers other rows?"""
        progress = self.progress[stage]
        if progress.stage.determinism is Determinism.ANY_ORDER and not progress.varies:
            return any(self.progress[r].cuts_rows(stage) for r in self.readers[stage])
        return progress.varies

    def has_its_part(self, progress: Progress, partition: int) -> bool:
        """False where only the part of one task is read, and that has to run again first."""
        before = progress.follows
        return before is None or self.progress[before].parts[partition] is not None

    def bound(self, task: Task) -> Task:
        """The task with the parts that exist now."""
        follows = self.progress[task.id.stage].follows
        if follows is not None:  # Where that part lies was not known before.
            part = self.progress[follows].parts[task.id.partition]
            task = replace(task, prefer=(part.node,) if part and part.node else ())
        return replace(task, inputs=tuple(self._bound(item) for item in task.inputs))

    def _bound(self, item: TaskInput) -> TaskInput:
        """The input with its parts: all, in one shared tuple, or the few it reads."""
        if not isinstance(item, PartRows):
            return item
        before = self.progress[item.stage]
        if item.n_parts is None:
            return replace(item, parts=before.bound())
        few = before.parts[item.first_part : item.first_part + item.n_parts]
        return replace(item, parts=tuple(part for part in few if part), first_part=0)

    def _follows(self, stage: Stage) -> int | None:
        """The stage that `stage` reads one to one, if it runs on something else than that does."""
        match stage.inputs:
            case (StageInput(before, Edge.FORWARD, None),):
                other = self.progress[before].stage.resources != stage.resources
                return before if other else None
        return None

    def _wanted(self) -> set[int]:
        """Stages that have to run: incomplete, and final or read by one that has to run."""
        wanted: set[int] = set()
        for stage in reversed(self.progress):
            readers = self.readers[stage]
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
