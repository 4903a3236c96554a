"""Joins and groups as stages: rows with equal keys meet in one partition."""

from millpond.physical import fragment as f
from millpond.physical.cuts import Cuts
from millpond.physical.pipe import Pipe, loosened
from millpond.plan import nodes as n
from millpond.plan.partitioning import partitioning


def aggregate(cuts: Cuts, node: n.Aggregate, pipe: Pipe) -> Pipe:
    """Groups whose rows are in one partition."""
    pipe = grouped(cuts, node.input, pipe, node.keys, node.n)
    pipe = pipe.then(f.render(node, (pipe.sql,)), node.schema, "group")
    return loosened(pipe, varies=node.expression.varies)


def grouped(cuts: Cuts, node: n.Node, pipe: Pipe, keys: tuple[str, ...], count: int | None) -> Pipe:
    """The rows of `node` with equal `keys` in one partition; moved only if they are not."""
    have = partitioning(node)
    if pipe.n == 1 or (have.keys and set(have.keys) <= set(keys)):
        return pipe
    count = count or pipe.n
    number = f.hash_partition(keys, tuple("" for _ in keys), count)
    return cuts.exchange(pipe, number, count, f"hash by {', '.join(keys)}", keys)


def join(cuts: Cuts, node: n.Join, left: Pipe, right: Pipe) -> Pipe:
    """Both sides by hash of the keys, cast to one type."""
    count = max(left.n, right.n)
    if count > 1:
        types = tuple(
            _common(node.left.schema.field(a, "join").type,
                    node.right.schema.field(b, "join").type)
            for a, b in node.equal
        )  # fmt: skip
        if any(kind is None for kind in types):
            return cuts.whole(node, (left, right))
        known = tuple(kind or "" for kind in types)
        sides = [tuple(a for a, _ in node.equal), tuple(b for _, b in node.equal)]
        left, right = (
            _placed(cuts, at, pipe, keys, known, count)
            for at, pipe, keys in zip((node.left, node.right), (left, right), sides, strict=True)
        )
    return loosened(cuts.together(node, (left, right), "join"))


def _placed(
    cuts: Cuts, at: n.Node, pipe: Pipe, keys: tuple[str, ...], kinds: tuple[str, ...], count: int
) -> Pipe:
    """The rows of `at` by hash of the keys as `kinds`; rows that lie so already stay."""
    have = partitioning(at)
    if pipe.n == count and (have.n, have.keys, have.types) == (count, keys, kinds):
        return pipe
    number = f.hash_partition(keys, kinds, count)
    return cuts.exchange(pipe, number, count, f"hash by {', '.join(keys)}", keys)


_WHOLE = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT")


def _common(left: str, right: str) -> str | None:
    """A type in which equal keys of both sides hash alike; None where only DuckDB knows."""
    if left == right:
        return left
    if left in _WHOLE and right in _WHOLE:
        return _WHOLE[max(_WHOLE.index(left), _WHOLE.index(right))]
    return None
