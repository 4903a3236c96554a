"""Rules about frames that were put together one by one."""

from dataclasses import replace

from millpond.plan import nodes as n


def union_of_unions(node: n.Node) -> n.Node | None:
    """Union(Union(t, u), v)  ->  Union(t, u, v)

    Else the rows of t pass through a task for each union above them. Only where the schemas
    are equal: a value may become another on its way through a type in between.
    """
    match node:
        case n.Union(inputs=inputs) if any(_same(node, i) for i in inputs):
            flat = (i.inputs if isinstance(i, n.Union) and _same(node, i) else (i,) for i in inputs)
            return replace(node, inputs=tuple(leaf for leaves in flat for leaf in leaves))
    return None


def _same(node: n.Union, input: n.Node) -> bool:
    return isinstance(input, n.Union) and input.schema == node.schema
