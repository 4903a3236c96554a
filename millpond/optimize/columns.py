"""Rules that drop columns where they are read, before rows move."""

from collections.abc import Iterable
from dataclasses import replace

from millpond.expr import Expression, Query, quote
from millpond.plan import nodes as n
from millpond.plan.partitioning import keeps_order
from millpond.schema import Schema

_Passing = n.Filter | n.Limit | n.Sample | n.RandomPartition
_Moving = n.EvenPartition | n.HashPartition | n.GivenPartition | n.Sort | n.Distinct


def narrow_inputs(node: n.Node) -> n.Node | None:
    """Project(Hash(t, k), "a + 1")  ->  Project(Hash(t[a, k], k), "a + 1")

    What nobody reads is not read, and does not move. Nothing happens where all columns
    are needed, or where only DuckDB could tell which are.
    """
    match node:
        case n.Project(below, Expression(columns=columns)) if columns is not None:
            needed = columns
        case n.Aggregate(below, keys, Expression(columns=columns)) if columns is not None:
            needed = columns | set(keys)
        case _:
            return None
    moved = narrowed(below, needed)
    return None if moved is None else replace(node, input=moved)


def narrow_inputs_of_sql(node: n.Node) -> n.Node | None:
    """SqlEngine([Hash(t, k)], "SELECT sum(a) FROM __in0")  ->  SqlEngine([Hash(t[a, k], k)], …)

    A query that names its columns reads no others; nor does one whose plan says so. That was
    found out for inputs with just the columns that it reads, and so they get no others.
    """
    match node:
        case n.SqlEngine(query=Query(names=names)) | n.GlobalSql(query=Query(names=names)) if names:
            inputs = []
            for i in node.inputs:
                needed = frozenset(c for c in i.schema.names if c.casefold() in names)
                inputs.append(_only(narrowed(i, needed) or i, needed))
            same = all(a is b for a, b in zip(inputs, node.inputs, strict=True))
            return None if same else replace(node, inputs=tuple(inputs))
    return None


def narrowed(node: n.Node, needed: frozenset[str]) -> n.Node | None:
    """`node` without columns that are not `needed`, as far down as that can be known.

    None where nothing is gained. What comes back may still have more than is needed.
    """
    match node:
        case n.DataSource(scan=scan):
            kept = _kept(node, needed)
            if len(kept) == len(node.schema) or scan.filter:
                return None
            return replace(node, scan=replace(scan, schema=_schema(node, kept)))
        case n.Filter(predicate=Expression(columns=columns)) if columns is not None:
            return _through(node, needed | columns)
        case n.Sample() | n.RandomPartition() if not keeps_order(node.input):
            return None  # The whole row is its identity.
        case n.Limit() | n.Sample() | n.RandomPartition():
            return _through(node, needed)
        case n.EvenPartition():
            return _moving(node, needed)
        case n.HashPartition(keys=keys):
            return _moving(node, needed | set(keys))
        case n.GivenPartition(expression=Expression(columns=columns)) if columns is not None:
            return _moving(node, needed | columns)
        case n.Sort(keys=keys) if all(key.columns is not None for key in keys):
            return _moving(node, needed.union(*(key.columns or () for key in keys)))
        case n.Distinct(columns=columns) if set(columns) != set(node.schema.names):
            return _moving(node, needed | set(columns))
        case n.Union():
            return _union(node, needed)
        case n.Join() if node.reads is not None:
            return _join(node, needed)
        case n.Project() if is_plain(node) and len(_kept(node, needed)) < len(node.schema):
            return columns_only(node.input, _kept(node, needed))
    return None


def _through(node: _Passing, needed: frozenset[str]) -> n.Node | None:
    """A node that moves nothing: only what lies below may become narrower."""
    assert not isinstance(
        node, n.DataSource | n.Kept | n.Join | n.Union | n.SqlEngine | n.GlobalSql
    )
    below = narrowed(node.input, needed)
    return None if below is None else replace(node, input=below)


def _moving(node: _Moving, needed: frozenset[str]) -> n.Node | None:
    """A node that moves rows: below it nothing is left that is not needed."""
    assert not isinstance(
        node, n.DataSource | n.Kept | n.Join | n.Union | n.SqlEngine | n.GlobalSql
    )
    below = _only(narrowed(node.input, needed) or node.input, needed)
    return None if below is node.input else replace(node, input=below)


def _only(node: n.Node, needed: frozenset[str]) -> n.Node:
    kept = _kept(node, needed)
    return node if len(kept) == len(node.schema) else columns_only(node, kept)


def _union(node: n.Union, needed: frozenset[str]) -> n.Node | None:
    kept = _kept(node, needed)
    if len(kept) == len(node.schema):
        return None
    wanted = frozenset(kept)
    inputs = (_named(i, wanted) for i in node.inputs)
    return replace(node, inputs=tuple(inputs), schema=_schema(node, kept))


def _named(node: n.Node, wanted: frozenset[str]) -> n.Node:
    """An input of a union, whose names may differ in case."""
    names = {name.casefold() for name in wanted}
    mine = frozenset(name for name in node.schema.names if name.casefold() in names)
    return _only(narrowed(node, mine) or node, mine)


def _join(node: n.Join, needed: frozenset[str]) -> n.Node | None:
    kept = _kept(node, needed)
    if len(kept) == len(node.schema) or node.reads is None:
        return None
    outputs = tuple(o for o in node.outputs if o.alias in kept)
    sides = []
    for place, (side, at) in enumerate((("l", node.left), ("r", node.right))):
        read = {o.name.casefold() for o in outputs if o.side in (side, "both")}
        read |= {name.casefold() for name in node.on} | node.reads[place]
        read |= {pair[place].casefold() for pair in node.equal}
        mine = frozenset(name for name in at.schema.names if name.casefold() in read)
        sides.append(_only(narrowed(at, mine) or at, mine))
    left, right = sides
    return replace(node, left=left, right=right, outputs=outputs, schema=_schema(node, kept))


def columns_only(node: n.Node, names: tuple[str, ...]) -> n.Project:
    """The plain columns `names` of a node."""
    schema = _schema(node, names)
    return n.Project(node, Expression(quote.names(names), frozenset(names)), schema)


def is_plain(node: n.Project) -> bool:
    """Whether a projection only leaves columns out."""
    return node.expression.sql == quote.names(node.schema.names)


def _kept(node: n.Node, needed: frozenset[str]) -> tuple[str, ...]:
    """The needed columns in the order of the node; one at least, so that rows can be counted."""
    return tuple(c for c in node.schema.names if c in needed) or node.schema.names[:1]


def _schema(node: n.Node, names: Iterable[str]) -> Schema:
    wanted = set(names)
    return Schema(tuple(f for f in node.schema if f.name in wanted))
