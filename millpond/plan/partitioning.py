"""What a node keeps of partitioning, as data."""

from dataclasses import dataclass

from millpond.plan import nodes as n


@dataclass(frozen=True, slots=True)
class Partitioning:
    """`n` partitions, or None while the count is automatic; `keys` where equal rows meet.

    Two frames are known to be co-partitioned only if both were hashed alike: as many keys,
    of the same types, into as many partitions.
    """

    n: int | None = None
    keys: tuple[str, ...] = ()
    types: tuple[str, ...] = ()

    def meets(self, other: "Partitioning") -> bool:
        """Whether equal keys of both are in partitions of the same number."""
        return bool(self.keys) and (self.n, len(self.keys), self.types) == (
            other.n,
            len(other.keys),
            other.types,
        )


def partitioning(node: n.Node) -> Partitioning:
    """The partitioning of a node's rows."""
    match node:
        case n.EvenPartition():
            return Partitioning(node.n)
        case n.GivenPartition():
            return Partitioning(node.n, (f"given {node.expression.sql}",), ("INTEGER",))
        case n.HashPartition():
            types = tuple(node.schema.field(key, "repartition").type for key in node.keys)
            return Partitioning(node.n, node.keys, types)
        case n.Filter() | n.DataSink() | n.Kept() | n.Shared():
            return partitioning(node.input)
        case n.Sort(partial=True):
            return partitioning(node.input)
        case n.Project() | n.PythonBatches():
            return Partitioning(partitioning(node.input).n)
        case n.SqlEngine():
            counts = [partitioning(i).n for i in node.inputs]
            return Partitioning(next((c for c in counts if c != 1), 1 if counts else None))
        case n.Sort() | n.Aggregate() if node.n is not None:
            return Partitioning(node.n)
        case n.Sort() | n.Aggregate() | n.Distinct() | n.RandomPartition() | n.Sample():
            return Partitioning(partitioning(node.input).n)
        case n.Limit():
            return Partitioning(1)
        case n.GlobalSql():
            return Partitioning(1)
        case _:
            return Partitioning()
