"""A sort that one task writes to Parquet files, by Arrow's encoder.

What DuckDB sorts in memory comes in order, and is cut into files. Of more, DuckDB would spill
whole rows several times: a sample cuts the keys into ranges that fit, rows go to theirs as they
are read, and each range is put in order by itself. See benchmarks/sort_peers.py.
"""

from dataclasses import replace

from millpond.expr import quote
from millpond.formats.scan import FILE, ROW, Split
from millpond.physical import fragment as f
from millpond.physical.fragment import Pieces
from millpond.physical.fused import Statement, to_file
from millpond.physical.one_pass import MOST_FILES, read_step, stored, why_not_arrow
from millpond.physical.shape import Settings, read_bytes
from millpond.physical.sorting import KEY, KEY_BYTES, SOURCE_GROUPS, cuts_of
from millpond.physical.splits import count_rows, source_splits, thinned
from millpond.physical.stages import SourceInput, Stage, ToFile
from millpond.physical.steps import Fragment, SortStep
from millpond.physical.wide import measured
from millpond.plan import nodes as n

# Of rows in memory: at most eight files are written at once, and one is being filled.
_LEAST_FILE_BYTES, _FILES_IN_MEMORY = 8 << 20, 32
_GROWTH = 4  # Rows to their bytes in a file, as a rule.
# DuckDB's own form of rows that it sorts is larger: past this share of memory, rows spill.
_SORTED_IN_MEMORY = 0.6
_RANGES_IN_MEMORY = 24  # Several are in work at once, and are there twice for a moment.
_SAMPLED_ROWS = 1 << 16  # Hundreds for each range.


def files_in_order(stage: Stage, node: n.Node, settings: Settings) -> Stage:
    """A sort that is one statement, written by Arrow's encoder: a sixth of all CPU
    seconds is saved, see benchmarks/sort_peers.py.
    """
    match node, stage.output:
        case n.DataSink(n.Sort(), format="parquet", name=name, keys=()), ToFile() as output if (
            name and not why_not_arrow(node.schema, node.options)
        ):
            each = max(_LEAST_FILE_BYTES, settings.memory_bytes // _FILES_IN_MEMORY)
            if read_bytes(node) > each:
                return replace(stage, output=replace(output, each_bytes=each))
    return stage


def ranges_in_order(node: n.Node, settings: Settings) -> Stage | None:
    """DataSink(Sort(x)) of more rows than memory holds  ->  one stage that sorts range by range.

    `x` is what tells each row's place in the input as it is read: that orders ties, and cuts
    keys that fill several ranges.
    """
    match node:
        case n.DataSink(n.Sort() as sort, format="parquet", name=name, keys=()) if (
            name and not why_not_arrow(node.schema, node.options)
        ):
            statement = Statement(node)
            placed, size = statement.placed(sort.input), stored(sort, settings)[0] * _GROWTH
            if placed is None or size <= settings.memory_bytes * _SORTED_IN_MEMORY:
                return None
            each = min(settings.memory_bytes // _RANGES_IN_MEMORY, settings.split_bytes)
            count = -(-size // max(1, each))
            if count <= MOST_FILES:
                return _stage(node, sort, placed, statement, count, settings)
    return None


def _stage(
    sink: n.DataSink, sort: n.Sort, placed: n.Node, statement: Statement, count: int,
    settings: Settings,
) -> Stage:  # fmt: skip
    schema = sort.schema
    key = f"({settings.sort_key(sort.keys, schema)})"
    ordinal = f"(({FILE}::UBIGINT << 40) | {ROW}::UBIGINT)"
    more = f"{ordinal} AS {f.ORDINAL}, {key}[:{KEY_BYTES + 1}] AS {KEY}"
    rows = f.over(f"SELECT {quote.names(schema.names)}, {more}", statement.query(placed))
    first = read_step(placed, f.text(rows), f.over(f"SELECT {more}", f.slot(0)), schema)
    sampled, sample = _sample(placed, len(statement.inputs), settings)
    found = f.over(f"SELECT {key}[:{KEY_BYTES}] AS key, {ordinal} AS ordinal", sample)
    step = SortStep(
        f.text(f.sorted_places(f.slot(0), sort.keys)),
        f.text(f.render(sort, (f.slot(0),))),
        schema,
        f.text(cuts_of(found, count)),
    )
    inputs = (*measured(statement.inputs, sort, settings), sampled)
    title = f"sort by {', '.join(map(str, sort.keys))} → write"
    return Stage(
        0, title, Fragment((first, step)), inputs, to_file(sink, count), schema, run=settings.run
    )


def _sample(node: n.Node, slot: int, settings: Settings) -> tuple[SourceInput, Pieces]:
    """An input of some row groups of the source below `node`, and the rows of `node` there, thinned
    by a hash of their place: the same in each attempt."""
    source = node
    while isinstance(source, n.Filter):
        source = source.input
    assert isinstance(source, n.DataSource)
    splits = source_splits(source, settings.split_bytes, settings.footer)
    plain = replace(source.scan, identity=False)
    few, stands_for = thinned(plain, splits, SOURCE_GROUPS, settings.footer)
    places = {file.path: place for place, file in enumerate(source.files)}
    slices = tuple(replace(s, place=places[s.path]) for split in few for s in split.slices)
    step = max(1, int(count_rows(source, settings.footer) / stands_for) // _SAMPLED_ROWS)
    sql = _over_slot(node, slot)
    thin = f"\nWHERE (hash({FILE}, {ROW}) >> 40) % {step} = 0"
    return SourceInput(source.scan, (Split(slices),), broadcast=True), f.over("SELECT *", sql, thin)


def _over_slot(node: n.Node, slot: int) -> Pieces:
    """The filters of `node` over an input."""
    if isinstance(node, n.Filter):
        return f.render(node, (_over_slot(node.input, slot),))
    return f.slot(slot)
