"""How a task runs: on how many slots, alone or in pieces, in one call with others, how long.

A task that ran out of memory runs again alone on its node; then alone on one thread, with
fewer and fewer rows at once where its work is row by row.
"""

from dataclasses import replace
from itertools import islice
from math import ceil

import numpy as np

from millpond.physical.stages import Task
from millpond.runtime.commands import CALL_S, Policy
from millpond.runtime.place import Capacity
from millpond.runtime.progress import Progress


class Sizing:
    """What runs at once, in all and on the largest node, and what that means for a task."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.has = Capacity(0, 0)

    @property
    def slots(self) -> int:
        return max(1, self.has.slots)

    @property
    def node_slots(self) -> int:
        return max(1, self.has.node_slots)

    def slots_of(self, progress: Progress, partition: int) -> int:
        """How many slots a task takes."""
        resources, node_bytes = progress.stage.resources, self.has.node_bytes
        wants = ceil(resources.cpus)
        if resources.memory_bytes and node_bytes:
            wants = max(wants, ceil(resources.memory_bytes * self.node_slots / node_bytes))
        if partition in progress.alone or resources.whole_node:
            wants = max(wants, self.node_slots)
        return max(1, min(wants, self.slots))

    def in_one_call(self, progress: Progress) -> int:
        """How many of the waiting tasks go together: where they are short, the way there is long.

        As many as end soon, and no more than leave some for the other slots. Whatever befalls
        a process befalls all tasks of a call, so one that has failed before goes by itself.
        """
        most = min(self.has.together, ceil(len(progress.waiting) / self.slots))
        if most > 1 and not progress.stage.resources.gpus:
            most = min(most, int(CALL_S / max(progress.usual_s, 1e-3)))
            for n, partition in enumerate(islice(progress.waiting, most)):
                if partition in progress.apart:
                    return max(1, n)
            return max(1, most)
        return 1

    def slow_after_s(self, progress: Progress) -> float | None:
        """How long a task of a stage may run before it gets a twin, if that is known."""
        durations, policy = progress.durations_s, self._policy
        if len(durations) < policy.twin_after or 2 * progress.n_done < progress.n:
            return None
        usual_s = float(np.quantile(np.fromiter(durations, float), policy.twin_quantile))
        limit_s = max(policy.twin_min_s, policy.twin_factor * usual_s)
        return limit_s * (policy.one_node_factor if self.slots <= self.node_slots else 1.0)

    def sized(self, task: Task, progress: Progress) -> Task:
        """The task as it runs now."""
        partition = task.id.partition
        if partition not in progress.alone and not task.resources.whole_node:
            return task
        cpus = float(max(self.node_slots, ceil(task.resources.cpus)))
        rows = self._rows_at_once(progress, partition)
        resources = replace(task.resources, cpus=cpus)
        return replace(task, resources=resources, alone=True, rows_at_once=rows)

    def take_less(self, progress: Progress, partition: int, *, was_alone: bool) -> bool:
        """After a task ran out of memory: how it runs from now on. False if there is no less."""
        was_alone = was_alone or partition in progress.alone
        progress.alone[partition] = progress.alone.get(partition, 0) + was_alone
        # Work that is not row by row has one step down: one thread instead of several.
        pieces = self._policy.rows_at_once[: None if progress.stage.fragment.row_wise else 1]
        return progress.alone[partition] <= len(pieces)

    def in_words(self, progress: Progress, partition: int) -> str:
        """How the last attempt of a task ran."""
        if partition not in progress.alone:
            return ""
        rows = self._rows_at_once(progress, partition)
        if rows is None:
            return "alone"
        in_pieces = f", {rows:,} rows at a time" if progress.stage.fragment.row_wise else ""
        return f"alone, on one thread{in_pieces}"

    def _rows_at_once(self, progress: Progress, partition: int) -> int | None:
        step = progress.alone.get(partition, 0)
        return self._policy.rows_at_once[step - 1] if step else None
