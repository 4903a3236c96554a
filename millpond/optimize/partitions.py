"""Rules about moving rows: not at all, or fewer of them."""

from dataclasses import replace

from millpond.plan import nodes as n
from millpond.plan.partitioning import partitioning


def partition_below_partition(node: n.Node) -> n.Node | None:
    """Hash(Hash(t, a), b)  ->  Hash(t, b)

    A hash or given partitioning decides by values, so one below it is not seen.
    Even partitionings read the order that the one below gives, and are left alone.
    """
    match node:
        case n.HashPartition(n.HashPartition() | n.EvenPartition() as below):
            return replace(node, input=below.input)
        case n.GivenPartition(n.HashPartition() | n.EvenPartition() as below):
            return replace(node, input=below.input)
    return None


def partition_below_sort(node: n.Node) -> n.Node | None:
    """Sort(Hash(t, n=7), k)  ->  Sort(t, k, n=7)

    The sort moves every row itself; the number of partitions that the user gave stays.
    """
    match node:
        case n.Sort(n.HashPartition() | n.EvenPartition() as below, partial=False):
            return replace(node, input=below.input, n=node.n or below.n)
    return None


def partition_below_group(node: n.Node) -> n.Node | None:
    """Aggregate(Hash(t, a, n=7), b)  ->  Aggregate(t, b, n=7)

    The groups move rows themselves, unless those of a group are together already.
    """
    match node:
        case n.Aggregate(n.HashPartition(keys=have) as below, keys) if keys:
            together = set(have) <= set(keys)
            return None if together else replace(node, input=below.input, n=node.n or below.n)
        case n.Aggregate(n.EvenPartition() as below, keys) if keys:
            return replace(node, input=below.input, n=node.n or below.n)
    return None


def partition_as_it_is(node: n.Node) -> n.Node | None:
    """Hash(Filter(Hash(t, k, 7), p), k, 7)  ->  Filter(Hash(t, k, 7), p)

    Rows that lie where they should do not move.
    """
    match node:
        case n.HashPartition(below, keys, count):
            have = partitioning(below)
            types = tuple(node.schema.field(key, "repartition").type for key in keys)
            return below if (have.n, have.keys, have.types) == (count, keys, types) else None
        case n.EvenPartition(n.EvenPartition(n=have, by_rows=by_rows) as below, count):
            return below if have == count and by_rows >= node.by_rows else None
    return None


def partition_below_sql(node: n.Node) -> n.Node | None:
    """GlobalSql(Hash(t, k))  ->  GlobalSql(t)

    A query over whole frames sees no partitions.
    """
    match node:
        case n.GlobalSql():
            inputs = tuple(_together(i) for i in node.inputs)
            same = all(a is b for a, b in zip(inputs, node.inputs, strict=True))
            return None if same else replace(node, inputs=inputs)
    return None


def _together(node: n.Node) -> n.Node:
    while isinstance(node, n.HashPartition | n.EvenPartition):
        node = node.input
    return node
