"""Rules that make work smaller because few rows are wanted."""

from dataclasses import replace

from millpond.plan import nodes as n


def limit_of_limit(node: n.Node) -> n.Node | None:
    """Limit(Limit(t, 9), 3)  ->  Limit(t, 3)"""
    match node:
        case n.Limit(n.Limit() as below, count):
            return n.Limit(below.input, min(count, below.n))
    return None


def limit_below_project(node: n.Node) -> n.Node | None:
    """Limit(Project(t, e), 3)  ->  Project(Limit(t, 3), e)

    One row makes one row, so the first three stay the first three; rows of `unnest` do not.
    """
    match node:
        case n.Limit(n.Project(flat=False) as below, count):
            return replace(below, input=n.Limit(below.input, count))
    return None


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
