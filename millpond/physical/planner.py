"""Plan → stages, cut where partitioning must change; and the choice of a shape.

Row-wise and partition-wise nodes join the fragment of their input. Equi-joins and
groups exchange by their keys. What needs all rows at once runs whole, on one task,
until it has a better way; `explain()` says which.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from millpond.expr import SortKey, quote
from millpond.physical import fragment as f
from millpond.physical.fragment import Pieces
from millpond.physical.identity import stage_fingerprint
from millpond.physical.records import record_sort
from millpond.physical.shape import Physical, Settings, fused, to_file, why_staged
from millpond.physical.splits import can_cut, even_splits, finer_splits, source_splits
from millpond.physical.stages import (
    ConcatInput,
    Determinism,
    Edge,
    Fragment,
    Input,
    Output,
    PythonStep,
    Resources,
    RowsInput,
    SourceInput,
    SqlStep,
    Stage,
    StageInput,
    Step,
    ToPart,
)
from millpond.plan import nodes as n
from millpond.plan.fingerprint import source_identity
from millpond.plan.nodes import Udf
from millpond.plan.partitioning import partitioning
from millpond.schema import Field, Schema

PID, KEY = "__millpond_pid", "__millpond_key"
ROWS_EACH = 50_000  # For a function of one row: about 50 ms of work, for 2 ms of overhead.
SAMPLED_TASKS, SAMPLED_ROWS = 16, 1_000
FEW_ROWS = 10_000  # Of a sort: found by each task without moving all rows.
ONE_CPU = Resources()
FIXED, ANY_ORDER, VARIES = Determinism.FIXED, Determinism.ANY_ORDER, Determinism.VARIES


@dataclass(frozen=True, slots=True)
class Pipe:
    """Work that is not cut into a stage yet: inputs, closed steps, and a query on top."""

    inputs: tuple[Input, ...]
    sql: Pieces
    schema: Schema
    n: int
    steps: tuple[Step, ...] = ()
    determinism: Determinism = FIXED
    resources: Resources = ONE_CPU
    title: str = ""
    udfs: tuple[Udf, ...] = ()  # Functions that `sql` calls.

    def then(self, sql: Pieces, schema: Schema, title: str) -> "Pipe":
        return replace(self, sql=sql, schema=schema, title=_titled(self.title, title))


def plan_stages(node: n.Node, settings: Settings) -> Physical:
    """The stages that compute `node`: one fused statement where that is possible."""
    reason = why_staged(node, settings)
    if reason is None and (stage := record_sort(node, settings)):
        return Physical((stage,), "fused", "records of fixed width, sorted without SQL")
    if reason is None:
        why = "one machine, and nothing observes partitions"
        return Physical((fused(node, settings),), "fused", why)
    planner = _Planner(settings)
    planner.finish(node)
    return Physical(tuple(planner.stages), "staged", reason)


class _Planner:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.stages: list[Stage] = []
        self._shared: dict[int, tuple[n.Node, Pipe]] = {}
        self._readers: dict[int, int] = {}
        self._takes_few = False  # Below a limit, where most of the work is not wanted.

    def finish(self, node: n.Node) -> None:
        self._count(node)
        if isinstance(node, n.DataSink):
            self._close(self._lower(node.input), to_file(node), "write")
        else:
            pipe = self._lower(node)
            schema = f.plain(node.schema)
            sql = f.cast(pipe.sql, node.schema, schema, False)
            self._close(replace(pipe, sql=sql, schema=schema), ToPart(), "collect")

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
            stage = self._close(pipe, ToPart(), "shared")
            self._shared[id(node)] = node, self._read(stage, Edge.FORWARD, pipe, pipe.n)
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
            case n.Limit(n.Sort(partial=False) as sort, count) if (
                count <= FEW_ROWS and self._readers[id(sort)] == 1
            ):
                return self._top(node, sort)
            case n.Limit():
                self._takes_few = _is_row_wise(node.input)
                pipe = self._lower(node.input)
                self._takes_few = False
                pipe = pipe.then(f.render(node, (pipe.sql,)), node.schema, "limit")
                return self._whole(node, (pipe,)) if pipe.n > 1 else _ordered(pipe)
            case n.Sort(partial=True):
                pipe = self._lower(node.input)
                return pipe.then(f.render(node, (pipe.sql,)), node.schema, "partial sort")
            case n.Sort():
                return self._sort(node)
            case n.EvenPartition():
                return self._even(node)
            case n.HashPartition():
                pipe = self._lower(node.input)
                types = tuple("" for _ in node.keys)
                return self._exchange(pipe, f.hash_partition(node.keys, types, node.n), node.n,
                                      f"hash by {', '.join(node.keys)}", node.keys)  # fmt: skip
            case n.GivenPartition():
                pipe = self._lower(node.input)
                number = f"({node.expression.sql}\n)::BIGINT"
                if node.expression.varies:
                    pipe = replace(pipe, determinism=VARIES)
                return self._exchange(pipe, number, node.n, f"by {node.expression.sql}", ())
            case n.Aggregate() if node.keys:
                return self._aggregate(node)
            case n.Join() if node.equal and node.how != "cross":
                return self._join(node)
            case n.Union():
                return self._union(node)
            case n.SqlEngine():
                return self._partial(node)
            case _:
                return self._whole(node, tuple(self._lower(i) for i in n.inputs_of(node)))

    # ---- sources and row-wise work ---------------------------------------------------

    def _source(self, node: n.DataSource, count: int | None) -> Pipe:
        footer, target = self.settings.footer, self.settings.split_bytes
        splits = (
            source_splits(node, target, footer)
            if count is None
            else even_splits(node, count, footer)
        )
        source = SourceInput(node.scan, splits, identity=source_identity(node))
        return Pipe(
            (source,), f.slot(0), node.schema, len(splits), title=f"read {node.scan.format}"
        )

    def _kept(self, node: n.Kept) -> Pipe:
        source = SourceInput(node.source.scan, node.splits, identity=source_identity(node.source))
        return Pipe((source,), f.slot(0), node.schema, len(node.splits), title="read kept rows")

    def _python(self, node: n.PythonBatches) -> Pipe:
        call = node.call
        before = node.input
        if call.kind == "group":
            before = n.Sort(before, tuple(SortKey(quote.name(k)) for k in call.group_keys), True)
            pipe = self._grouped(node.input, call.group_keys, None)
            pipe = pipe.then(f.render(before, (pipe.sql,)), pipe.schema, "sort groups")
        else:
            pipe = self._cut_finer(call, before) or self._lower(before)
        wanted = Resources(call.cpus, call.gpus)
        if wanted != pipe.resources:
            if pipe.resources != ONE_CPU or wanted.gpus:
                stage = self._close(pipe, ToPart(), "hand over")
                pipe = self._read(stage, Edge.FORWARD, pipe, pipe.n)
            pipe = replace(pipe, resources=wanted)
        given, gives = f.plain(pipe.schema), f.plain(node.schema)
        pipe = replace(pipe, sql=f.cast(pipe.sql, pipe.schema, given, False), schema=given)
        return replace(
            pipe,
            steps=(*_steps(pipe), PythonStep(call, given, gives)),
            sql=f.cast(f.slot(0), gives, node.schema, False),
            schema=node.schema,
            udfs=(),
            title=_titled(pipe.title, call.name),
            determinism=pipe.determinism if call.deterministic else VARIES,
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

    # ---- moving rows -----------------------------------------------------------------

    def _exchange(
        self, pipe: Pipe, number: str, count: int, title: str, keys: Sequence[str]
    ) -> Pipe:
        """Write every row of `pipe` to the partition that the expression `number` gives."""
        types = {f.name: f.type for f in pipe.schema}
        floats = any(types.get(key) in ("FLOAT", "DOUBLE") for key in keys)
        if pipe.determinism is ANY_ORDER and floats:
            # A float sum may differ in its last bit, and so in its partition.
            pipe = replace(pipe, determinism=VARIES)
        before = replace(pipe, sql=f.with_column(pipe.sql, number, PID))
        stage = self._close(before, ToPart(count, "column"), title)
        return self._read(stage, Edge.ONE_TO_ONE, pipe, count)

    def _grouped(self, node: n.Node, keys: tuple[str, ...], count: int | None) -> Pipe:
        """The rows of `node` with equal `keys` in one partition; moved only if they are not."""
        pipe = self._lower(node)
        have = partitioning(node)
        if pipe.n == 1 or (have.keys and set(have.keys) <= set(keys)):
            return pipe
        count = count or pipe.n
        number = f.hash_partition(keys, tuple("" for _ in keys), count)
        return self._exchange(pipe, number, count, f"hash by {', '.join(keys)}", keys)

    def _aggregate(self, node: n.Aggregate) -> Pipe:
        pipe = self._grouped(node.input, node.keys, node.n)
        pipe = pipe.then(f.render(node, (pipe.sql,)), node.schema, "group")
        return _loosened(pipe, varies=node.expression.varies)

    def _join(self, node: n.Join) -> Pipe:
        left, right = self._lower(node.left), self._lower(node.right)
        count = max(left.n, right.n)
        if count > 1:
            types = tuple(
                _common(node.left.schema.field(a, "join").type,
                        node.right.schema.field(b, "join").type)
                for a, b in node.equal
            )  # fmt: skip
            if any(kind is None for kind in types):
                return self._whole(node, (left, right))
            known = tuple(kind or "" for kind in types)
            sides = [tuple(a for a, _ in node.equal), tuple(b for _, b in node.equal)]
            left, right = (
                self._placed(at, pipe, keys, known, count)
                for at, pipe, keys in zip(
                    (node.left, node.right), (left, right), sides, strict=True
                )
            )
        return _loosened(self._together(node, (left, right), "join"))

    def _top(self, node: n.Limit, sort: n.Sort) -> Pipe:
        """The first few rows in order: each task finds its own, and no others move.

        Ties stay in input order: a task's rows come sorted, and tasks in order.
        """

        def top(pipe: Pipe) -> Pipe:
            sql = f.render(node, (f.render(sort, (pipe.sql,)),))
            return _ordered(pipe.then(sql, node.schema, f"first {node.n} by {_keys(sort)}"))

        pipe = top(self._lower(sort.input))
        return pipe if pipe.n == 1 else top(self._gathered(pipe, 1))

    def _placed(
        self, at: n.Node, pipe: Pipe, keys: tuple[str, ...], kinds: tuple[str, ...], count: int
    ) -> Pipe:
        """The rows of `at` by hash of the keys as `kinds`; rows that lie so already stay."""
        have = partitioning(at)
        if pipe.n == count and (have.n, have.keys, have.types) == (count, keys, kinds):
            return pipe
        number = f.hash_partition(keys, kinds, count)
        return self._exchange(pipe, number, count, f"hash by {', '.join(keys)}", keys)

    def _sort(self, node: n.Sort) -> Pipe:
        pipe = self._lower(node.input)
        count = node.n or partitioning(node.input).n or pipe.n
        if pipe.n == 1 and count == 1:
            return pipe.then(f.render(node, (pipe.sql,)), node.schema, "sort")
        key = self.settings.sort_key(node.keys, node.schema)
        bounds = self._bounds(pipe, key, count)
        keyed = f.with_column(pipe.sql, key, KEY)
        before = replace(
            pipe,
            sql=keyed,
            inputs=(*pipe.inputs, StageInput(bounds, Edge.ALL)),
            determinism=_looser(pipe.determinism, self.stages[bounds].determinism),
        )
        stage = self._close(before, ToPart(count, "range"), f"range by {_keys(node)}")
        after = self._read(stage, Edge.ONE_TO_ONE, before, count)
        return after.then(f.render(node, (after.sql,)), node.schema, "sort")

    def _bounds(self, pipe: Pipe, key: str, count: int) -> int:
        """The stage that gives `count - 1` keys which cut the rows evenly, from a sample."""
        blob = Schema((Field("key", "BLOB"),))
        keys = f.over(f"SELECT {key} AS key", pipe.sql)
        # By a hash of the place, not by chance: a lost sample must come back the same. Where
        # rows come in any order, by a hash of the key and which copy of it this is.
        fixed = pipe.determinism is FIXED
        place = f.numbered(keys) if fixed else f.over(
            f"SELECT *, row_number() OVER (PARTITION BY key) AS {f.ORDINAL}", keys)  # fmt: skip
        tail = f"\nORDER BY hash(key, {f.ORDINAL}), key LIMIT {SAMPLED_ROWS}"
        sample = replace(_narrowed(pipe), sql=f.over("SELECT key", place, tail), schema=blob)
        sampled = self._close(sample, ToPart(), "sample keys")
        read = self._read(sampled, Edge.ALL, sample, 1)
        ranked = f.over(
            "SELECT key, row_number() OVER (ORDER BY key) AS r, count(*) OVER () AS c", read.sql
        )
        cut = f" WHERE r < c AND (r * {count}) // c > ((r - 1) * {count}) // c ORDER BY r"
        pipe = replace(read, sql=f.over("SELECT key", ranked, cut), schema=blob)
        return self._close(pipe, ToPart(), "bounds")

    def _even(self, node: n.EvenPartition) -> Pipe:
        source = _row_wise_source(node.input)
        cut = source is not None and can_cut(source, node.n, self.settings.footer)
        if source is not None and cut and not node.by_rows and self._readers[id(source)] == 1:
            return self._replanned(node.input, source, node.n)
        pipe = _ordered(self._lower(node.input))
        stage = self._close(pipe, ToPart(), "hand over")
        return replace(self._read(stage, Edge.FORWARD, pipe, node.n),
                       inputs=(RowsInput(stage, node.n),))  # fmt: skip

    def _replanned(self, node: n.Node, source: n.DataSource, count: int) -> Pipe:
        if node is source:
            return self._source(source, count)
        assert isinstance(node, n.Project | n.Filter)
        return self._row_wise(node, self._replanned(node.input, source, count))

    def _row_wise(self, node: n.Project | n.Filter, pipe: Pipe) -> Pipe:
        if _clash(_called(pipe), node.udfs):
            stage = self._close(pipe, ToPart(), "hand over")
            pipe = self._read(stage, Edge.FORWARD, pipe, pipe.n)
        pipe = pipe.then(f.render(node, (pipe.sql,)), node.schema, _word(node))
        varies = (node.expression if isinstance(node, n.Project) else node.predicate).varies
        udfs = tuple(dict.fromkeys((*pipe.udfs, *node.udfs)))
        return replace(pipe, determinism=VARIES if varies else pipe.determinism, udfs=udfs)

    # ---- several inputs --------------------------------------------------------------

    def _union(self, node: n.Union) -> Pipe:
        stages, determinism, total = [], FIXED, 0
        for at in node.inputs:
            pipe = self._lower(at)
            items = ", ".join(
                f"{quote.name(c.name)}::{c.type} AS {quote.name(c.name)}" for c in node.schema
            )
            pipe = pipe.then(f.over(f"SELECT {items}", pipe.sql), node.schema, "union")
            stages.append(self._close(pipe, ToPart(), "union"))
            determinism, total = _looser(determinism, pipe.determinism), total + pipe.n
        return Pipe((ConcatInput(tuple(stages)),), f.slot(0), node.schema, total,
                    determinism=determinism, title="union")  # fmt: skip

    def _partial(self, node: n.SqlEngine) -> Pipe:
        pipes = tuple(self._lower(i) for i in node.inputs)
        count = max((p.n for p, i in zip(pipes, node.inputs, strict=True)
                     if partitioning(i).n != 1), default=1)  # fmt: skip
        pipes = tuple(p if p.n == count else self._gathered(p, count) for p in pipes)
        return _loosened(self._together(node, pipes, "partial sql"), varies=node.query.varies)

    def _whole(self, node: n.Node, pipes: tuple[Pipe, ...]) -> Pipe:
        """One task that reads everything."""
        gathered = tuple(p if p.n == 1 else self._gathered(p, 1) for p in pipes)
        word = _word(node)
        pipe = self._together(node, gathered, f"{word} (whole, on one task)")
        match node:
            case n.GlobalSql():
                return _loosened(pipe, varies=node.query.varies)
            case n.Aggregate() | n.Join() | n.Distinct():
                return _loosened(pipe)
        return _ordered(pipe)

    def _gathered(self, pipe: Pipe, count: int) -> Pipe:
        stage = self._close(pipe, ToPart(), "gather")
        return self._read(stage, Edge.ALL, pipe, count)

    def _together(self, node: n.Node, pipes: tuple[Pipe, ...], title: str) -> Pipe:
        """One pipe whose query reads the queries of all of them."""
        inputs: list[Input] = []
        queries: list[Pieces] = []
        determinism = FIXED
        for pipe in pipes:
            apart = pipe.steps or pipe.udfs
            if (apart and len(pipes) > 1) or pipe.resources != ONE_CPU:
                stage = self._close(pipe, ToPart(), "hand over")
                pipe = self._read(stage, Edge.FORWARD, pipe, pipe.n)
            queries.append(f.shifted(pipe.sql, len(inputs)))
            inputs += pipe.inputs
            determinism = _looser(determinism, pipe.determinism)
        steps = pipes[0].steps if len(pipes) == 1 else ()
        names = {pipe.title for pipe in pipes if pipe.title}
        count = max((pipe.n for pipe in pipes), default=1)
        return Pipe(tuple(inputs), f.render(node, tuple(queries)), node.schema, count, steps,
                    determinism, title=_titled(" + ".join(sorted(names)), title),
                    udfs=pipes[0].udfs if len(pipes) == 1 else ())  # fmt: skip

    # ---- stages ----------------------------------------------------------------------

    def _close(self, pipe: Pipe, output: Output, title: str) -> int:
        number = len(self.stages)
        schema = pipe.schema
        if isinstance(output, ToPart):
            schema = f.wire(schema)
            pipe = replace(pipe, sql=f.cast(pipe.sql, pipe.schema, schema, output.how != "single"))
        stage = Stage(
            number,
            _titled(pipe.title, "→ " + title),
            Fragment(_steps(pipe)),
            pipe.inputs,
            output,
            schema,
            pipe.determinism,
            pipe.resources,
            run=self.settings.run,
        )
        print_ = stage_fingerprint(stage, self.stages, self.settings.versions)
        self.stages.append(replace(stage, fingerprint=print_))
        return number

    def _read(self, stage: int, edge: Edge, pipe: Pipe, count: int) -> Pipe:
        sql = f.cast(f.slot(0), self.stages[stage].schema, pipe.schema, False)
        return Pipe((StageInput(stage, edge),), sql, pipe.schema, count,
                    determinism=pipe.determinism)  # fmt: skip


def _steps(pipe: Pipe) -> tuple[Step, ...]:
    if pipe.steps and f.is_plain(pipe.sql):
        return pipe.steps
    return (*pipe.steps, SqlStep(f.text(pipe.sql), pipe.schema, pipe.udfs))


def _called(pipe: Pipe) -> tuple[Udf, ...]:
    """The functions that a pipe's SQL calls, in all of its steps."""
    before = (udf for step in pipe.steps if isinstance(step, SqlStep) for udf in step.udfs)
    return (*before, *pipe.udfs)


def _clash(some: tuple[Udf, ...], others: tuple[Udf, ...]) -> bool:
    """Whether two different functions have one name; they cannot be in one task."""
    named = {udf.name.casefold(): udf for udf in some}
    return any(named.get(udf.name.casefold(), udf) != udf for udf in others)


def _narrowed(pipe: Pipe) -> Pipe:
    """The same work over a few of its tasks, evenly chosen.

    Of a source, only the key columns of some splits are read. Anything else is a second
    run of what it samples, so it samples less.
    """
    cheap = not pipe.steps and all(isinstance(i, SourceInput) for i in pipe.inputs)
    count = SAMPLED_TASKS if cheap else min(SAMPLED_TASKS, max(2, pipe.n // 8))
    if pipe.n <= count:
        return pipe
    chosen = tuple(i * pipe.n // count for i in range(count))
    inputs: list[Input] = []
    for item in pipe.inputs:
        match item:
            case SourceInput(splits=splits, broadcast=False):
                inputs.append(replace(item, splits=tuple(splits[i] for i in chosen)))
            case StageInput(edge=Edge.ONE_TO_ONE | Edge.FORWARD):
                inputs.append(replace(item, only=chosen))
            case ConcatInput() | RowsInput():
                return pipe
            case _:
                inputs.append(item)
    return replace(pipe, inputs=tuple(inputs), n=count)


def _is_row_wise(node: n.Node) -> bool:
    """Does each row come from one of the source's, so that a few need only a few?"""
    while isinstance(node, n.Project | n.Filter | n.PythonBatches):
        node = node.input
    return isinstance(node, n.DataSource)


def _row_wise_source(node: n.Node) -> n.DataSource | None:
    while isinstance(node, n.Project | n.Filter):
        node = node.input
    return node if isinstance(node, n.DataSource) else None


def _looser(a: Determinism, b: Determinism) -> Determinism:
    order = [FIXED, ANY_ORDER, VARIES]
    return order[max(order.index(a), order.index(b))]


def _loosened(pipe: Pipe, *, varies: bool = False) -> Pipe:
    """After work whose row order depends on threads."""
    return replace(pipe, determinism=VARIES if varies else _looser(pipe.determinism, ANY_ORDER))


def _ordered(pipe: Pipe) -> Pipe:
    """After work whose rows depend on the order of its input."""
    loose = pipe.determinism is not FIXED
    return replace(pipe, determinism=VARIES) if loose else pipe


_WHOLE = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT")


def _common(left: str, right: str) -> str | None:
    """A type in which equal keys of both sides hash alike; None where only DuckDB knows."""
    if left == right:
        return left
    if left in _WHOLE and right in _WHOLE:
        return _WHOLE[max(_WHOLE.index(left), _WHOLE.index(right))]
    return None


def _word(node: n.Node) -> str:
    return {"GlobalSql": "sql", "RandomPartition": "random shuffle", "Project": "map"}.get(
        type(node).__name__, type(node).__name__.lower()
    )


def _keys(node: n.Sort) -> str:
    return ", ".join(map(str, node.keys))


def _titled(before: str, more: str) -> str:
    return (
        f"{before}, {more}" if before and not more.startswith("→") else f"{before} {more}".strip()
    )
