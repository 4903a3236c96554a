"""Rules that make work smaller because few rows are wanted."""

from dataclasses import replace

from millpond.plan import nodes as n


def limit_into_scan(node: n.Node) -> n.Node | None:
    """Limit(DataSource(t), 3)  ->  Limit(DataSource(t, limit=3), 3)

    The Limit stays: every partition reads its own first rows, so a source limit
    bounds the work but not the answer.
    """
    match node:
        case n.Limit(n.DataSource(scan=scan) as source, count) if (
            scan.limit is None or scan.limit > count
        ):
            return n.Limit(replace(source, scan=replace(scan, limit=count)), count)
    return None
