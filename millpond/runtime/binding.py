"""Tasks travel without their parts: all readers of a stage share one tuple of them.

With ten thousand parts that tuple is megabytes, so a runtime sends it once to each
place, and a task only says which stages it reads.
"""

from collections.abc import Mapping
from dataclasses import replace

from millpond.physical.stages import PartRef, PartRows, Task

Parts = tuple[PartRef, ...]


def unbound(task: Task) -> tuple[Task, dict[int, Parts]]:
    """The task without parts, and the parts by stage: the very tuples that were bound."""
    parts = {item.stage: item.parts for item in task.inputs if isinstance(item, PartRows)}
    return (_with_parts(task, dict.fromkeys(parts, ())) if parts else task), parts


def bound(task: Task, parts: Mapping[int, Parts]) -> Task:
    """The inverse of `unbound`."""
    return _with_parts(task, parts) if parts else task


def _with_parts(task: Task, parts: Mapping[int, Parts]) -> Task:
    return replace(
        task,
        inputs=tuple(
            replace(item, parts=parts[item.stage]) if isinstance(item, PartRows) else item
            for item in task.inputs
        ),
    )
