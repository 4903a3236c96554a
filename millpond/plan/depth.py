"""Long chains of steps: each is a level of recursion for whoever walks a plan."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from millpond.plan import nodes as n

_FRAMES = 12  # Of Python, at most, that a rule or a planner stacks for one node.


@contextmanager
def room_for(plan: n.Node) -> Iterator[None]:
    """Let Python recurse as deep as the plan asks for; its own limit guards against no end."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(max(before, before + _FRAMES * depth(plan)))
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


def depth(plan: n.Node) -> int:
    """Levels of nodes, without recursion."""
    level, levels = {id(plan): plan}, 0
    while level:
        below = (i for node in level.values() for i in n.inputs_of(node))
        level, levels = {id(i): i for i in below}, levels + 1
    return levels
