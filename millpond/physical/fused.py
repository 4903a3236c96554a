"""The fused shape: the whole plan as one task, and mostly as one DuckDB statement.

Functions of batches that cost little (see `workplace`) may stand in it, one after the
other: the statement below streams through the first of them, and so on up. A stream is
read once and by one query, so nothing above a function has a second input.
"""

from collections import Counter
from dataclasses import replace

from millpond.expr import quote
from millpond.formats.scan import FILE, ROW, FileSlice, Split
from millpond.physical import fragment as f
from millpond.physical.fragment import Pieces
from millpond.physical.splits import with_values
from millpond.physical.stages import Input, Output, SourceInput, Stage, ToFile, ToMemory
from millpond.physical.steps import Fragment, PythonStep, SqlStep, Step
from millpond.plan import nodes as n
from millpond.plan.wire import plain
from millpond.schema import Schema


def all_nodes(node: n.Node) -> list[n.Node]:
    """Every node once, however many read it; those that read come before those they read."""
    found: dict[int, n.Node] = {}
    waiting = [node]
    while waiting:
        at = waiting.pop()
        if id(at) not in found:
            found[id(at)] = at
            waiting += reversed(n.inputs_of(at))
    return list(found.values())


def functions_in_line(node: n.Node) -> list[n.PythonBatches]:
    """The functions on the one way down from `node`, the last to run first."""
    found: list[n.PythonBatches] = []
    while any(isinstance(at, n.PythonBatches) for at in all_nodes(node)):
        inputs = n.inputs_of(node)
        if len(inputs) != 1:
            return []
        if isinstance(node, n.PythonBatches):
            found.append(node)
        elif not (isinstance(node, n.DataSink) or f.reads_once(_text_over_one(node))):
            return []
        node = inputs[0]
    return found


def _text_over_one(node: n.Node) -> str:
    return f.text(f.render(node, (f.slot(0),)))


def fused(node: n.Node, run: str) -> Stage:
    """One stage of one task that computes `node` whole."""
    output: Output
    if isinstance(node, n.DataSink):
        output, schema, top = to_file(node), node.schema, node.input
        steps, inputs = _steps(top, top.schema)
    else:
        output, schema = ToMemory(), plain(node.schema)
        steps, inputs = _steps(node, schema)
    return Stage(0, "fused", Fragment(steps), inputs, output, schema, run=run)


def _steps(node: n.Node, schema: Schema) -> tuple[tuple[Step, ...], tuple[Input, ...]]:
    """What gives the rows of `node` in the types of `schema`."""
    function = next(iter(functions_in_line(node)), None)
    statement = Statement(node, function)
    sql = f.cast(statement.query(node), node.schema, schema, False)
    last = SqlStep(f.text(statement.whole(sql)), schema)
    if function is None:
        return (last,), tuple(statement.inputs)
    given = plain(function.input.schema)
    before, inputs = _steps(function.input, given)
    call = PythonStep(function.call, given, plain(function.schema), light=True)
    return (*before, call, *(() if f.is_plain(sql) else (last,))), inputs


class Statement:
    """Queries nest; a node that several read is written once, as a common table expression."""

    def __init__(self, node: n.Node, function: n.PythonBatches | None = None) -> None:
        self._function = function  # Its rows come as a stream.
        self.inputs: list[Input] = []
        self._ctes: list[str | int] = []
        self._names: dict[int, str] = {}
        self._readers = Counter(id(i) for at in all_nodes(node) for i in n.inputs_of(at))

    def query(self, at: n.Node) -> Pieces:
        if at is self._function:
            return f.cast(f.slot(0), plain(at.schema), at.schema, False)
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
        if isinstance(at, n.Sort) and (placed := self.placed(at.input)):
            return f.sorted_(self.query(placed), at.schema.names, at.keys, (FILE, ROW))
        return f.render(at, tuple(self.query(i) for i in n.inputs_of(at)))

    def placed(self, at: n.Node) -> n.Node | None:
        """`at` with each row's place in the input, where every thread knows it as it reads.

        To number rows as they come is one thread's work, and nearly doubles a sort's time.
        """
        match at:
            case n.DataSource(scan=scan) if scan.format == "parquet" and at.files:
                if dict(scan.options).get("union_by_name") or scan.keys or scan.limit is not None:
                    return None
                return replace(at, scan=replace(scan, identity=True))
            case n.Filter() if self._readers[id(at)] < 2 and (below := self.placed(at.input)):
                return replace(at, input=below)
        return None

    def _source(self, at: n.DataSource, splits: tuple[Split, ...]) -> Pieces:
        self.inputs.append(SourceInput(at.scan, splits, broadcast=True))
        return f.slot(len(self.inputs) - 1)


def to_file(node: n.DataSink, count: int | None = None) -> ToFile:
    if node.name:
        return ToFile(
            node.format, node.path, node.name, node.options, count, node.keys, node.keeps_keys,
            sorted_by=_sorted_by(node.input),
        )  # fmt: skip
    folder, _, name = node.path.rpartition("/")
    return ToFile(node.format, folder or ".", name, node.options)


def _sorted_by(node: n.Node) -> tuple[str, ...]:
    """The columns among the keys of a sort."""
    if not isinstance(node, n.Sort):
        return ()
    named = {
        text.casefold(): name for name in node.schema.names for text in (name, quote.name(name))
    }
    keys = (key.sql.strip().casefold() for key in node.keys)
    return tuple(named[key] for key in keys if key in named)
