"""The tasks of a stage: a pure function of what the stages before it gave."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import overload

from millpond.physical.stages import (
    ConcatInput,
    Edge,
    Input,
    Output,
    PartRows,
    RowsInput,
    ShardsInput,
    SourceInput,
    SplitRows,
    Stage,
    StageInput,
    Task,
    TaskId,
    TaskInput,
    ToFile,
)
from millpond.schema import Schema

# Neighbouring partitions of together this much make one task: its overhead is then small.
MERGED_BYTES = 32 << 20


@dataclass(frozen=True, slots=True)
class Done:
    """What the schedule knows of a finished stage when it makes the tasks of the next."""

    n_tasks: int
    n_partitions: int
    schema: Schema
    part_rows: tuple[int, ...]
    nodes: tuple[str, ...]
    partition_bytes: tuple[int, ...] = ()  # Empty where they are not known.
    value_bytes: int = 0


def reads(stage: Stage) -> tuple[int, ...]:
    """The stages whose parts `stage` reads, in the order of its inputs."""
    found: list[int] = []
    for item in stage.inputs:
        match item:
            case StageInput(before) | RowsInput(before) | ShardsInput(before):
                found.append(before)
            case ConcatInput(stages):
                found += stages
    return tuple(dict.fromkeys(found))


def tasks(stage: Stage, done: dict[int, Done]) -> Sequence[Task]:
    """The first attempts of a stage's tasks. Pure; `PartRows.parts` are bound at submission."""
    return _Tasks(stage, done)


class _Tasks(Sequence[Task]):
    """Made when they are asked for: a million tasks kept would be most of a run's memory."""

    def __init__(self, stage: Stage, done: dict[int, Done]) -> None:
        self._stage = stage
        self._inputs = tuple(_only_there(item, done) for item in stage.inputs)
        self._runs = _merged(stage, done)
        self._n = len(self._runs) if self._runs else n_tasks(stage, done)
        self._starts = {before: _starts(done[before]) for before in _in_rows(stage)}
        self._output = _output(stage, done)
        # Without the counts of each part, which only what was made above asks for.
        self._done = {
            before: replace(each, part_rows=(), partition_bytes=()) for before, each in done.items()
        }

    def __len__(self) -> int:
        return self._n

    @overload
    def __getitem__(self, at: int) -> Task: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Task]: ...
    def __getitem__(self, at: int | slice) -> Task | Sequence[Task]:
        if isinstance(at, slice):
            return tuple(self[partition] for partition in range(self._n)[at])
        return self._task(range(self._n)[at])

    def _task(self, partition: int) -> Task:
        stage, done = self._stage, self._done
        return Task(
            id=TaskId(stage.id, partition),
            fragment=stage.fragment,
            inputs=tuple(
                [_task_input(i, partition, done, self._runs, self._starts) for i in self._inputs]
            ),
            output=self._output,
            schema=stage.schema,
            resources=stage.resources,
            prefer=_prefer(stage.inputs, partition, done),
            fingerprint=f"{stage.fingerprint}-{partition}-{self._n}" if stage.fingerprint else "",
            run=stage.run,
        )


def n_tasks(stage: Stage, done: dict[int, Done]) -> int:
    """How many tasks a stage has: what its inputs that are not read whole agree on."""
    counts = set()
    for item in stage.inputs:
        match item:
            case SourceInput(splits=splits, broadcast=False):
                counts.add(len(splits))
            case StageInput(before, edge, only) if only is not None and edge is not Edge.ALL:
                counts.add(len(_there(only, edge, done[before])))
            case StageInput(stage=before, edge=Edge.ONE_TO_ONE):
                counts.add(done[before].n_partitions)
            case StageInput(stage=before, edge=Edge.FORWARD):
                counts.add(done[before].n_tasks)
            case ConcatInput(stages=stages):
                counts.add(sum(done[before].n_tasks for before in stages))
            case RowsInput(n=n):
                counts.add(n)
            case ShardsInput(before, size):
                rows = sum(done[before].part_rows)
                counts.add(max(1, -(-rows // size.shard_rows(rows, done[before].value_bytes))))
    assert len(counts) <= 1, f"inputs of stage {stage.id} disagree: {counts}"
    return counts.pop() if counts else 1


def _there(only: tuple[int, ...], edge: Edge, before: Done) -> tuple[int, ...]:
    """Those that exist: a stage may have got fewer tasks than were planned."""
    n = before.n_tasks if edge is Edge.FORWARD else before.n_partitions
    return tuple(place for place in only if place < n)


def _only_there(item: Input, done: dict[int, Done]) -> Input:
    if isinstance(item, StageInput) and item.only is not None and item.edge is not Edge.ALL:
        return replace(item, only=_there(item.only, item.edge, done[item.stage]))
    return item


def _merged(stage: Stage, done: dict[int, Done]) -> list[range] | None:
    """Runs of neighbouring small partitions, one for each task; None if each is read alone."""
    sizes: list[tuple[int, ...]] = []
    for item in stage.inputs:
        match item:
            case StageInput(before, Edge.ONE_TO_ONE, None, merged=True):
                sizes.append(done[before].partition_bytes)
            case StageInput(edge=Edge.ALL) | SourceInput(broadcast=True):
                pass
            case _:
                return None
    if not sizes or not all(sizes) or len({len(some) for some in sizes}) > 1:
        return None
    runs: list[range] = []
    held = MERGED_BYTES + 1
    for place, size in enumerate(map(sum, zip(*sizes, strict=True))):
        if held + size > MERGED_BYTES:
            runs.append(range(place, place))
            held = 0
        held += size
        runs[-1] = range(runs[-1].start, place + 1)
    return runs


def _in_rows(stage: Stage) -> tuple[int, ...]:
    """The stages before whose rows must be numbered over all parts."""
    return tuple(
        item.stage
        for item in stage.inputs
        if isinstance(item, RowsInput | ShardsInput)
        or (isinstance(item, StageInput) and item.numbered)
    )


def _starts(before: Done) -> tuple[int, ...]:
    """How many rows come before each part, and how many there are."""
    return tuple(accumulate(before.part_rows, initial=0))


def _task_input(
    item: Input,
    task: int,
    done: dict[int, Done],
    runs: list[range] | None,
    starts: dict[int, tuple[int, ...]],
) -> TaskInput:
    match item:
        case SourceInput(scan, splits, broadcast, first_rows=first_rows, row_bytes=row_bytes):
            first_row = first_rows[task] if first_rows else None
            mine = splits if broadcast else splits[task : task + 1]
            return SplitRows(scan, mine, first_row, row_bytes)
        case StageInput(stage, edge, only, numbered):
            place = task
            if only is not None and edge is not Edge.ALL:
                place = only[task]
            if edge is Edge.ONE_TO_ONE:
                some = runs[task] if runs else range(place, place + 1)
                sizes = done[stage].partition_bytes
                return PartRows(
                    stage, done[stage].schema, some.start, len(some),
                    size_bytes=sum(sizes[some.start : some.stop]) if sizes else None,
                )  # fmt: skip
            n = done[stage].n_partitions
            if edge is Edge.FORWARD:
                first_row = starts[stage][place] + 1 if numbered else None
                return PartRows(
                    stage, done[stage].schema, 0, n, first_part=place, n_parts=1,
                    first_row=first_row,
                )  # fmt: skip
            return PartRows(stage, done[stage].schema, 0, n)
        case ConcatInput(stages):
            for stage in stages:
                if task < done[stage].n_tasks:
                    n = done[stage].n_partitions
                    return PartRows(stage, done[stage].schema, 0, n, first_part=task, n_parts=1)
                task -= done[stage].n_tasks
        case RowsInput(stage, n):
            total = starts[stage][-1]
            first, last = total * task // n, total * (task + 1) // n
            return _run_of_rows(stage, first, last, done[stage], starts[stage])
        case ShardsInput(stage, size):
            total = starts[stage][-1]
            each = size.shard_rows(total, done[stage].value_bytes)
            first, last = task * each, min(total, (task + 1) * each)
            return _run_of_rows(stage, first, last, done[stage], starts[stage])
    raise AssertionError(item)


def _output(stage: Stage, done: dict[int, Done]) -> Output:
    """What a task writes; for a shard, with the rows of its record batches."""
    for item in stage.inputs:
        if isinstance(item, ShardsInput) and isinstance(stage.output, ToFile):
            before = done[item.stage]
            batch_rows = item.size.batch_rows(sum(before.part_rows), before.value_bytes)
            options = (*stage.output.options, ("batch_rows", str(batch_rows)))
            return replace(stage.output, options=options)
    return stage.output


def _run_of_rows(
    stage: int, first: int, last: int, before: Done, starts: tuple[int, ...]
) -> PartRows:
    if first == last:
        return PartRows(stage, before.schema, 0, before.n_partitions, 0, 0, 0, 0)
    first_part = bisect_right(starts, first) - 1
    n_parts = bisect_right(starts, last - 1) - first_part
    skip = first - starts[first_part]
    return PartRows(
        stage, before.schema, 0, before.n_partitions, first_part, n_parts, skip, last - first
    )


def _prefer(inputs: Sequence[Input], task: int, done: dict[int, Done]) -> tuple[str, ...]:
    for item in inputs:
        if isinstance(item, StageInput) and item.edge is Edge.FORWARD and item.only is None:
            node = done[item.stage].nodes[task]
            return (node,) if node else ()
    return ()
