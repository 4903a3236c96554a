"""Which functions of batches to measure, and on which rows."""

from dataclasses import replace

from millpond.physical.fused import functions_in_line
from millpond.physical.shape import Settings, why_staged
from millpond.physical.splits import count_rows
from millpond.plan import nodes as n

MANY_ROWS = 1_000_000  # Before fewer, measuring costs more than it may save.


def to_measure(node: n.Node, settings: Settings) -> list[n.PythonBatches]:
    """The functions that alone keep `node` from the fused shape, the first to run first.

    Empty where something else does too, and where few rows come.
    """

    def assumed(call: n.PythonCall) -> bool:
        return True

    functions = functions_in_line(node)
    if not functions or why_staged(node, replace(settings, is_light=assumed)) is not None:
        return []
    source = _source(functions[-1])
    if source is None or source.scan.format not in ("memory", "parquet"):
        return []
    if count_rows(source, settings.footer) < MANY_ROWS:
        return []
    return [at for at in reversed(functions) if not settings.is_light(at.call)]


def first_rows(node: n.Node, count: int) -> n.Node:
    """Some rows of `node`, from the first file alone."""
    return n.Limit(_narrowed(node), count)


def _source(node: n.Node) -> n.DataSource | None:
    while isinstance(node, n.Project | n.Filter | n.PythonBatches):
        node = node.input
    return node if isinstance(node, n.DataSource) else None


def _narrowed(node: n.Node) -> n.Node:
    if isinstance(node, n.Project | n.Filter | n.PythonBatches):
        return replace(node, input=_narrowed(node.input))
    assert isinstance(node, n.DataSource)
    return replace(node, files=node.files[:1])
