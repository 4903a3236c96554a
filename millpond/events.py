"""What happened in a run, as values: the only thing besides results that travels up.

Reports draw events; they can stop nothing.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RunStarted:
    """A plan begins to run, in `stages` stages; `shape` is "fused" or "staged"."""

    shape: str
    stages: int


@dataclass(frozen=True, slots=True)
class RunFinished:
    """The end of a run, whatever it is. `error` names the class of what stopped it, or is empty."""

    wall_s: float
    error: str = ""


@dataclass(frozen=True, slots=True)
class StagePlanned:
    """A stage is ready: its tasks are known. `reused` of them come from the journal."""

    stage: int
    title: str
    tasks: int
    reused: int = 0


@dataclass(frozen=True, slots=True)
class TaskStarted:
    """A task was handed to the runtime."""

    stage: int
    partition: int
    attempt: int


@dataclass(frozen=True, slots=True)
class TaskFinished:
    """A task succeeded; rows and bytes are those that it wrote."""

    stage: int
    partition: int
    attempt: int
    rows: int
    size_bytes: int
    wall_s: float
    cpu_s: float


@dataclass(frozen=True, slots=True)
class TaskRetried:
    """A task will run again, because its last attempt or one of its parts was lost."""

    stage: int
    partition: int
    attempt: int
    reason: str


@dataclass(frozen=True, slots=True)
class PartsMissing:
    """A reader could not read these parts (stage, partition); they are computed again."""

    parts: tuple[tuple[int, int], ...]
    reason: str


@dataclass(frozen=True, slots=True)
class StageFinished:
    """All tasks of a stage are done. `rows_in` were read, `rows` written."""

    stage: int
    rows_in: int
    rows: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Published:
    """Outputs are visible under their final names."""

    files: int
    rows: int
    size_bytes: int


Event = (
    RunStarted
    | RunFinished
    | StagePlanned
    | TaskStarted
    | TaskFinished
    | TaskRetried
    | PartsMissing
    | StageFinished
    | Published
)
