"""Stages and results for tests of the runtime room: small, without data."""

from collections.abc import Sequence

import numpy as np

from millpond.formats.scan import FileSlice, Scan, Split
from millpond.physical.stages import (
    Determinism,
    Edge,
    OutputFile,
    PartRef,
    PartRows,
    PartsLost,
    Resources,
    SourceInput,
    Stage,
    StageInput,
    Task,
    TaskId,
    TaskResult,
    ToFile,
    ToPart,
)
from millpond.physical.steps import Fragment, SqlStep
from millpond.runtime.commands import Command, Submit
from millpond.runtime.place import Capacity
from millpond.runtime.schedule import Schedule
from millpond.schema import Schema
from millpond.storage import Staged

SCHEMA = Schema.of([("x", "BIGINT")])
FRAGMENT = Fragment((SqlStep("SELECT * FROM in0", SCHEMA),))
ROWS = 10  # Rows that each task writes to each partition.


def source(id: int, n_tasks: int, n: int = 1, **fields: object) -> Stage:
    """A stage of `n_tasks` tasks that read a source and write parts of `n` partitions."""
    splits = tuple(Split((FileSlice("t.parquet", i),)) for i in range(n_tasks))
    inputs = (SourceInput(Scan("parquet", SCHEMA), splits),)
    return _stage(id, inputs, ToPart(n), fields)


def reader(
    id: int, *reads: int, n: int = 1, edge: Edge = Edge.ONE_TO_ONE, **fields: object
) -> Stage:
    """A stage that reads the stages `reads` and writes parts of `n` partitions."""
    return _stage(id, tuple(StageInput(r, edge) for r in reads), ToPart(n), fields)


def sink(id: int, *reads: int, **fields: object) -> Stage:
    """A stage that writes a file per task."""
    output = ToFile("parquet", "out", "{partition:05d}.parquet")
    return _stage(id, tuple(StageInput(r, Edge.ONE_TO_ONE) for r in reads), output, fields)


def _stage(id: int, inputs: tuple, output: object, fields: dict) -> Stage:  # type: ignore[type-arg]
    determinism = fields.pop("determinism", Determinism.FIXED)
    resources = fields.pop("resources", Resources())
    return Stage(
        id,
        str(fields.pop("title", f"stage {id}")),
        fields.pop("fragment", FRAGMENT),  # type: ignore[arg-type]
        inputs,
        output,  # type: ignore[arg-type]
        SCHEMA,
        determinism,  # type: ignore[arg-type]
        resources,  # type: ignore[arg-type]
        str(fields.pop("fingerprint", "")),
    )


def result(
    task: Task, *, rows_in: int | None = None, rows: int = ROWS, node: str = "n0"
) -> TaskResult:
    """What a worker tells of `task`: `rows` per partition, and all rows of its parts read."""
    stage, partition, attempt = task.id
    if isinstance(task.output, ToFile):
        staged = Staged(f"out/{partition}.parquet", f"out/.{partition}.a{attempt}", 8 * rows)
        read = expected_rows(task) if rows_in is None else rows_in
        return TaskResult(
            task.id, None, (OutputFile(staged, rows),), read, rows, 8 * rows, node=node
        )
    assert isinstance(task.output, ToPart)
    n = task.output.n
    counts = np.full(n, rows, "<i8")
    path = f"{stage}/{partition:05d}.a{attempt}.part"
    part = PartRef(stage, partition, attempt, node, path, 8 * n * rows, n, 1, 0, 0, n * rows)
    return TaskResult(
        task.id,
        part,
        rows_in=expected_rows(task) if rows_in is None else rows_in,
        rows=n * rows,
        size_bytes=8 * n * rows,
        partition_rows=counts.tobytes(),
        partition_bytes=(8 * counts).tobytes(),
        node=node,
    )


def expected_rows(task: Task) -> int:
    """Rows of the parts bound to `task`, if each part holds equal partitions."""
    return sum(
        part.rows // part.n_partitions * item.n_partitions
        for item in task.inputs
        if isinstance(item, PartRows)
        for part in item.parts
    )


def lost(task: Task, *refs: PartRef, damaged: bool = False) -> PartsLost:
    return PartsLost(task.id, refs, damaged, "a bit flipped" if damaged else "node n0 is gone")


def submitted(commands: Sequence[Command]) -> list[Task]:
    return [task for c in commands if isinstance(c, Submit) for task in c.tasks]


def ids(tasks: Sequence[Task]) -> list[TaskId]:
    return [task.id for task in tasks]


def begun(
    *stages: Stage, slots: int = 100, node_slots: int | None = None, **options: object
) -> Schedule:
    """A schedule that has started, on `slots` slots of one node, or of nodes of `node_slots`."""
    schedule = Schedule(stages, **options)  # type: ignore[arg-type]
    schedule.capacity(Capacity(slots, node_slots or slots))
    assert schedule.start() == []
    return schedule


def finish(schedule: Schedule, tasks: Sequence[Task]) -> list[Command]:
    """All of these tasks succeed; the commands of the last."""
    commands: list[Command] = []
    for task in tasks:
        commands = schedule.succeeded(result(task))
    return commands
