"""Which plans are a sort of fixed-width records, that needs no SQL at all."""

from millpond.expr import quote
from millpond.formats.fixed import layout_of
from millpond.physical.stages import RecordSortStep
from millpond.plan import nodes as n


def record_sort(node: n.Node) -> RecordSortStep | None:
    """DataSink(fixed, Sort(DataSource(fixed), one field ascending)), or None.

    Whole records on the way: no filter, no limit, the same fields in and out, and files
    that this machine opens by itself.
    """
    match node:
        case n.DataSink(
            n.Sort(n.DataSource(scan, files), (key,), partial=False, n=None),
            format="fixed",
            path=path,
            options=options,
        ) if scan.format == "fixed":
            layout = layout_of(scan)
            plain = not (scan.filter or scan.identity or scan.limit is not None)
            whole = scan.schema.names == layout.names and options == scan.options
            local = not any("://" in place for place in (path, *(file.path for file in files)))
            field = next((x for x in layout.names if key.sql in (x, quote.name(x))), None)
            if plain and whole and local and field is not None and not key.descending:
                pairs = tuple(zip(layout.names, layout.widths, strict=True))
                return RecordSortStep(pairs, field, node.schema)
    return None
