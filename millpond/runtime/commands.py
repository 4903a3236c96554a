"""What the schedule orders, and the numbers that it decides by. Values only."""

from dataclasses import dataclass

from millpond.physical.stages import OutputFile, PartRef, Task, TaskId


@dataclass(frozen=True, slots=True)
class Submit:
    """Hand this task to the runtime."""

    task: Task


@dataclass(frozen=True, slots=True)
class Cancel:
    """End this attempt; what it may still give is not wanted."""

    task: TaskId


@dataclass(frozen=True, slots=True)
class Discard:
    """Nobody will read these: the part of an attempt given up, or files that it staged."""

    parts: tuple[PartRef, ...] = ()
    files: tuple[OutputFile, ...] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    """Every final stage is complete."""


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The run has failed. Exceptions compare by identity, so these do too."""

    error: BaseException


Command = Submit | Cancel | Discard | Finished | GiveUp


def discards(part: PartRef | None, files: tuple[OutputFile, ...]) -> list[Command]:
    """The command that drops what a task has left, if it has left anything."""
    if part is None and not files:
        return []
    return [Discard((part,) if part else (), files)]


@dataclass(frozen=True, slots=True)
class Policy:
    """How often to try again, and when a task counts as slow.

    A task is slow once it has run for `twin_factor` times the `twin_quantile` of the
    finished tasks of its stage, if at least half of the stage (and `twin_after`
    tasks) is done and it runs for `twin_min_s` or more. On one node, where a task is
    slow because it is large rather than because its machine is, all of this is
    `one_node_factor` times as long.
    """

    max_attempts: int = 4
    max_losses: int = 4
    twin_quantile: float = 0.75
    twin_factor: float = 3.0
    twin_min_s: float = 10.0
    twin_after: int = 3
    one_node_factor: float = 6.0
