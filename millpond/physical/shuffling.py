"""Random order and samples as stages: a hash of each row's identity decides.

The hash is uniform, so its ranges are cut without a sample; each is sorted by itself.
"""

from dataclasses import replace

from millpond.physical import fragment as f
from millpond.physical.cuts import Cuts
from millpond.physical.pipe import FIXED, VARIES, Pipe, ordered
from millpond.physical.shape import Settings
from millpond.physical.splits import first_rows
from millpond.physical.stages import Edge, SourceInput, StageInput, ToPart
from millpond.physical.steps import ShuffleStep
from millpond.physical.wide import told, wide
from millpond.plan import nodes as n
from millpond.plan.partitioning import keeps_order, partitioning
from millpond.plan.wire import wire
from millpond.schema import Field, Schema

_PARTITIONS_IN_MEMORY = 32  # Of bytes as they lie in files.
_LEAST_SEGMENT_BYTES = 256 << 10  # See docs/scale.md.


def random_order(cuts: Cuts, node: n.RandomPartition, pipe: Pipe) -> Pipe:
    """All rows by the hash of their identity: range by range of hashes."""
    given, found = partitioning(node.input).n, wide(node, cuts.settings)
    if pipe.n == 1 and given in (None, 1) and not found:
        return pipe.then(f.render(node, (pipe.sql,)), node.schema, "random shuffle")
    pipe = _identified(cuts, node.input, told(pipe, found) if found else pipe)
    count = given or many(pipe.n, cuts.settings)
    if found and not given:
        count = max(count, found.ranges(cuts.settings))
    number = f"((({f.random_key(node.seed)} >> 32) * {count}) >> 32)::UINTEGER"
    pipe = cuts.exchange(pipe, number, count, "range of random order", (), auto=given is None)
    travelled = wire(node.schema)
    key, sql = f.random_key(node.seed), f.text(f.shuffled(f.slot(0), node))
    return replace(
        pipe.then(f.cast(f.slot(0), travelled, node.schema, False), node.schema, "random shuffle"),
        steps=(ShuffleStep(key, sql, travelled),),
        # Whatever order they came in: identities are unique.
        determinism=VARIES if pipe.determinism is VARIES else FIXED,
    )


def many(n_splits: int, settings: Settings) -> int:
    """So many that a task can hold its rows, each a few times as large as in its file.

    But not so many that their segments in a part become small; tasks take small ones together.
    """
    each = max(1, settings.memory_bytes // _PARTITIONS_IN_MEMORY)
    most = max(1, settings.split_bytes // _LEAST_SEGMENT_BYTES)
    return max(n_splits, min(most, n_splits * -(-settings.split_bytes // each)))


def sample(cuts: Cuts, node: n.Sample, pipe: Pipe) -> Pipe:
    """A filter on the hash of identities: no row moves for it."""
    if pipe.n == 1:
        return pipe.then(f.render(node, (pipe.sql,)), node.schema, "sample")
    pipe = _identified(cuts, node.input, pipe)
    return pipe.then(f.sampled(pipe.sql, node), node.schema, "sample")


def _identified(cuts: Cuts, node: n.Node, pipe: Pipe) -> Pipe:
    """The rows with their identity as a last column."""
    if keeps_order(node):
        return _numbered(cuts, node, ordered(pipe))
    count, names = pipe.n, node.schema.names
    number = f"(((hash(__in0) >> 32) * {count}) >> 32)::UINTEGER"  # Equal rows meet.
    pipe = cuts.exchange(pipe, number, count, "hash of rows", names, auto=True)
    schema = Schema((*node.schema.fields, Field(f.ORDINAL_NAME, "UBIGINT")))
    return pipe.then(f.identified(pipe.sql, node), schema, "identity")


def _numbered(cuts: Cuts, node: n.Node, pipe: Pipe) -> Pipe:
    """The rows with their number in the whole input as a last column.

    Where footers tell how many rows each split has, they are numbered as they are read;
    else the rows wait in parts until those before them are counted.
    """
    schema = Schema((*node.schema.fields, Field(f.ORDINAL_NAME, "BIGINT")))
    if isinstance(node, n.DataSource) and isinstance(source := pipe.inputs[0], SourceInput):
        numbers = first_rows(node, source.splits, cuts.settings.footer)
        if numbers is not None:
            return replace(pipe, inputs=(replace(source, first_rows=numbers),), schema=schema)
    stage = cuts.close(pipe, ToPart(), "count")
    read = cuts.read(stage, Edge.FORWARD, pipe, pipe.n)
    sql = f.cast(f.slot(0), cuts.stages[stage].schema, pipe.schema, True)
    return replace(
        read, inputs=(StageInput(stage, Edge.FORWARD, numbered=True),), sql=sql, schema=schema
    )
