"""A hash-partitioned write in one pass: a file per partition, and no parts in between.

Parts are worth their bytes where somebody else reads them, or where a rerun finds them.
A write of hash partitions on one machine has no such reader: its rows go from the query
to the encoders of their files. What that costs is memory, for every file collects row
groups at once; so it is done where they come out large enough.
"""

from millpond.expr import quote
from millpond.physical import fragment as f
from millpond.physical.cuts import PID
from millpond.physical.fragment import Pieces
from millpond.physical.fused import Statement, functions_in_line, to_file
from millpond.physical.shape import Settings, why_staged
from millpond.physical.stages import Stage
from millpond.physical.steps import Fragment, ReadStep, ShuffleStep, SqlStep
from millpond.physical.wide import measured, wide
from millpond.plan import nodes as n
from millpond.plan.partitioning import keeps_order, partitioning
from millpond.schema import Schema

SHARE = 4  # Of the memory, one in so many bytes is for rows that wait for their row group.
# Of Arrow rows. At 4 MiB encoding costs a tenth more than at any size, at 1 MiB a quarter:
# as much as an exchange. See benchmarks/partition.py.
LEAST_GROUP_BYTES = 4 << 20
# Of a random order. A file, as its rows lie where they come from, is a small part of memory:
# they grow, and are there twice for a moment.
FILES_IN_MEMORY = 32
RANGES_IN_MEMORY = 8  # As rows, for each thread. Of larger ones, one is put in order at a time.
MOST_FILES = 512  # All are open at once, and a process may usually open 1024.
_STORED_ROW_BYTES = 512  # Batches are cut by rows; wider ones would not stay small.
_ROW_GROWTH = 8  # Rows in memory to rows in a file, at most, or nearly so.
# Those that Arrow's encoder writes as DuckDB's would.
_WHOLE = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT")
_TYPES = {*_WHOLE, *(f"U{name}" for name in _WHOLE), "BOOLEAN", "FLOAT", "DOUBLE", "DATE",
          "TIMESTAMP", "VARCHAR", "BLOB"}  # fmt: skip
_OPTIONS = ("compression",)
_CODECS = ("'snappy'", "'zstd'", "'gzip'", "'uncompressed'")


def held_bytes(n_files: int, memory_bytes: int) -> int:
    """How many bytes of rows wait at most. More than 8 MiB a file gains nothing."""
    return min(memory_bytes // SHARE, max(64 << 20, 2 * LEAST_GROUP_BYTES * n_files))


def shuffled_bytes(memory_bytes: int) -> int:
    """How many bytes of rows in random order wait in memory; libraries take 100 MB of it."""
    return max(32 << 20, int(memory_bytes * 0.45) - (150 << 20))


def one_pass(node: n.Node, settings: Settings) -> tuple[Stage | None, str]:
    """DataSink(HashPartition(x))  ->  one stage and why, or None and why not ("": not asked)."""
    match node:
        case n.DataSink(n.HashPartition() as hashed, format="parquet", name=name, keys=()) if (
            name
            and why_staged(hashed.input, settings) is None
            and not functions_in_line(hashed.input)
        ):
            why_not = _why_not(node, hashed, settings)
            if why_not:
                return None, f"; not in one pass: {why_not}"
            return _stage(node, hashed, settings), f"{hashed.n} files in one pass, without parts"
        case n.DataSink(n.RandomPartition() as shuffled, format="parquet", name=name, keys=()) if (
            name
            and partitioning(shuffled.input).n is None
            and why_staged(shuffled.input, settings) is None
            and not functions_in_line(shuffled.input)
        ):
            if why_not := _why_not_random(node, shuffled, settings):
                return None, f"; not in one pass: {why_not}"
            why = f"{_n_files(shuffled, settings)} files of a random order in one pass, in memory"
            return _random_stage(node, shuffled, settings), f"{why} as far as that goes"
    return None, ""


def _why_not(sink: n.DataSink, node: n.HashPartition, settings: Settings) -> str:
    if settings.durable:
        return "a rerun can resume from parts"
    if node.n > MOST_FILES:
        return f"more than {MOST_FILES} files would be open at once"
    if why := why_not_arrow(node.schema, sink.options):
        return why
    size, rows = stored(node, settings)
    if rows and size // rows > _STORED_ROW_BYTES:
        return f"rows of {size // rows} bytes are wide"
    held = held_bytes(node.n, settings.memory_bytes)
    if held // node.n < LEAST_GROUP_BYTES and size * _ROW_GROWTH > held:
        return (
            f"row groups of {held / node.n / 2**20:.1f} MiB are small, and "
            f"{node.n} of {LEAST_GROUP_BYTES >> 20} MiB do not fit into a quarter of the memory"
        )
    return ""


def _why_not_random(sink: n.DataSink, node: n.RandomPartition, settings: Settings) -> str:
    if settings.durable:
        return "a rerun can resume from parts"
    if not keeps_order(node.input):
        return "equal rows must be counted first"
    if found := wide(node, settings):
        return f"rows of {found.row_bytes} bytes are wide"
    if _n_files(node, settings) > MOST_FILES:
        return "a partition at a time would not fit into the memory"
    return why_not_arrow(node.schema, sink.options)


def _n_files(node: n.RandomPartition, settings: Settings) -> int:
    each = min(settings.split_bytes // 2, settings.memory_bytes // FILES_IN_MEMORY)
    return max(1, -(-stored(node, settings)[0] // max(1, each)))


def why_not_arrow(schema: Schema, options: tuple[tuple[str, str], ...]) -> str:
    """What Arrow's encoder would write in another way than DuckDB's; "" if nothing."""
    for field in schema:
        if field.type not in _TYPES and not field.type.startswith("DECIMAL("):
            return f"{field.name} is {field.type}"
    for name, literal in options:
        if name.lower() not in _OPTIONS or literal.lower() not in _CODECS:
            return f"{name}={literal} is an option of DuckDB's writer"
    return ""


def stored(node: n.Node, settings: Settings) -> tuple[int, int]:
    """Bytes and rows of all sources below, where rows are known; bytes as they lie there."""
    match node:
        case n.Kept(source=source) | (n.DataSource() as source):
            if source.rows is not None:
                return source.rows.table.nbytes, source.rows.table.num_rows
            size = sum(file.size_bytes for file in source.files)
            if source.scan.format != "parquet":
                return size, 0
            return size, sum(sum(settings.footer(file.path).rows) for file in source.files)
    found = [stored(i, settings) for i in n.inputs_of(node)]
    return sum(size for size, _ in found), sum(rows for _, rows in found)


def _stage(sink: n.DataSink, node: n.HashPartition, settings: Settings) -> Stage:
    statement = Statement(sink)
    number = f.hash_partition(node.keys, tuple("" for _ in node.keys), node.n)
    sql = f.with_column(statement.query(node.input), number, PID)
    more = f.over(f"SELECT {number} AS {quote.name(PID)}", f.slot(0))
    step = read_step(node.input, f.text(statement.whole(sql)), more, node.schema)
    title = f"hash by {', '.join(map(quote.name, node.keys))} → write"
    return Stage(
        0, title, Fragment((step,)), tuple(statement.inputs), to_file(sink, node.n),
        node.schema, run=settings.run,
    )  # fmt: skip


def read_step(node: n.Node, sql: str, more: Pieces, schema: Schema) -> SqlStep | ReadStep:
    """The rows of `node` with more columns: files that Arrow may read, if they are no more."""
    match node:
        case n.DataSource(scan=scan, files=[_, *_]) if (
            scan.format == "parquet" and scan.limit is None
            and not (scan.filter or scan.keys or scan.null_keys)
            and set(scan.options) <= {("hive_partitioning", "false")}
        ):  # fmt: skip
            return ReadStep(f.text(more), sql, schema)
    return SqlStep(sql, schema)


def _random_stage(sink: n.DataSink, node: n.RandomPartition, settings: Settings) -> Stage:
    statement, count = Statement(sink), _n_files(node, settings)
    key = f.random_key(node.seed)
    rows = f.identified(statement.query(node.input), node.input)
    number = f"((({key} >> 32) * {count}) >> 32)::UINTEGER"
    sql = f.text(statement.whole(f.with_column(rows, number, PID)))
    more = f.over(f"SELECT {f.ORDINAL}, {number} AS {quote.name(PID)}", f.slot(0))
    steps = (
        read_step(node.input, sql, more, node.schema),
        ShuffleStep(key, "", node.schema),
    )
    return Stage(
        0, "random shuffle → write", Fragment(steps), measured(statement.inputs, node, settings),
        to_file(sink, count), node.schema, run=settings.run,
    )  # fmt: skip
