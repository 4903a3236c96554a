"""What a runtime is: a place where tasks run. It decides nothing and retries nothing."""

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from millpond.errors import OptionError
from millpond.options import Options
from millpond.physical.shape import OnlyNode
from millpond.physical.stages import PartsLost, Resources, Task, TaskId, TaskResult


@dataclass(frozen=True, slots=True)
class NotBegun:
    """A task was given back, because those before it in its call took long."""

    task: TaskId


Ended = TaskResult | PartsLost | NotBegun  # What a task that did not raise gives.


@dataclass(frozen=True, slots=True)
class Capacity:
    """How many tasks of one CPU run at once: in all, and on the largest node; GPUs alike.

    Up to `together` short tasks are worth one call. `node_bytes` is the memory that the tasks
    on the largest node take together. `nodes` are those that run tasks; more may join.
    """

    slots: int
    node_slots: int
    gpus: float = 0.0
    node_gpus: float = 0.0
    together: int = 1
    node_bytes: int | None = None
    nodes: int = 1
    may_grow: bool = False


def check_fits(stage: int, wants: Resources, has: Capacity) -> None:
    """Raise if no node has what a task of `stage` wants: it would wait for ever, and silently."""
    if wants.gpus > has.node_gpus or wants.cpus > has.node_slots:
        raise OptionError(
            f"stage {stage} wants {wants.cpus:g} CPUs and {wants.gpus:g} GPUs for a task, but no "
            f"node has more than {has.node_slots} CPUs and {has.node_gpus:g} GPUs. Start such a "
            "node first, or ask for less (cpus=, gpus=)."
        )
    if wants.memory_bytes and has.node_bytes is not None and wants.memory_bytes > has.node_bytes:
        raise OptionError(
            f"stage {stage} wants {wants.memory_bytes:,} bytes of memory for a task, but no node "
            f"has more than {has.node_bytes:,}. Start such a node first, or ask for less (memory=)."
        )


def only_node(has: Capacity, options: Options) -> OnlyNode | str:
    """The node of a cluster that may have a whole plan as one task; or why none may."""
    if has.nodes != 1:
        return f"the cluster has {has.nodes or 'no'} nodes"
    if has.node_bytes is None:
        return "the cluster's only node does not tell its memory"
    if options.shape == "auto" and options.data_root is not None:
        return "a rerun finds the tasks of a cluster again"
    if options.shape == "auto" and options.task_timeout is not None:
        return "task_timeout bounds a task"
    return OnlyNode(has.node_slots, has.node_bytes, has.may_grow)


class Runtime(Protocol):
    """Runs tasks by `run_task`, on this machine or elsewhere."""

    def capacity(self) -> Capacity:
        """What there is now; nodes may come and go."""

    def submit(self, tasks: Sequence[Task]) -> Sequence[Future[Ended]]:
        """Start tasks, which one place may run in turn; a future for each.

        It ends with what `run_task` gave or raised, with `WorkerLost`, or `NotBegun`.
        """

    def cancel(self, tasks: Sequence[TaskId]) -> None:
        """End tasks soon, if they run. A future ends, in whatever way, when its task has ended.

        Those that were submitted with it may end, too.
        """

    def check_shared(self, folder: str, what: str) -> None:
        """Raise unless every place where tasks run has this `folder`, named `what` to the user."""

    def check_inputs(self, paths: Sequence[str]) -> None:
        """Raise unless every place where tasks run has these files, as they are here."""

    def forget(self, run: str) -> None:
        """Remove the parts of a run: nothing reads them any more."""

    def close(self, *, keep: bool = False) -> None:
        """End all tasks and processes; nothing is left behind, but parts to `keep`.

        Those are for the next session, where this one's work is not done.
        """
