"""A global sort as stages: a sample of keys, its bounds, rows to ranges, ranges sorted."""

from dataclasses import replace

from millpond.physical import fragment as f
from millpond.physical.cuts import Cuts
from millpond.physical.pipe import FIXED, Pipe, keys_of, looser, ordered
from millpond.physical.stages import (
    ConcatInput,
    Edge,
    Input,
    RowsInput,
    SourceInput,
    StageInput,
    ToPart,
)
from millpond.plan import nodes as n
from millpond.plan.partitioning import partitioning
from millpond.schema import Field, Schema

KEY = "__millpond_key"
SAMPLED_TASKS, SAMPLED_ROWS = 16, 1_000
FEW_ROWS = 10_000  # Of a sort: found by each task without moving all rows.


def sort(cuts: Cuts, node: n.Sort, pipe: Pipe) -> Pipe:
    """All rows in order: each range of keys is sorted by itself."""
    count = node.n or partitioning(node.input).n or pipe.n
    if pipe.n == 1 and count == 1:
        return pipe.then(f.render(node, (pipe.sql,)), node.schema, "sort")
    key = cuts.settings.sort_key(node.keys, node.schema)
    bounds = _bounds(cuts, pipe, key, count)
    keyed = f.with_column(pipe.sql, key, KEY)
    before = replace(
        pipe,
        sql=keyed,
        inputs=(*pipe.inputs, StageInput(bounds, Edge.ALL)),
        determinism=looser(pipe.determinism, cuts.stages[bounds].determinism),
    )
    stage = cuts.close(before, ToPart(count, "range"), f"range by {keys_of(node)}")
    after = cuts.read(stage, Edge.ONE_TO_ONE, before, count)
    return after.then(f.render(node, (after.sql,)), node.schema, "sort")


def first_rows(cuts: Cuts, node: n.Limit, sort: n.Sort, pipe: Pipe) -> Pipe:
    """The first few rows in order: each task finds its own, and no others move.

    Ties stay in input order: a task's rows come sorted, and tasks in order.
    """

    def top(pipe: Pipe) -> Pipe:
        sql = f.render(node, (f.render(sort, (pipe.sql,)),))
        return ordered(pipe.then(sql, node.schema, f"first {node.n} by {keys_of(sort)}"))

    pipe = top(pipe)
    return pipe if pipe.n == 1 else top(cuts.gathered(pipe, 1))


def _bounds(cuts: Cuts, pipe: Pipe, key: str, count: int) -> int:
    """The stage that gives `count - 1` keys which cut the rows evenly, from a sample."""
    blob = Schema((Field("key", "BLOB"),))
    keys = f.over(f"SELECT {key} AS key", pipe.sql)
    # By a hash of the place, not by chance: a lost sample must come back the same. Where
    # rows come in any order, by a hash of the key and which copy of it this is.
    fixed = pipe.determinism is FIXED
    place = f.numbered(keys) if fixed else f.over(
        f"SELECT *, row_number() OVER (PARTITION BY key) AS {f.ORDINAL}", keys)  # fmt: skip
    tail = f"\nORDER BY hash(key, {f.ORDINAL}), key LIMIT {SAMPLED_ROWS}"
    sql = f.over("SELECT key", place, tail)
    sample = replace(_narrowed(pipe), sql=sql, schema=blob, row_wise=False)
    sampled = cuts.close(sample, ToPart(), "sample keys")
    read = cuts.read(sampled, Edge.ALL, sample, 1)
    ranked = f.over(
        "SELECT key, row_number() OVER (ORDER BY key) AS r, count(*) OVER () AS c", read.sql
    )
    cut = f" WHERE r < c AND (r * {count}) // c > ((r - 1) * {count}) // c ORDER BY r"
    sql = f.over("SELECT key", ranked, cut)
    pipe = replace(read, sql=sql, schema=blob, row_wise=False)
    return cuts.close(pipe, ToPart(), "bounds")


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
