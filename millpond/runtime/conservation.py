"""No row is lost or doubled on the way: written = read, counted on both sides. Pure.

A worker counts the rows that it decodes (`TaskResult.rows_in`) and the rows that it
partitions; what it must have read, the counts of the stages before say.
"""

from collections.abc import Mapping

import numpy as np

from millpond.errors import Transient
from millpond.physical.stages import (
    ConcatInput,
    Edge,
    Input,
    PartRows,
    RowsInput,
    ShardsInput,
    StageInput,
    Task,
    TaskInput,
    TaskResult,
    ToPart,
)
from millpond.runtime.progress import Progress


class RowsNotConserved(Transient):
    """Rows read differ from rows written. Another attempt may read what this one lost."""


def check(result: TaskResult, task: Task, progress: Mapping[int, Progress]) -> None:
    """Raise if the task read or wrote another number of rows than the counts say."""
    if isinstance(task.output, ToPart) and result.partition_rows:
        parted = int(np.frombuffer(result.partition_rows, "<i8").sum())
        if parted != result.rows:
            raise RowsNotConserved(
                f"{_name(task)}: {result.rows} rows were computed, but {parted} were written"
            )
    expected = rows_expected(task, progress)
    # A negative count says that the worker stopped early on purpose (a LIMIT).
    if expected is not None and 0 <= result.rows_in != expected:
        sources = ", ".join(str(i.stage) for i in task.inputs if isinstance(i, PartRows))
        raise RowsNotConserved(
            f"{_name(task)}: stage {sources} wrote {expected} rows for this task, "
            f"but it read {result.rows_in}"
        )


def check_stage(stage: Progress, progress: Mapping[int, Progress]) -> None:
    """Raise if a complete stage has not read, in all, exactly what was written for it.

    The counts per partition know nothing of attempts undone; these totals always do.
    With `verify="rows"` the rows themselves are compared, by a hash that knows no order.
    """
    times = [_times_read(item, stage.n) for item in stage.stage.inputs]
    read = [(progress[before], n) for found in times for before, n in found]
    if not all(times) or not all(before.complete for before, _ in read):
        return
    sources = ", ".join(str(before.stage.id) for before, _ in read)
    name = f"stage {stage.stage.id} ({stage.stage.title})"
    if min(stage.rows_in, default=0) >= 0:
        written = sum(sum(before.rows) * n for before, n in read)
        if written != (rows_in := sum(stage.rows_in)):
            raise RowsNotConserved(
                f"{name} read {rows_in} rows in all, but stage {sources} wrote {written} for it: "
                f"attempts were mixed, or rows were lost. {_REPORT}"
            )
    if stage.hashed_in and all(before.hashed_out for before, _ in read):
        hashed = sum(sum(before.hash_out) * n for before, n in read)
        if (hashed - sum(stage.hash_in)) % 2**64:
            raise RowsNotConserved(
                f"{name} read other rows than stage {sources} wrote, though as many. {_REPORT}"
            )


_REPORT = "This is a fault of Millpond: please report it with the events of the run."


def _times_read(item: Input, n_tasks: int) -> list[tuple[int, int]]:
    """Stages, and how often their rows are read; empty where that cannot be told."""
    match item:
        case StageInput(before, edge, None):
            return [(before, n_tasks if edge is Edge.ALL else 1)]
        case RowsInput(before) | ShardsInput(before):
            return [(before, 1)]
        case ConcatInput(stages):
            return [(before, 1) for before in stages]
    return []


def rows_expected(task: Task, progress: Mapping[int, Progress]) -> int | None:
    """How many rows of parts the task has to read; None where the counts cannot tell."""
    counts = [_expected(item, progress) for item in task.inputs]
    if not counts or None in counts:
        return None
    return sum(count for count in counts if count is not None)


def _expected(item: TaskInput, progress: Mapping[int, Progress]) -> int | None:
    if not isinstance(item, PartRows):
        return None
    if item.n_rows is not None:
        return item.n_rows  # A run of rows that the counts of its parts were cut into.
    if item.skip_rows:
        return None
    before = progress[item.stage]
    whole = item.first_partition == 0 and item.n_partitions == before.n_partitions
    if whole and item.n_parts == 1:
        return before.rows[item.first_part]
    if item.first_part or item.n_parts is not None or not before.exact:
        return None
    return int(before.partition_rows[item.first_partition :][: item.n_partitions].sum())


def _name(task: Task) -> str:
    return f"stage {task.id.stage}, partition {task.id.partition}, attempt {task.id.attempt}"
