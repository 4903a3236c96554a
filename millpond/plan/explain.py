"""Plan → text: for people, golden tests, the command line and HTML alike."""

from millpond.plan import nodes as n


def explain(node: n.Node) -> str:
    """One line a node, inputs indented below it; a node read again is named, not repeated."""
    lines: list[str] = []
    seen: dict[int, int] = {}

    def add(at: n.Node, depth: int) -> None:
        pad = "  " * depth
        if id(at) in seen and not isinstance(at, n.DataSource):
            lines.append(f"{pad}(the same as line {seen[id(at)]})")
            return
        lines.append(pad + line(at))
        seen[id(at)] = len(lines)
        for i in n.inputs_of(at):
            add(i, depth + 1)

    add(node, 0)
    return "\n".join(lines)


def line(node: n.Node) -> str:
    """A node in one line, without its inputs."""
    match node:
        case n.DataSource(scan=scan, files=files, rows=rows):
            what = f"{len(files)} files" if rows is None else f"{rows.table.num_rows} rows"
            limit = f", limit {scan.limit}" if scan.limit is not None else ""
            where = f", where {scan.filter}" if scan.filter else ""
            return (
                f"DataSource {scan.format}, {what}{where}{limit} [{', '.join(scan.schema.names)}]"
            )
        case n.Kept(splits=splits):
            return f"Kept, {len(splits)} partitions [{', '.join(node.schema.names)}]"
        case n.Project(expression=e, flat=flat):
            return f"Project{' flat' if flat else ''} {_short(e.sql)}"
        case n.Filter(predicate=e):
            return f"Filter {_short(e.sql)}"
        case n.PythonBatches():
            calls = ", ".join(f"{call.name} per {call.kind}" for call in node.calls)
            return f"PythonBatches {calls} [{', '.join(node.schema.names)}]"
        case n.Sort(keys=keys, partial=partial, n=count):
            many = f", {count} partitions" if count else ""
            return f"Sort{' partial' if partial else ''} {', '.join(map(str, keys))}{many}"
        case n.Limit(n=count):
            return f"Limit {count}"
        case n.Sample(fraction=fraction, seed=seed):
            return f"Sample {fraction}, seed {seed}"
        case n.Aggregate(keys=keys, expression=e, n=count):
            many = f", {count} partitions" if count else ""
            return f"Aggregate {_short(e.sql)} by {', '.join(keys) or 'nothing'}{many}"
        case n.Join(how=how, on=on, condition=condition):
            return f"Join {how} on {', '.join(on) or _short(condition) or 'nothing'}"
        case n.Distinct(columns=columns):
            return f"Distinct {', '.join(columns)}"
        case n.Union():
            return "Union"
        case n.EvenPartition(n=count, by_rows=by_rows):
            return f"EvenPartition {count}{' by rows' if by_rows else ''}"
        case n.HashPartition(keys=keys, n=count):
            return f"HashPartition {count} by {', '.join(keys)}"
        case n.GivenPartition(expression=e, n=count):
            return f"GivenPartition {count} by {_short(e.sql)}"
        case n.RandomPartition(seed=seed):
            return f"RandomPartition seed {seed}"
        case n.SqlEngine(query=query):
            return f"SqlEngine {_short(query.sql)}"
        case n.GlobalSql(names=names, query=query):
            return f"GlobalSql({', '.join(names)}) {_short(query.sql)}"
        case n.DataSink(format=format, path=path, mode=mode, keys=keys):
            folders = f", in folders by {', '.join(keys)}" if keys else ""
            return f"DataSink {format} to {path}, mode {mode}{folders}"
    raise AssertionError(node)


def _short(sql: str) -> str:
    text = " ".join(sql.split())
    return text if len(text) <= 120 else text[:117] + "…"
