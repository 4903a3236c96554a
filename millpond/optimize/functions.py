"""Rules about the user's functions."""

from dataclasses import replace

from millpond.plan import nodes as n
from millpond.plan.wire import plain

_OF_ROWS = ("row", "filter", "flat")


def row_functions_together(node: n.Node) -> n.Node | None:
    """PythonBatches(PythonBatches(t, f), g)  ->  PythonBatches(t, f, g)

    Functions of rows hand on rows of Python's: no Arrow is made and read between them.
    Left alone where SQL would make other values of them, as it does for a UUID.
    """
    match node:
        case n.PythonBatches(n.PythonBatches(below, first, between, before), call) if (
            first.kind in _OF_ROWS
            and call.kind in _OF_ROWS
            and first.needs == call.needs
            and plain(between) == between
        ):
            earlier = (*before, n.RowCall(first, between), *node.earlier)
            return replace(node, input=below, earlier=earlier)
    return None
