"""The choice of a shape, and the fused one: the whole plan as one DuckDB statement."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from millpond.expr import SortKey, quote
from millpond.formats.parquet import RowGroups
from millpond.formats.scan import FileSlice, Split
from millpond.physical import fragment as f
from millpond.physical.fragment import Pieces
from millpond.physical.splits import with_values
from millpond.physical.stages import (
    Fragment,
    Input,
    Output,
    SourceInput,
    SqlStep,
    Stage,
    ToFile,
    ToMemory,
)
from millpond.plan import nodes as n
from millpond.plan.partitioning import partitioning
from millpond.schema import Schema


@dataclass(frozen=True, slots=True)
class Settings:
    """What planning depends on besides the plan. `versions` goes into fingerprints."""

    split_bytes: int
    footer: Callable[[str], RowGroups]
    sort_key: Callable[[Sequence[SortKey], Schema], str]
    shape: str = "auto"
    staged_only: bool = False  # The runtime is a cluster: nothing can be fused there.
    versions: str = ""
    run: str = ""
    memory_bytes: int = 2**30  # What a process may take.
    durable: bool = False  # Finished tasks are kept for a rerun, so work is worth cutting.


@dataclass(frozen=True, slots=True)
class Physical:
    """Stages in order, the shape, and why it was chosen."""

    stages: tuple[Stage, ...]
    shape: str
    reason: str


def why_staged(node: n.Node, settings: Settings) -> str | None:
    """Why `node` cannot be one statement; None if it can."""
    if settings.shape == "staged":
        return "shape='staged'"
    if settings.staged_only:
        return "the runtime is a cluster"
    return next((why for at in _all(node) if (why := _observer(at))), None)


def _observer(node: n.Node) -> str | None:
    match node:
        case n.PythonBatches(call=call):
            return f"{call.name} is a Python function"
        case n.Project(udfs=(udf, *_)) | n.Filter(udfs=(udf, *_)):
            return f"{udf.name} is a Python function"
        case n.SqlEngine() if any(partitioning(i).n != 1 for i in node.inputs):
            return "partial_sql observes partitions"
        case n.Sort(partial=True) if partitioning(node.input).n != 1:
            return "partial_sort observes partitions"
        case n.DataSink() if partitioning(node.input).n not in (None, 1):
            return f"{partitioning(node.input).n} files are asked for"
        case n.GivenPartition():
            return "partition numbers are given, and must be checked"
    return None


def _all(node: n.Node) -> list[n.Node]:
    """Every node once, however many read it; those that read come before those they read."""
    found: dict[int, n.Node] = {}
    waiting = [node]
    while waiting:
        at = waiting.pop()
        if id(at) not in found:
            found[id(at)] = at
            waiting += reversed(n.inputs_of(at))
    return list(found.values())


def fused(node: n.Node, settings: Settings) -> Stage:
    """One stage of one task: the statement that computes `node` whole."""
    statement = Statement(node)
    output: Output
    if isinstance(node, n.DataSink):
        output, schema, sql = to_file(node), node.schema, statement.query(node.input)
    else:
        output, schema = ToMemory(), f.plain(node.schema)
        sql = f.cast(statement.query(node), node.schema, schema, False)
    fragment = Fragment((SqlStep(f.text(statement.whole(sql)), schema),))
    inputs = tuple(statement.inputs)
    return Stage(0, "fused", fragment, inputs, output, schema, run=settings.run)


class Statement:
    """Queries nest; a node that several read is written once, as a common table expression."""

    def __init__(self, node: n.Node) -> None:
        self.inputs: list[Input] = []
        self._ctes: list[str | int] = []
        self._names: dict[int, str] = {}
        self._readers = Counter(id(i) for at in _all(node) for i in n.inputs_of(at))

    def query(self, at: n.Node) -> Pieces:
        if isinstance(at, n.DataSource):
            split = Split(tuple(FileSlice(file.path) for file in at.files), at.rows)
            return self._source(at, with_values(at, (split,)))
        if isinstance(at, n.Kept):
            return self._source(at.source, at.splits)
        if self._readers[id(at)] < 2:
            return self._render(at)
        if id(at) not in self._names:
            sql = self._render(at)
            name = self._names[id(at)] = quote.name(f"__millpond_shared{len(self._names)}")
            self._ctes += [", " if self._ctes else "WITH ", f"{name} AS (\n", *sql, "\n)"]
        return (f"FROM {self._names[id(at)]}",)

    def whole(self, sql: Pieces) -> Pieces:
        return (*self._ctes, "\nSELECT * FROM (\n", *sql, "\n)") if self._ctes else sql

    def _render(self, at: n.Node) -> Pieces:
        return f.render(at, tuple(self.query(i) for i in n.inputs_of(at)))

    def _source(self, at: n.DataSource, splits: tuple[Split, ...]) -> Pieces:
        self.inputs.append(SourceInput(at.scan, splits, broadcast=True))
        return f.slot(len(self.inputs) - 1)


def to_file(node: n.DataSink, count: int | None = None) -> ToFile:
    if node.name:
        return ToFile(node.format, node.path, node.name, node.options, count)
    folder, _, name = node.path.rpartition("/")
    return ToFile(node.format, folder or ".", name, node.options)
