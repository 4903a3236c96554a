"""A global sort as stages: a sample of keys, its bounds, rows to ranges, ranges sorted."""

from dataclasses import replace

from millpond.physical import fragment as f
from millpond.physical.cuts import Cuts
from millpond.physical.fragment import Pieces
from millpond.physical.pipe import FIXED, Pipe, called, keys_of, looser, ordered
from millpond.physical.shape import Settings
from millpond.physical.shuffling import many
from millpond.physical.splits import thinned
from millpond.physical.stages import (
    ConcatInput,
    Edge,
    Input,
    RowsInput,
    ShardsInput,
    SourceInput,
    StageInput,
    ToPart,
)
from millpond.physical.steps import SortStep
from millpond.physical.wide import told, wide
from millpond.plan import nodes as n
from millpond.plan.partitioning import partitioning
from millpond.plan.wire import wire
from millpond.schema import Field, Schema

KEY = "__millpond_key"
# Of a source, the keys of up to 64 splits: where they follow the order of the files, what lies
# between two of these becomes one range.
SOURCE_TASKS, OTHER_TASKS, SAMPLED_ROWS = 64, 16, 1_000
SOURCE_GROUPS = 32  # Row groups of these splits that are read, but one of each at least.
# Of a longer key, a bound is a prefix: a sample of keys of 1 MB is no burden. Rows carry one
# byte more, so that none of them equals a bound that it only begins like.
KEY_BYTES = 1024
FEW_ROWS = 10_000  # Of a sort: found by each task without moving all rows.


def sort(cuts: Cuts, node: n.Sort, pipe: Pipe) -> Pipe:
    """All rows in order: each range of keys is sorted by itself."""
    given = node.n or partitioning(node.input).n
    # A range that is sorted in memory and in caches takes a third of what one that spills does.
    count = given or (many(pipe.n, cuts.settings) if pipe.n > 1 else 1)
    if found := wide(node, cuts.settings):
        pipe, count = told(pipe, found), given or max(count, found.ranges(cuts.settings))
    if pipe.n == 1 and count == 1:
        return pipe.then(f.render(node, (pipe.sql,)), node.schema, "sort")
    if pipe.steps or called(pipe):
        pipe = cuts.handed_over(pipe)  # Else a sample would call its functions again.
    key = f"({cuts.settings.sort_key(node.keys, node.schema)})"
    bounds = _bounds(cuts, pipe, key, count)
    head = f"SELECT *, {_ordinal(pipe, f.TASK)} AS {f.ORDINAL}, {key}[:{KEY_BYTES + 1}] AS {KEY}"
    before = replace(
        pipe,
        sql=f.over(head, pipe.sql),
        inputs=(*pipe.inputs, StageInput(bounds, Edge.ALL)),
        determinism=looser(pipe.determinism, cuts.stages[bounds].determinism),
        row_wise=False,
    )
    stage = cuts.close(before, ToPart(count, "range"), f"range by {keys_of(node)}")
    after = cuts.by_partition(stage, before, count, auto=given is None)
    sql, schema = f.render(node, (after.sql,)), node.schema
    if wire(schema) != schema:  # Keys of an ENUM are not in the order of its texts.
        return after.then(sql, schema, "sort")
    places = f.text(f.sorted_places(f.slot(0), node.keys))
    step = SortStep(places, f.text(sql), schema)
    return replace(after.then(f.slot(0), schema, "sort"), steps=(step,))


def _ordinal(pipe: Pipe, task: str) -> str:
    """Where a row stands among rows of equal keys, so that a heavy key can be cut inside.

    Its place in the input; where rows come in any order, the task and a hash of the row:
    what a second attempt gives must lie where the first one's rows lay.
    """
    place = "row_number() OVER ()" if pipe.determinism is FIXED else "(hash(__in0) >> 24)"
    return f"(({task})::UBIGINT << 40) | {place}::UBIGINT"


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
    schema = Schema((Field("key", "BLOB"), Field("ordinal", "UBIGINT")))
    few, stands_for = _narrowed(pipe, cuts.settings)
    keys = f.over(
        f"SELECT {key}[:{KEY_BYTES}] AS key, {_ordinal(pipe, f.TASK)} AS ordinal", pipe.sql
    )
    if few is not pipe:
        # A sampled task stands for its neighbours, and a row for those that are not read: its
        # rows lie where theirs would.
        low = f"(ordinal & {2**40 - 1})::DOUBLE"
        fixed = pipe.determinism is FIXED
        width = "count(*) OVER ()" if fixed else f"{2**40}"
        spread = f"({f.TASK} + {low} / ({width} + 1)) * {pipe.n} / {few.n}"
        widened = f.over(f"SELECT key, {spread} AS place, {width} AS width", keys)
        wider = stands_for if fixed else 1
        keys = f.over(
            "SELECT key, (floor(place)::UBIGINT << 40) | "
            f"floor((place - floor(place)) * width * {wider})::UBIGINT AS ordinal", widened
        )  # fmt: skip
    # By a hash of the place, not by chance: a lost sample must come back the same. Equal
    # rows in any order differ in which copy they are.
    copy = "0" if pipe.determinism is FIXED else "row_number() OVER (PARTITION BY key, ordinal)"
    copies = f.over(f"SELECT *, {copy} AS copy", keys)
    tail = f"\nORDER BY hash(key, ordinal, copy), key LIMIT {SAMPLED_ROWS}"
    sample = replace(few, sql=f.over("SELECT key, ordinal", copies, tail), schema=schema)
    sampled = cuts.close(replace(sample, row_wise=False), ToPart(), "sample keys")
    read = cuts.read(sampled, Edge.ALL, sample, 1)
    pipe = replace(read, sql=cuts_of(read.sql, count), schema=schema)
    pipe = replace(pipe, row_wise=False)
    return cuts.close(pipe, ToPart(), "bounds")


def cuts_of(sample: Pieces, count: int) -> Pieces:
    """The `count - 1` of the keys and ordinals of a sample that cut it evenly, in order."""
    ranked = f.over(
        "SELECT *, row_number() OVER (ORDER BY key, ordinal) AS r, count(*) OVER () AS c", sample
    )
    cut = f" WHERE r < c AND (r * {count}) // c > ((r - 1) * {count}) // c ORDER BY r"
    return f.over("SELECT key, ordinal", ranked, cut)


def _narrowed(pipe: Pipe, settings: Settings) -> tuple[Pipe, float]:
    """The same work over a few of its tasks, evenly chosen; how many rows each row stands for.

    Of a source, only the key columns of some splits are read, and of those some row groups.
    Anything else is a second run of what it samples, so it samples less.
    """
    cheap = not pipe.steps and all(isinstance(i, SourceInput) for i in pipe.inputs)
    count = SOURCE_TASKS if cheap else min(OTHER_TASKS, max(4, pipe.n // 8))
    if pipe.n <= count and not cheap:
        return pipe, 1.0
    count, stands_for = min(count, pipe.n), 1.0
    chosen = tuple(i * pipe.n // count for i in range(count))
    inputs: list[Input] = []
    for item in pipe.inputs:
        match item:
            case SourceInput(scan, splits, broadcast=False, first_rows=numbers):
                few = tuple(splits[i] for i in chosen)
                if cheap and not numbers:
                    few, stands_for = thinned(scan, few, SOURCE_GROUPS, settings.footer)
                numbers = tuple(numbers[i] for i in chosen) if numbers else ()
                inputs.append(replace(item, splits=few, first_rows=numbers))
            case StageInput(edge=Edge.ONE_TO_ONE | Edge.FORWARD):
                inputs.append(replace(item, only=chosen))
            case ConcatInput() | RowsInput() | ShardsInput():
                return pipe, 1.0
            case _:
                inputs.append(item)
    return replace(pipe, inputs=tuple(inputs), n=count), stands_for
