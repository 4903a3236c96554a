"""A plan that is a sort of fixed-width records, and its stage: it needs no SQL at all."""

import json

from millpond.expr import quote
from millpond.formats.scan import FileSlice, Split
from millpond.physical.fused import to_file
from millpond.physical.shape import Settings
from millpond.physical.stages import Fragment, RecordSortStep, SourceInput, Stage
from millpond.plan import nodes as n


def record_sort(node: n.Node, settings: Settings) -> Stage | None:
    """DataSink(fixed, Sort(DataSource(fixed), one field ascending))  ->  one stage, or None.

    Whole records on the way: no filter, no limit, the same fields in and out, and files
    that this machine opens by itself. It makes as many files as its memory asks for, so
    the sink must be a folder.
    """
    match node:
        case n.DataSink(
            n.Sort(n.DataSource(scan, files), (key,), partial=False, n=None),
            format="fixed",
            name=name,
        ) if scan.format == "fixed" and name:
            fields = tuple(json.loads(dict(scan.options)["fields"]).items())
            written = tuple(json.loads(dict(node.options)["fields"]).items())
            whole = fields == written and scan.schema.names == tuple(f for f, _ in fields)
            plain = not (scan.filter or scan.identity or scan.limit is not None)
            local = not any("://" in path for path in (node.path, *(f.path for f in files)))
            field = next((f for f, _ in fields if key.sql in (f, quote.name(f))), None)
            if plain and whole and local and field is not None and not key.descending:
                step = RecordSortStep(fields, field, node.schema)
                split = Split(tuple(FileSlice(file.path) for file in files))
                given = SourceInput(scan, (split,), broadcast=True)
                return Stage(0, "sort records", Fragment((step,)), (given,), to_file(node),
                             node.schema, run=settings.run)  # fmt: skip
    return None
