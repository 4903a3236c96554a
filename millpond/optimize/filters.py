"""Rules that drop rows before they move."""

from dataclasses import replace

from millpond.expr import Expression
from millpond.optimize.columns import is_plain
from millpond.plan import nodes as n


def filter_of_filter(node: n.Node) -> n.Node | None:
    """Filter(Filter(t, p), q)  ->  Filter(t, p AND q)

    DuckDB does the same, but counts the levels of a query, and has a limit for them.
    """
    match node:
        case n.Filter(n.Filter() as below, q) if not (
            node.udfs or below.udfs or q.varies or below.predicate.varies
        ):
            p = below.predicate
            read = [one.columns for one in (p, q) if one.columns is not None]
            columns = frozenset[str]().union(*read) if len(read) == 2 else None
            both = Expression(f"(\n{p.sql}\n) AND (\n{q.sql}\n)", columns)
            return replace(below, predicate=both)
    return None


def filter_below_partition(node: n.Node) -> n.Node | None:
    """Filter(Hash(t, k), p)  ->  Hash(Filter(t, p), k)

    Rows that nobody wants do not move. Even partitioning is left alone: it counts them.
    """
    match node:
        case n.Filter(n.HashPartition() as below) if not node.predicate.varies:
            return replace(below, input=replace(node, input=below.input))
    return None


def filter_below_sort(node: n.Node) -> n.Node | None:
    """Filter(Sort(t, k), p)  ->  Sort(Filter(t, p), k)"""
    match node:
        case n.Filter(n.Sort() as below) if not node.predicate.varies:
            return replace(below, input=replace(node, input=below.input))
    return None


def filter_below_columns(node: n.Node) -> n.Node | None:
    """Filter(Project(t, "a, b"), p)  ->  Project(Filter(t, p), "a, b")

    Only where the projection leaves columns out and does nothing else.
    """
    match node:
        case n.Filter(n.Project() as below, Expression(columns=columns)) if (
            columns is not None and is_plain(below) and not node.predicate.varies
        ):
            return replace(below, input=replace(node, input=below.input))
    return None


def filter_below_group(node: n.Node) -> n.Node | None:
    """Filter(Aggregate(t, k, "sum(a) AS s"), "k > 1")  ->  Aggregate(Filter(t, "k > 1"), k, …)

    Only a condition over the keys: it holds for all rows of a group, or for none.
    """
    match node:
        case n.Filter(n.Aggregate(keys=keys) as below, Expression(columns=columns)) if (
            keys and columns and columns <= set(keys) and not node.predicate.varies
        ):
            return replace(below, input=replace(node, input=below.input))
    return None


def filter_below_union(node: n.Node) -> n.Node | None:
    """Filter(Union(t, u), p)  ->  Union(Filter(t, p), Filter(u, p))

    Only where the columns of the condition have one type in all inputs.
    """
    match node:
        case n.Filter(n.Union() as below, Expression(columns=columns)) if (
            columns is not None and not node.predicate.varies
        ):
            for i in below.inputs:
                for name in columns:
                    if i.schema.find(name) != below.schema.find(name):
                        return None
            inputs = tuple(replace(node, input=i) for i in below.inputs)
            return replace(below, inputs=inputs)
    return None


def filter_below_join(node: n.Node) -> n.Node | None:
    """Filter(Join(t, u, k), "t_only > 1")  ->  Join(Filter(t, "t_only > 1"), u, k)

    Only a condition over one side, of which the join invents no rows.
    """
    match node:
        case n.Filter(n.Join() as below, Expression(columns=columns)) if (
            columns and not node.predicate.varies
        ):
            where = {o.alias: o.side for o in below.outputs if o.alias == o.name}
            sides = {where.get(name) for name in columns}
            if sides == {"l"} and below.how in ("inner", "left", "semi", "anti", "cross"):
                return replace(below, left=replace(node, input=below.left))
            if sides == {"r"} and below.how in ("inner", "right", "cross"):
                return replace(below, right=replace(node, input=below.right))
    return None
