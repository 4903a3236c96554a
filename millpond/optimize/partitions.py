"""Rules about moving rows: not at all, or fewer of them."""

from dataclasses import replace

from millpond.plan import nodes as n


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
        case n.Aggregate(n.HashPartition(keys=have) as below, keys) if keys:
            # Groups that are together already need no other move.
            together = set(have) <= set(keys)
            return None if together else replace(node, input=below.input, n=node.n or below.n)
        case n.Aggregate(n.EvenPartition() as below, keys) if keys:
            return replace(node, input=below.input, n=node.n or below.n)
    return None


def filter_below_partition(node: n.Node) -> n.Node | None:
    """Filter(Hash(t, k), p)  ->  Hash(Filter(t, p), k)

    Rows that nobody wants do not move. Partitioning by rows is left alone: it counts them.
    """
    match node:
        case n.Filter(n.HashPartition() | n.GivenPartition() as below, predicate) if (
            not predicate.varies
            and not (isinstance(below, n.GivenPartition) and below.expression.varies)
        ):
            return replace(below, input=n.Filter(below.input, predicate))
    return None
