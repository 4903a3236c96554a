"""Plan → stages, cut where partitioning must change; and the choice of a shape.

Row-wise and partition-wise nodes join the fragment of their input. Equi-joins and
groups exchange by their keys. What needs all rows at once runs whole, on one task,
until it has a better way; `explain()` says which.
"""

from dataclasses import replace

from millpond.expr import SortKey, quote
from millpond.physical import fragment as f
from millpond.physical.cuts import Cuts
from millpond.physical.fused import fused, to_file
from millpond.physical.identity import identified
from millpond.physical.joining import aggregate, distinct, grouped, join
from millpond.physical.one_pass import one_pass
from millpond.physical.pipe import (
    FIXED,
    ONE_CPU,
    VARIES,
    Pipe,
    called,
    clash,
    loosened,
    looser,
    ordered,
    steps_of,
    titled,
    varies,
    word,
)
from millpond.physical.records import record_sort, record_stages
from millpond.physical.shape import OnlyNode, Physical, Settings, why_staged
from millpond.physical.shuffling import random_order, sample
from millpond.physical.sorted_write import files_in_order, ranges_in_order
from millpond.physical.sorting import FEW_ROWS, first_rows, sort
from millpond.physical.splits import can_cut, even_splits, finer_splits, source_splits
from millpond.physical.stages import (
    ConcatInput,
    Edge,
    Resources,
    RowsInput,
    ShardsInput,
    SourceInput,
    ToMemory,
    ToPart,
)
from millpond.physical.steps import PythonStep
from millpond.physical.wide import row_bytes, why_wide
from millpond.plan import nodes as n
from millpond.plan.depth import room_for
from millpond.plan.fingerprint import source_identity
from millpond.plan.partitioning import partitioning
from millpond.plan.sinks import shard_size
from millpond.plan.wire import plain

# Of the rows of a training set that wait for their shards, in the page cache: of a small set
# none has to come from the disk again, and for a large one the kernel need not look for pages.
_CACHED_BYTES = 256 << 20

ROWS_EACH = 50_000  # For a function of one row: about 50 ms of work, for 2 ms of overhead.


def plan_stages(node: n.Node, settings: Settings) -> Physical:
    """The stages that compute `node`: one fused statement where that is possible."""
    with room_for(node):
        planned = _planned(node, settings)
        if planned.shape == "fused" and isinstance(settings.cluster, OnlyNode):
            return _on(settings.cluster, planned)
        return planned


def _on(there: OnlyNode, planned: Physical) -> Physical:
    """The one task of a plan, for a node of a cluster: it keeps no rows in this process."""
    (stage,) = planned.stages
    output = ToPart() if isinstance(stage.output, ToMemory) else stage.output
    stage = replace(stage, output=output, resources=Resources(whole_node=True))
    room = f"{there.cpus} CPUs and {there.memory_bytes / 1e9:,.1f} GB"
    return replace(
        planned, stages=(stage,), reason=f"{planned.reason}; the cluster's only node has {room}"
    )


def _planned(node: n.Node, settings: Settings) -> Physical:
    reason = why_staged(node, settings) or why_wide(node, settings) or None
    if reason is None and (stage := record_sort(node, settings)):
        why, only = "records of fixed width, sorted without SQL", stage
        return Physical((identified(only, node, settings.versions),), "fused", why)
    if stages := record_stages(node, settings):
        why = reason or "tasks that a rerun finds again, or files of an object store"
        return Physical(stages, "staged", f"{why}; records of fixed width, sorted without SQL")
    if reason is None and (stage := ranges_in_order(node, settings)):
        only = identified(stage, node, settings.versions)
        return Physical((only,), "fused", "a sort of more than memory holds, range by range")
    if reason is None:
        why, only = "one machine, and nothing observes partitions", fused(node, settings.run)
        only = files_in_order(only, node, settings)
        return Physical((identified(only, node, settings.versions),), "fused", why)
    stage, why = one_pass(node, settings)
    if stage is not None:
        return Physical((stage,), "fused", why)
    reason = f"{reason}{why}"
    planner = _Planner(settings)
    planner.finish(node)
    return Physical(tuple(planner.cuts.stages), "staged", reason)


class _Planner:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.cuts = Cuts(settings)
        self._shared: dict[int, tuple[n.Node, Pipe]] = {}
        self._readers: dict[int, int] = {}
        self._takes_few = False  # Below a limit, where most of the work is not wanted.

    def finish(self, node: n.Node) -> None:
        self._count(node)
        if isinstance(node, n.DataSink) and node.format == "dataset":
            self.cuts.close(self._cut_into_shards(node), to_file(node), "write")
        elif isinstance(node, n.DataSink):
            self.cuts.close(self._lower(node.input), to_file(node), "write")
        else:
            pipe = self._lower(node)
            schema = plain(node.schema)
            sql = f.cast(pipe.sql, node.schema, schema, False)
            self.cuts.close(replace(pipe, sql=sql, schema=schema), ToPart(), "collect")

    def _cut_into_shards(self, node: n.DataSink) -> Pipe:
        """Rows in their order, and no partitions: parts first, to know how many there are."""
        pipe = ordered(self._lower(node.input))
        output = ToPart(sized=True, cached_bytes=_CACHED_BYTES // max(1, pipe.n))
        stage = self.cuts.close(pipe, output, "hand over")
        schema = plain(node.schema)
        read = self.cuts.read(stage, Edge.FORWARD, pipe, pipe.n)
        return replace(read, inputs=(ShardsInput(stage, shard_size(node)),), schema=schema,
                       sql=f.cast(read.sql, read.schema, schema, False))  # fmt: skip

    def _count(self, node: n.Node) -> None:
        self._readers[id(node)] = self._readers.get(id(node), 0) + 1
        if self._readers[id(node)] == 1:
            for i in n.inputs_of(node):
                self._count(i)

    def _lower(self, node: n.Node) -> Pipe:
        """The pipe of a node; a node that several read is computed once, in a stage."""
        if self._readers[id(node)] == 1 or isinstance(node, n.DataSource | n.Kept):
            return self._pipe(node)
        if id(node) not in self._shared:
            pipe = self._pipe(node)
            stage = self.cuts.close(pipe, ToPart(), "shared")
            self._shared[id(node)] = node, self.cuts.read(stage, Edge.FORWARD, pipe, pipe.n)
        return self._shared[id(node)][1]

    def _pipe(self, node: n.Node) -> Pipe:
        match node:
            case n.DataSource():
                return self._source(node, None)
            case n.Kept():
                return self._kept(node)
            case n.Project() | n.Filter():
                return self._row_wise(node, self._lower(node.input))
            case n.PythonBatches():
                return self._python(node)
            case n.Limit(n.Sort(partial=False) as below, count) if (
                count <= FEW_ROWS and self._readers[id(below)] == 1
            ):
                return first_rows(self.cuts, node, below, self._to_sort(below))
            case n.Limit():
                self._takes_few = _is_row_wise(node.input)
                pipe = self._lower(node.input)
                self._takes_few = False
                pipe = pipe.then(f.render(node, (pipe.sql,)), node.schema, "limit")
                return self.cuts.whole(node, (pipe,)) if pipe.n > 1 else ordered(pipe)
            case n.Sort(partial=True):
                pipe = self._to_sort(node)
                return pipe.then(f.render(node, (pipe.sql,)), node.schema, "partial sort")
            case n.Sort():
                return sort(self.cuts, node, self._to_sort(node))
            case n.RandomPartition():
                return random_order(self.cuts, node, self._lower(node.input))
            case n.Sample():
                return sample(self.cuts, node, self._lower(node.input))
            case n.EvenPartition():
                return self._even(node)
            case n.HashPartition():
                pipe = self._lower(node.input)
                types = tuple("" for _ in node.keys)
                return self.cuts.exchange(pipe, f.hash_partition(node.keys, types, node.n), node.n,
                                      f"hash by {', '.join(node.keys)}", node.keys)  # fmt: skip
            case n.GivenPartition():
                pipe = self._lower(node.input)
                number = f"({node.expression.sql}\n)::BIGINT"
                if varies(node):
                    pipe = replace(pipe, determinism=VARIES)
                return self.cuts.exchange(pipe, number, node.n, f"by {node.expression.sql}", ())
            case n.Aggregate() if node.keys:
                return aggregate(self.cuts, node, self._lower(node.input))
            case n.Distinct() if node.columns:
                return distinct(self.cuts, node, self._lower(node.input))
            case n.Join():
                return join(self.cuts, node, self._lower(node.left), self._lower(node.right))
            case n.Union():
                return self._union(node)
            case n.SqlEngine():
                return self._partial(node)
            case _:
                return self.cuts.whole(node, tuple(self._lower(i) for i in n.inputs_of(node)))

    def _to_sort(self, node: n.Sort) -> Pipe:
        pipe = self._lower(node.input)
        return replace(pipe, determinism=VARIES) if varies(node) else pipe

    # ---- sources and row-wise work ---------------------------------------------------

    def _source(self, node: n.DataSource, count: int | None) -> Pipe:
        footer, target = self.settings.footer, self.settings.split_bytes
        splits = (
            source_splits(node, target, footer)
            if count is None
            else even_splits(node, count, footer)
        )
        width = row_bytes(node, self.settings)
        source = SourceInput(node.scan, splits, identity=source_identity(node), row_bytes=width)
        return Pipe(
            (source,), f.slot(0), node.schema, len(splits), title=f"read {node.scan.format}",
            row_wise=True,
        )  # fmt: skip

    def _kept(self, node: n.Kept) -> Pipe:
        source = SourceInput(node.source.scan, node.splits, identity=source_identity(node.source))
        return Pipe((source,), f.slot(0), node.schema, len(node.splits), title="read kept rows",
                    row_wise=True)  # fmt: skip

    def _python(self, node: n.PythonBatches) -> Pipe:
        call = node.call
        before = node.input
        if call.kind == "group":
            before = n.Sort(before, tuple(SortKey(quote.name(k)) for k in call.group_keys), True)
            pipe = grouped(self.cuts, node.input, self._lower(node.input), call.group_keys, None)
            pipe = pipe.then(f.render(before, (pipe.sql,)), pipe.schema, "sort groups")
        else:
            pipe = self._cut_finer(call, before) or self._lower(before)
        wanted = Resources(*call.needs)
        if wanted != pipe.resources:
            if pipe.resources != ONE_CPU or wanted.gpus:
                pipe = self.cuts.handed_over(pipe)
            pipe = replace(pipe, resources=wanted)
        given, gives = plain(pipe.schema), plain(node.schema)
        pipe = replace(pipe, sql=f.cast(pipe.sql, pipe.schema, given, False), schema=given)
        return replace(
            pipe,
            steps=(*steps_of(pipe), PythonStep(call, given, gives, node.earlier)),
            sql=f.cast(f.slot(0), gives, node.schema, False),
            schema=node.schema,
            udfs=(),
            title=titled(pipe.title, ", ".join(each.name for each in node.calls)),
            determinism=VARIES if varies(node) else pipe.determinism,
            row_wise=pipe.row_wise and call.kind not in ("partition", "group"),
        )

    def _cut_finer(self, call: n.PythonCall, node: n.Node) -> Pipe | None:
        """The source below a function, cut so that all processors call it."""
        source = _row_wise_source(node)
        if source is None or self._takes_few or call.kind in ("partition", "group"):
            return None
        at: n.Node = node
        while isinstance(at, n.Project | n.Filter):
            if self._readers[id(at)] > 1:
                return None
            at = at.input
        settings = self.settings
        rows_each = call.batch_size if call.kind == "batch" else ROWS_EACH
        count = finer_splits(source, settings.split_bytes, rows_each, settings.footer)
        return self._replanned(node, source, count) if count else None

    def _even(self, node: n.EvenPartition) -> Pipe:
        source = _row_wise_source(node.input)
        cut = source is not None and can_cut(source, node.n, self.settings.footer)
        if source is not None and cut and not node.by_rows and self._readers[id(source)] == 1:
            return self._replanned(node.input, source, node.n)
        pipe = ordered(self._lower(node.input))
        stage = self.cuts.close(pipe, ToPart(), "hand over")
        return replace(self.cuts.read(stage, Edge.FORWARD, pipe, node.n),
                       inputs=(RowsInput(stage, node.n),))  # fmt: skip

    def _replanned(self, node: n.Node, source: n.DataSource, count: int) -> Pipe:
        if node is source:
            return self._source(source, count)
        assert isinstance(node, n.Project | n.Filter)
        return self._row_wise(node, self._replanned(node.input, source, count))

    def _row_wise(self, node: n.Project | n.Filter, pipe: Pipe) -> Pipe:
        if clash(called(pipe), node.udfs):
            pipe = self.cuts.handed_over(pipe)
        done = pipe.then(f.render(node, (pipe.sql,)), node.schema, word(node))
        udfs = tuple(dict.fromkeys((*pipe.udfs, *node.udfs)))
        determinism = VARIES if varies(node) else pipe.determinism
        placed = pipe.placed if isinstance(node, n.Filter) else None
        return replace(
            done, determinism=determinism, udfs=udfs, row_wise=pipe.row_wise, placed=placed
        )

    # ---- several inputs --------------------------------------------------------------

    def _union(self, node: n.Union) -> Pipe:
        stages, determinism, total = [], FIXED, 0
        for at in node.inputs:
            pipe = self._lower(at)
            items = ", ".join(
                f"{quote.name(c.name)}::{c.type} AS {quote.name(c.name)}" for c in node.schema
            )
            pipe = pipe.then(f.over(f"SELECT {items}", pipe.sql), node.schema, "union")
            stages.append(self.cuts.close(pipe, ToPart(), "union"))
            determinism, total = looser(determinism, pipe.determinism), total + pipe.n
        return Pipe((ConcatInput(tuple(stages)),), f.slot(0), node.schema, total,
                    determinism=determinism, title="union")  # fmt: skip

    def _partial(self, node: n.SqlEngine) -> Pipe:
        pipes = tuple(self._lower(i) for i in node.inputs)
        count = max((p.n for p, i in zip(pipes, node.inputs, strict=True)
                     if partitioning(i).n != 1), default=1)  # fmt: skip
        pipes = tuple(p if p.n == count else self.cuts.gathered(p, count) for p in pipes)
        if len(pipes) > 1:
            pipes = self.cuts.pinned(pipes)
        return loosened(self.cuts.together(node, pipes, "partial sql"))


def _is_row_wise(node: n.Node) -> bool:
    """Does each row come from one of the source's, so that a few need only a few?"""
    while isinstance(node, n.Project | n.Filter | n.PythonBatches):
        node = node.input
    return isinstance(node, n.DataSource)


def _row_wise_source(node: n.Node) -> n.DataSource | None:
    while isinstance(node, n.Project | n.Filter):
        node = node.input
    return node if isinstance(node, n.DataSource) else None
