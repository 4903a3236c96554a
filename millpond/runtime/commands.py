"""What the schedule orders, and the numbers that it decides by. Values only."""

from dataclasses import dataclass

from millpond.physical.stages import OutputFile, PartRef, Task, TaskId

# A call of several tasks shall end within this; then what has not begun is given back. Ray
# takes 1 to 2 ms for a call, see benchmarks/scale.py.
CALL_S = 0.05


@dataclass(frozen=True, slots=True)
class Submit:
    """Hand these tasks of one stage to the runtime, which runs them one after another.

    Meanwhile they take `slots`.
    """

    tasks: tuple[Task, ...]
    slots: int = 1


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
    """How often to try again, when a task counts as slow, and when as hanging.

    A task is slow once it has run for `twin_factor` times the `twin_quantile` of the
    finished tasks of its stage, if at least half of the stage (and `twin_after`
    tasks) is done and it runs for `twin_min_s` or more. On one node, where a task is
    slow because it is large rather than because its machine is, all of this is
    `one_node_factor` times as long.

    An attempt that runs for `task_timeout_s` is ended and counts as failed. None: a long
    task and one that hangs look the same, so only the user can tell.

    A task that ran out of memory runs again alone on its node; then alone on one thread,
    with `rows_at_once` rows where its work is row by row.
    """

    max_attempts: int = 4
    max_losses: int = 4
    twin_quantile: float = 0.75
    twin_factor: float = 3.0
    twin_min_s: float = 10.0
    twin_after: int = 3
    one_node_factor: float = 6.0
    task_timeout_s: float | None = None
    rows_at_once: tuple[int, ...] = (8_192, 512)
