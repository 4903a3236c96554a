"""Tasks travel without their parts: all readers of a stage share one tuple of them.

With ten thousand parts that tuple is megabytes, so a runtime sends it once to each
place, and a task only says which stages it reads.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeGuard

from millpond.physical.stages import PartRef, PartRows, Task, TaskInput

Parts = tuple[PartRef, ...]


def unbound(task: Task) -> tuple[Task, dict[int, Parts]]:
    """The task without shared parts, and those by stage: the very tuples that were bound.

    The few parts of a task that reads only some of a stage are its own: they stay.
    """
    parts = {item.stage: item.parts for item in task.inputs if _is_shared(item)}
    return (_with_parts(task, dict.fromkeys(parts, ())) if parts else task), parts


def bound(task: Task, parts: Mapping[int, Parts]) -> Task:
    """The inverse of `unbound`."""
    return _with_parts(task, parts) if parts else task


def _with_parts(task: Task, parts: Mapping[int, Parts]) -> Task:
    return replace(
        task,
        inputs=tuple(
            replace(item, parts=parts[item.stage]) if _is_shared(item) else item
            for item in task.inputs
        ),
    )


def _is_shared(item: TaskInput) -> TypeGuard[PartRows]:
    return isinstance(item, PartRows) and item.n_parts is None
