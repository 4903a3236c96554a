"""Plan → plan: the same rows and the same schema, with less work.

`RULES` lists every rule, in order. A rule looks at a node and its inputs, never at
parents; `None` means "not mine". The schema is checked after every rule.
"""

from collections.abc import Callable
from dataclasses import replace

from millpond.optimize.columns import narrow_below_partition
from millpond.optimize.limits import limit_into_scan
from millpond.optimize.partitions import (
    filter_below_partition,
    partition_below_partition,
    partition_below_sort,
)
from millpond.plan import nodes as n

Rule = Callable[[n.Node], n.Node | None]

RULES: tuple[Rule, ...] = (
    partition_below_partition,
    partition_below_sort,
    filter_below_partition,
    narrow_below_partition,
    limit_into_scan,
)

_MOST_REWRITES = 1_000  # A rule that undoes another would never end; no plan comes near.


def optimize(node: n.Node, rules: tuple[Rule, ...] = RULES) -> n.Node:
    """Apply the rules everywhere until none applies. A node that several read stays one."""
    return _Rewriter(rules).rewrite(node)


class _Rewriter:
    def __init__(self, rules: tuple[Rule, ...]) -> None:
        self._rules = rules
        self._done: dict[int, tuple[n.Node, n.Node]] = {}
        self._rewrites = 0

    def rewrite(self, node: n.Node) -> n.Node:
        if id(node) not in self._done:
            self._done[id(node)] = node, self._settle(self._with_inputs(node))
        return self._done[id(node)][1]

    def _settle(self, node: n.Node) -> n.Node:
        for rule in self._rules:
            better = rule(node)
            if better is not None:
                assert better.schema == node.schema, f"{rule.__name__} changed the schema"
                self._rewrites += 1
                assert self._rewrites < _MOST_REWRITES, f"{rule.__name__} does not end"
                return self._settle(self._with_inputs(better))
        return node

    def _with_inputs(self, node: n.Node) -> n.Node:
        match node:
            case n.DataSource() | n.Kept():
                return node
            case n.Join():
                left, right = self.rewrite(node.left), self.rewrite(node.right)
                same = left is node.left and right is node.right
                return node if same else replace(node, left=left, right=right)
            case n.Union() | n.SqlEngine() | n.GlobalSql():
                inputs = tuple(self.rewrite(i) for i in node.inputs)
                same = all(a is b for a, b in zip(inputs, node.inputs, strict=True))
                return node if same else replace(node, inputs=inputs)
            case _:
                before = self.rewrite(node.input)
                return node if before is node.input else replace(node, input=before)
