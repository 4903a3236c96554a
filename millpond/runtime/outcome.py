"""What a run gives: the results of its final stages, in task order."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from millpond.physical.stages import OutputFile, PartRef
from millpond.runtime.progress import Progress


@dataclass(frozen=True, slots=True)
class StageOutcome:
    """What the tasks of one stage wrote: parts, or staged files that nobody sees yet."""

    stage: int
    parts: tuple[PartRef, ...]
    files: tuple[OutputFile, ...]
    rows: int
    size_bytes: int
    task_rows: tuple[int, ...]
    # Rows per output partition; None where an attempt undone makes the sum unreliable.
    partition_rows: NDArray[np.int64] | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """The final stages of a run, by stage number."""

    stages: dict[int, StageOutcome]

    @property
    def only(self) -> StageOutcome:
        """The outcome of a run with one final stage."""
        (outcome,) = self.stages.values()
        return outcome


def stage_outcome(progress: Progress) -> StageOutcome:
    """What a complete stage has left."""
    return StageOutcome(
        stage=progress.stage.id,
        parts=tuple(part for part in progress.parts if part is not None),
        files=tuple(file for files in progress.files for file in files),
        rows=sum(progress.rows),
        size_bytes=sum(progress.size_bytes),
        task_rows=tuple(progress.rows),
        partition_rows=progress.partition_rows if progress.exact else None,
    )
