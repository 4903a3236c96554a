"""What a node keeps of partitioning, as data."""

from dataclasses import dataclass

from millpond.plan import nodes as n


@dataclass(frozen=True, slots=True)
class Partitioning:
    """`n` partitions, or None while the count is automatic; `keys` where equal rows meet.

    Two frames are known to be co-partitioned only if both were hashed alike: by keys of the
    same names (or such as the query equates) and types, into as many partitions.
    """

    n: int | None = None
    keys: tuple[str, ...] = ()
    types: tuple[str, ...] = ()

    def meets(self, other: "Partitioning", equated: frozenset[frozenset[str]]) -> bool:
        """Whether rows with equal keys are in partitions of the same number.

        Keys of other names are taken for partners only where they are `equated`.
        """
        if not self.keys or (self.n, self.types) != (other.n, other.types):
            return False
        pairs = zip(self.keys, other.keys, strict=True)
        folded = (frozenset((a.casefold(), b.casefold())) for a, b in pairs)
        return all(len(pair) == 1 or pair in equated for pair in folded)


def keeps_order(node: n.Node) -> bool:
    """Whether the order of the rows follows from the input alone, in every shape."""
    match node:
        case n.DataSource() | n.RandomPartition():
            return True
        case n.Union():
            return all(map(keeps_order, node.inputs))
        case n.PythonBatches(call=call) if call.kind == "group":
            return False
        case n.Project() | n.Filter() | n.PythonBatches() | n.Limit() | n.Sample() | n.Kept():
            return keeps_order(node.input)
        case n.Sort(partial=False) | n.EvenPartition() | n.Shared():
            return keeps_order(node.input)
    return False


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
