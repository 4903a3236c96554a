"""Joins, groups and sets as stages: rows with equal keys meet, or a small side goes to all."""

import sys
from dataclasses import replace

from millpond.physical import fragment as f
from millpond.physical.cuts import Cuts
from millpond.physical.pipe import VARIES, Pipe, Placed, loosened, ordered, varies
from millpond.plan import nodes as n
from millpond.plan.partitioning import partitioning

# A side of up to this part of a split goes to every task: reading it there again costs less
# than moving the rows of the other side.
BROADCAST_PART = 8


def aggregate(cuts: Cuts, node: n.Aggregate, pipe: Pipe) -> Pipe:
    """Groups whose rows are in one partition."""
    pipe = grouped(cuts, node.input, pipe, node.keys, node.n)
    after = loosened(pipe.then(f.render(node, (pipe.sql,)), node.schema, "group"))
    determinism = VARIES if varies(node) else after.determinism
    return replace(after, determinism=determinism, placed=pipe.placed)


def distinct(cuts: Cuts, node: n.Distinct, pipe: Pipe) -> Pipe:
    """Equal rows are in one partition, and there in input order: the first one is the first."""
    pipe = grouped(cuts, node.input, pipe, node.columns, None)
    after = pipe.then(f.render(node, (pipe.sql,)), node.schema, "distinct")
    whole_rows = set(node.columns) == set(node.schema.names)
    return replace(loosened(after if whole_rows else ordered(after)), placed=pipe.placed)


def grouped(cuts: Cuts, node: n.Node, pipe: Pipe, keys: tuple[str, ...], count: int | None) -> Pipe:
    """The rows of `node` with equal `keys` in one partition; moved only if they are not."""
    have = partitioning(node)
    if pipe.n == 1 or (have.keys and set(have.keys) <= set(keys)):
        return pipe
    if count is None and pipe.placed and set(pipe.placed.keys) <= set(keys):
        return pipe
    own = tuple(node.schema.field(key, "group").type for key in keys)
    return _by_hash(
        cuts, pipe, Placed(keys, own, count or pipe.n), count is None and have.n is None
    )


def join(cuts: Cuts, node: n.Join, left: Pipe, right: Pipe) -> Pipe:
    """Both sides by hash of the keys, cast to one type; or one goes to every task, if small."""
    count = max(left.n, right.n)
    if count == 1:
        return loosened(cuts.together(node, (left, right), "join"))
    sides = _sides(node, count)
    if sides and _lies(node.left, left, sides[0]) and _lies(node.right, right, sides[1]):
        return loosened(cuts.together(node, (left, right), "join"))
    most_bytes = cuts.settings.split_bytes // BROADCAST_PART
    if node.how in _KEEP_LEFT and left.n > 1 and _read_bytes(node.right) <= most_bytes:
        right = cuts.gathered(right, left.n)
        return loosened(cuts.together(node, (left, right), "join, right side to all"))
    if node.how in _KEEP_RIGHT and right.n > 1 and _read_bytes(node.left) <= most_bytes:
        left = cuts.gathered(left, right.n)
        return loosened(cuts.together(node, (left, right), "join, left side to all"))
    if sides is None:
        return cuts.whole(node, (left, right))
    auto = partitioning(node.left).n is None and partitioning(node.right).n is None
    if not _lies(node.left, left, sides[0]):
        left = _by_hash(cuts, left, sides[0], auto)
    if not _lies(node.right, right, sides[1]):
        right = _by_hash(cuts, right, sides[1], auto)
    return loosened(cuts.together(node, (left, right), "join"))


# Joins in which each row of one side, with all of the other, gives its rows by itself.
_KEEP_LEFT = ("inner", "left", "semi", "anti", "cross")
_KEEP_RIGHT = ("inner", "right", "cross")


def _read_bytes(node: n.Node) -> int:
    """Of a side whose rows come from its source one by one; of any other, nobody knows."""
    while isinstance(node, n.Filter | n.Project | n.Limit) and not getattr(node, "flat", False):
        node = node.input
    if isinstance(node, n.DataSource) and node.rows is not None:
        return int(node.rows.table.nbytes)
    if isinstance(node, n.DataSource) and node.files:
        return sum(file.size_bytes for file in node.files)
    return sys.maxsize


def _sides(node: n.Join, count: int) -> tuple[Placed, Placed] | None:
    """How both sides must lie; None where only DuckDB knows which keys are equal."""
    if not node.equal or node.how == "cross":
        return None
    types = tuple(
        _common(node.left.schema.field(a, "join").type, node.right.schema.field(b, "join").type)
        for a, b in node.equal
    )
    if any(kind is None for kind in types):
        return None
    known = tuple(kind or "" for kind in types)
    names = tuple(zip(*node.equal, strict=True))
    return Placed(names[0], known, count), Placed(names[1], known, count)


def _lies(at: n.Node, pipe: Pipe, wanted: Placed) -> bool:
    """Whether rows lie where they should; then they do not move."""
    have = partitioning(at)
    given = (have.n, have.keys, have.types) == (wanted.n, wanted.keys, wanted.types)
    return pipe.n == wanted.n and (given or pipe.placed == wanted)


def _by_hash(cuts: Cuts, pipe: Pipe, placed: Placed, auto: bool) -> Pipe:
    own = (pipe.schema.field(key, "hash").type for key in placed.keys)
    casts = tuple("" if a == b else b for a, b in zip(own, placed.types, strict=True))
    number = f.hash_partition(placed.keys, casts, placed.n)
    title = f"hash by {', '.join(placed.keys)}"
    moved = cuts.exchange(pipe, number, placed.n, title, placed.keys, auto=auto)
    return replace(moved, placed=placed)


_WHOLE = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT")


def _common(left: str, right: str) -> str | None:
    """A type in which equal keys of both sides hash alike; None where only DuckDB knows."""
    if left == right:
        return left
    if left in _WHOLE and right in _WHOLE:
        return _WHOLE[max(_WHOLE.index(left), _WHOLE.index(right))]
    return None
