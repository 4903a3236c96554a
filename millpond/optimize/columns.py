"""Rules that drop columns before rows move."""

from dataclasses import replace

from millpond.expr import Expression, quote
from millpond.plan import nodes as n
from millpond.schema import Schema


def narrow_below_partition(node: n.Node) -> n.Node | None:
    """Project(Hash(t, k), "a + 1")  ->  Project(Hash(Project(t, "a, k"), k), "a + 1")

    What nobody reads does not move. Nothing happens where all columns are needed, or
    where only DuckDB could tell which are.
    """
    match node:
        case n.Project(below, Expression(columns=columns)) if columns is not None:
            needed = columns
        case n.Aggregate(below, keys, Expression(columns=columns)) if columns is not None:
            needed = columns | set(keys)
        case _:
            return None
    moved = _narrowed(below, needed)
    return None if moved is None else replace(node, input=moved)


def _narrowed(node: n.Node, needed: frozenset[str]) -> n.Node | None:
    """A node that moves rows, moving no more columns than `needed` and its own keys."""
    match node:
        case n.HashPartition(keys=keys):
            wanted = needed | set(keys)
        case n.EvenPartition():
            wanted = needed
        case n.GivenPartition(expression=Expression(columns=columns)) if columns is not None:
            wanted = needed | columns
        case _:
            return None
    names = [name for name in node.schema.names if name in wanted] or [node.schema.names[0]]
    if len(names) == len(node.schema):
        return None
    return replace(node, input=columns_only(node.input, tuple(names)))


def columns_only(node: n.Node, names: tuple[str, ...]) -> n.Project:
    """The plain columns `names` of a node."""
    schema = Schema(tuple(f for f in node.schema if f.name in names))
    expression = Expression(quote.names(schema.names), frozenset(names))
    return n.Project(node, expression, schema)
