"""Small pipelines on real workers, with the rows that they must give."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cloudpickle
import pyarrow as pa

from millpond.formats.memory import ArrowRows
from millpond.formats.scan import Scan, Split
from millpond.physical.stages import (
    Determinism,
    Edge,
    PartRef,
    PartRows,
    Resources,
    SourceInput,
    Stage,
    StageInput,
    Task,
    ToPart,
)
from millpond.physical.steps import Fragment, PythonStep, SqlStep, Step
from millpond.physical.tasks import tasks
from millpond.plan.nodes import PythonCall
from millpond.schema import Schema
from millpond.shuffle.index import ReadRanges
from millpond.shuffle.read import read_part_rows
from millpond.storage import LocalStorage, Range
from millpond.worker import Worker, WorkerOptions, build_worker

X = Schema.of([("x", "BIGINT")])
XP = Schema.of([("x", "BIGINT"), ("p", "UINTEGER")])
SUMS = Schema.of([("n", "BIGINT"), ("total", "BIGINT")])
N_SPLITS, SPLIT_ROWS = 4, 50
ALL = range(N_SPLITS * SPLIT_ROWS)


def numbers(n_splits: int = N_SPLITS) -> SourceInput:
    """0 … 199 in as many splits, which travel inside their tasks."""
    each = len(ALL) // n_splits
    splits = [
        Split(rows=ArrowRows(pa.table({"x": ALL[i * each : (i + 1) * each]})))
        for i in range(n_splits)
    ]
    return SourceInput(Scan("memory", X), tuple(splits))


def python(function: Callable[..., Any], kind: str = "row") -> PythonStep:
    """A step that calls `function`; it travels by value, as a user's script's does."""
    call = PythonCall(cloudpickle.dumps(function), kind, "function", "")
    return PythonStep(call, X, X)


def spread(n: int, *before: Step, by: str = "x", **fields: Any) -> Stage:
    """Stage 0: the numbers, through the steps `before`, spread over `n` partitions."""
    step = SqlStep(f"SELECT x, ({by} % {n})::UINTEGER AS p FROM __s0", XP)
    return Stage(
        0,
        "spread",
        Fragment((*before, step), row_wise=True),
        (numbers(),),
        ToPart(n, "column"),
        X,
        **{"determinism": Determinism.FIXED} | fields,
    )


def spread_at_random(n: int) -> Stage:
    """Stage 0: each attempt puts the numbers into other partitions."""
    return spread(n, by="floor(random() * 1000)::BIGINT", determinism=Determinism.VARIES)


def forward(id: int, before: int, *steps: Step) -> Stage:
    """The rows of a stage, part by part, through `steps`."""
    first = SqlStep("FROM __s0", X)
    fragment = Fragment((first, *steps), row_wise=True)
    return Stage(id, "forward", fragment, (StageInput(before, Edge.FORWARD),), ToPart(), X)


def gather(id: int, before: int, *, edge: Edge = Edge.ONE_TO_ONE, **fields: Any) -> Stage:
    """The rows of each partition as they are."""
    step = SqlStep("SELECT x FROM __s0", X)
    return Stage(
        id, "gather", Fragment((step,)), (StageInput(before, edge),), ToPart(), X, **fields
    )


def one_task(*steps: Step, resources: Resources = Resources()) -> Task:  # noqa: B008
    """A task over the first split."""
    source = SourceInput(numbers().scan, numbers().splits[:1])
    fragment = Fragment(steps or (SqlStep("FROM __s0", X),))
    stage = Stage(9, "one task", fragment, (source,), ToPart(), X, resources=resources)
    (task,) = tasks(stage, {})
    return task


def from_files(ref: PartRef, ranges: Sequence[tuple[int, int]]) -> Sequence[Any]:
    return LocalStorage().read_many([Range(ref.path, at, n) for at, n in ranges])


def rows_of(parts: Sequence[PartRef], read: ReadRanges = from_files) -> list[list[int]]:
    """The numbers in each part, in order."""
    schema = pa.schema([("x", pa.int64())])
    found = []
    for part in parts:
        wanted = PartRows(part.stage, X, 0, part.n_partitions, parts=(part,))
        table = pa.Table.from_batches(read_part_rows(wanted, schema, read), schema)
        found.append(table.column("x").to_pylist())
    return found


def options(folder: Path, name: str = "worker") -> WorkerOptions:
    return WorkerOptions(
        scratch=str(folder / name), parts=str(folder / "parts"), memory_limit_bytes=2**28
    )


def worker(folder: Path) -> Worker:
    return build_worker(options(folder))
