"""What a runtime is: a place where tasks run. It decides nothing and retries nothing."""

from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from millpond.errors import OptionError
from millpond.physical.stages import PartsLost, Resources, Task, TaskId, TaskResult

Ended = TaskResult | PartsLost  # What a task that did not raise gives.


@dataclass(frozen=True, slots=True)
class Capacity:
    """How many tasks of one CPU run at once: in all, and on the largest node; GPUs alike."""

    slots: int
    node_slots: int
    gpus: float = 0.0
    node_gpus: float = 0.0


def check_fits(stage: int, wants: Resources, has: Capacity) -> None:
    """Raise if no node has what a task of `stage` wants: it would wait for ever, and silently."""
    if wants.gpus > has.node_gpus or wants.cpus > has.node_slots:
        raise OptionError(
            f"stage {stage} wants {wants.cpus:g} CPUs and {wants.gpus:g} GPUs for a task, but no "
            f"node has more than {has.node_slots} CPUs and {has.node_gpus:g} GPUs. Start such a "
            "node first, or ask for less (cpus=, gpus=)."
        )


class Runtime(Protocol):
    """Runs tasks by `run_task`, on this machine or elsewhere."""

    def capacity(self) -> Capacity:
        """What there is now; nodes may come and go."""

    def submit(self, task: Task) -> Future[Ended]:
        """Start a task. The future ends with what `run_task` gave or raised, or `WorkerLost`."""

    def cancel(self, task: TaskId) -> None:
        """End a task soon, if it runs. Its future ends, in whatever way, when it has ended."""

    def check_shared(self, folder: str, what: str) -> None:
        """Raise unless every place where tasks run has this `folder`, named `what` to the user."""

    def forget(self, run: str) -> None:
        """Remove the parts of a run: nothing reads them any more."""

    def close(self, *, keep: bool = False) -> None:
        """End all tasks and processes; nothing is left behind, but parts to `keep`.

        Those are for the next session, where this one's work is not done.
        """
