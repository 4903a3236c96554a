"""What a runtime is: a place where tasks run. It decides nothing and retries nothing."""

from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from millpond.physical.stages import PartsLost, Task, TaskId, TaskResult

Ended = TaskResult | PartsLost  # What a task that did not raise gives.


@dataclass(frozen=True, slots=True)
class Capacity:
    """How many tasks of one CPU run at once: in all, and on the largest node."""

    slots: int
    node_slots: int


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

    def close(self) -> None:
        """End all tasks and processes; nothing is left behind."""
