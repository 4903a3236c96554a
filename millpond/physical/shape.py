"""The choice of a shape: one task for the whole plan, or stages."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from millpond.expr import SortKey
from millpond.formats.parquet import RowGroups
from millpond.physical.fused import all_nodes, functions_in_line
from millpond.physical.stages import Stage
from millpond.plan import nodes as n
from millpond.plan.partitioning import partitioning
from millpond.schema import Schema

# DuckDB sorts whole rows: past the size of so many splits a partition at a time is faster, and
# needs less memory; see benchmarks/random_shuffle.py.
TWO_PASSES_SPLITS = 2
# Of input, for each CPU: what the only node of a cluster has done within a minute or so. A lost
# worker costs all of it, and of more, nodes that come meanwhile would take their share.
WHOLE_BYTES_PER_CPU = 4 << 30


def never(call: n.PythonCall) -> bool:
    """No function is known to be light."""
    return False


@dataclass(frozen=True, slots=True)
class OnlyNode:
    """That of a cluster: a task may have all of it. Others may join, unless it is our own."""

    cpus: int
    memory_bytes: int
    may_grow: bool


@dataclass(frozen=True, slots=True)
class Settings:
    """What planning depends on besides the plan. `versions` goes into fingerprints.

    `cluster` is where tasks run, if not on this machine: its only node, or else why no task
    may be a whole plan.
    """

    split_bytes: int
    footer: Callable[[str], RowGroups]
    sort_key: Callable[[Sequence[SortKey], Schema], str]
    shape: str = "auto"
    cluster: OnlyNode | str | None = None
    versions: str = ""
    run: str = ""
    memory_bytes: int = 2**30  # What a process may take.
    durable: bool = False  # Finished tasks are kept for a rerun, so work is worth cutting.
    is_light: Callable[[n.PythonCall], bool] = never


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
    if isinstance(settings.cluster, str):
        return settings.cluster
    if settings.cluster and (why := _why_not_whole(node, settings.cluster, settings)):
        return why
    found = all_nodes(node)
    if settings.shape == "auto":
        for at in found:
            most_bytes = TWO_PASSES_SPLITS * settings.split_bytes
            if isinstance(at, n.RandomPartition) and read_bytes(at.input) > most_bytes:
                return "a random shuffle of much data is cut into cache-sized pieces"
    is_light = never if settings.cluster else settings.is_light  # All its processes call them.
    why = next((why for at in found if (why := _observer(at, is_light))), None)
    functions = [at for at in found if isinstance(at, n.PythonBatches)]
    if why is None and len(functions_in_line(node)) != len(functions):
        return f"{functions[0].call.name} is a Python function beside other inputs"
    return why


def _why_not_whole(node: n.Node, there: OnlyNode, settings: Settings) -> str | None:
    """Why the only node of a cluster should not do all of `node` by one task."""
    found = (at.source if isinstance(at, n.Kept) else at for at in all_nodes(node))
    sources = [at for at in found if isinstance(at, n.DataSource)]
    carried = sum(at.rows.table.nbytes for at in sources if at.rows is not None)
    if carried > settings.split_bytes:
        return f"{carried / 1e6:,.0f} MB of rows go to the cluster in pieces"
    in_files = sum(file.size_bytes for at in sources for file in at.files)
    if settings.shape == "auto" and there.may_grow and in_files > WHOLE_BYTES_PER_CPU * there.cpus:
        return f"{in_files / 1e9:,.1f} GB is work for nodes that may join"
    return None


def read_bytes(node: n.Node) -> int:
    """Of the files below `node`."""
    sources = [at for at in all_nodes(node) if isinstance(at, n.DataSource)]
    return sum(file.size_bytes for source in sources for file in source.files)


def _observer(node: n.Node, is_light: Callable[[n.PythonCall], bool]) -> str | None:
    match node:
        case n.PythonBatches(call=call) if (
            call.kind == "batch"
            and call.needs == (1, 0, None)
            and partitioning(node.input).n in (None, 1)
            and is_light(call)
        ):
            return None
        case n.PythonBatches(call=call):
            return f"{call.name} is a Python function"
        case n.Project(udfs=(udf, *_)) | n.Filter(udfs=(udf, *_)):
            return f"{udf.name} is a Python function"
        case n.SqlEngine() if any(partitioning(i).n != 1 for i in node.inputs):
            return "partial_sql observes partitions"
        case n.Sort(partial=True) if partitioning(node.input).n != 1:
            return "partial_sort observes partitions"
        case n.DataSink(format="dataset"):
            return "shards are cut when rows and bytes are known"
        case n.DataSink() if partitioning(node.input).n not in (None, 1):
            return f"{partitioning(node.input).n} files are asked for"
        case n.GivenPartition():
            return "partition numbers are given, and must be checked"
    return None
