"""Plan → plan: the same rows and the same schema, with less work.

`RULES` lists every rule, in order. A rule looks at a node and its inputs, never at
parents; `None` means "not mine". The schema is checked after every rule.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from millpond.optimize.columns import narrow_inputs, narrow_inputs_of_sql
from millpond.optimize.filters import (
    filter_below_columns,
    filter_below_group,
    filter_below_join,
    filter_below_partition,
    filter_below_sort,
    filter_below_union,
    filter_of_filter,
)
from millpond.optimize.functions import row_functions_together
from millpond.optimize.limits import limit_below_project, limit_into_scan, limit_of_limit
from millpond.optimize.partitions import (
    partition_as_it_is,
    partition_below_group,
    partition_below_partition,
    partition_below_sort,
    partition_below_sql,
)
from millpond.optimize.unions import union_of_unions
from millpond.plan import nodes as n
from millpond.plan.depth import room_for

Rule = Callable[[n.Node], n.Node | None]

RULES: tuple[Rule, ...] = (
    partition_as_it_is,
    partition_below_partition,
    partition_below_sort,
    partition_below_group,
    partition_below_sql,
    filter_below_partition,
    filter_below_sort,
    filter_below_columns,
    filter_below_group,
    filter_below_union,
    filter_below_join,
    filter_of_filter,
    union_of_unions,
    limit_of_limit,
    limit_below_project,
    limit_into_scan,
    narrow_inputs,
    narrow_inputs_of_sql,
    row_functions_together,
)

_MOST_REWRITES = 100_000  # A rule that undoes another would never end; no plan comes near.


def optimize(node: n.Node, rules: tuple[Rule, ...] = RULES) -> n.Node:
    """Apply the rules everywhere until none applies. A node that several read stays one."""
    with room_for(node):
        return _unshared(_Rewriter(node, rules).rewrite(node), {})


class _Rewriter:
    def __init__(self, root: n.Node, rules: tuple[Rule, ...]) -> None:
        self._rules = rules
        self._done: dict[int, tuple[n.Node, n.Node]] = {}
        self._shared: dict[int, n.Shared] = {}
        self._readers = _readers(root)
        self._rewrites = 0

    def rewrite(self, node: n.Node) -> n.Node:
        if isinstance(node, n.Shared):
            return node
        if id(node) not in self._done:
            self._done[id(node)] = node, self._settle(_with_inputs(node, self._input))
        return self._done[id(node)][1]

    def _input(self, node: n.Node) -> n.Node:
        """The better input; behind a wall where others read it too, or each would get its own."""
        better = self.rewrite(node)
        if self._readers[id(node)] < 2 or isinstance(node, n.DataSource | n.Kept):
            return better
        if id(node) not in self._shared:
            self._shared[id(node)] = n.Shared(better)
        return self._shared[id(node)]

    def _settle(self, node: n.Node) -> n.Node:
        while (better := self._better(node)) is not None:
            self._rewrites += 1
            assert self._rewrites < _MOST_REWRITES, "rules undo each other"
            node = _with_inputs(better, self._input)
        return node

    def _better(self, node: n.Node) -> n.Node | None:
        for rule in self._rules:
            better = rule(node)
            if better is not None:
                assert better.schema == node.schema, f"{rule.__name__} changed the schema"
                return better
        return None


def _readers(root: n.Node) -> Counter[int]:
    readers: Counter[int] = Counter()
    waiting, seen = [root], {id(root)}
    while waiting:
        for i in n.inputs_of(waiting.pop()):
            readers[id(i)] += 1
            if id(i) not in seen:
                seen.add(id(i))
                waiting.append(i)
    return readers


def _unshared(node: n.Node, done: dict[int, tuple[n.Node, n.Node]]) -> n.Node:
    """The plan without walls; what several read is one node again."""
    if id(node) not in done:
        inner = node.input if isinstance(node, n.Shared) else node
        # The node is held as well, so that no other can take its id meanwhile.
        done[id(node)] = node, _with_inputs(inner, lambda i: _unshared(i, done))
    return done[id(node)][1]


def _with_inputs(node: n.Node, better: Callable[[n.Node], n.Node]) -> n.Node:
    """The node over better inputs; itself where none is better."""
    match node:
        case n.DataSource() | n.Kept():
            return node
        case n.Join():
            left, right = better(node.left), better(node.right)
            same = left is node.left and right is node.right
            return node if same else replace(node, left=left, right=right)
        case n.Union() | n.SqlEngine() | n.GlobalSql():
            inputs = tuple(better(i) for i in node.inputs)
            same = all(a is b for a, b in zip(inputs, node.inputs, strict=True))
            return node if same else replace(node, inputs=inputs)
        case _:
            before = better(node.input)
            return node if before is node.input else replace(node, input=before)
