"""A plan that is a sort of fixed-width records, and its stages: it needs no SQL at all.

On one machine it is one task, from files to files. Where tasks are asked for, it takes
the way of every sort: a sample gives bounds, each split becomes a part with a segment
per range, and each range is sorted into a file.
"""

import json
from dataclasses import replace
from typing import NamedTuple

from millpond.expr import quote
from millpond.formats.scan import FileSlice, Split
from millpond.physical.fused import to_file
from millpond.physical.identity import stage_fingerprint
from millpond.physical.shape import Settings
from millpond.physical.splits import source_splits
from millpond.physical.stages import Edge, SourceInput, Stage, StageInput, ToPart
from millpond.physical.steps import Fragment, RecordBoundsStep, RecordRangesStep, RecordSortStep
from millpond.plan import nodes as n
from millpond.plan.fingerprint import source_identity
from millpond.schema import Schema

# Above it, a rerun from kept parts is worth more than the few seconds that they cost.
_WORTH_KEEPING_BYTES = 1 << 30
_BOUNDS = Schema.of([("key", "BLOB"), ("ordinal", "UBIGINT")])
_RECORD = Schema.of([("record", "BLOB")])


class _Records(NamedTuple):
    """A sort of the records of `source` by their field `key`, into `n` files (None: as due)."""

    source: n.DataSource
    fields: tuple[tuple[str, int], ...]
    key: str
    n: int | None

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.source.files)


def record_sort(node: n.Node, settings: Settings) -> Stage | None:
    """DataSink(fixed, Sort(DataSource(fixed), one field ascending))  ->  one stage, or None.

    Of files that this machine opens by itself. It makes as many files as its memory asks
    for. With a `data_root`, large sets are left to `record_stages`, which resume.
    """
    found = _records(node)
    if found is None or found.n is not None or not isinstance(node, n.DataSink):
        return None
    files = found.source.files
    if any("://" in path for path in (node.path, *(file.path for file in files))):
        return None
    if settings.durable and found.size_bytes > _WORTH_KEEPING_BYTES:
        return None
    step = RecordSortStep(found.fields, found.key, node.schema)
    split = Split(tuple(FileSlice(file.path) for file in files))
    given = SourceInput(found.source.scan, (split,), broadcast=True)
    return Stage(0, "sort records", Fragment((step,)), (given,), to_file(node),
                 node.schema, run=settings.run)  # fmt: skip


def record_stages(node: n.Node, settings: Settings) -> tuple[Stage, ...] | None:
    """The same as tasks: bounds, a part per split, a file per range; None if it is no such sort.

    A range is half a split: a task holds it twice while it gathers it.
    """
    found = _records(node)
    if found is None or not isinstance(node, n.DataSink):
        return None
    fields, key = found.fields, found.key
    count = found.n or max(1, -(-found.size_bytes * 2 // settings.split_bytes))
    splits = source_splits(found.source, settings.split_bytes, settings.footer)
    given = SourceInput(found.source.scan, splits, identity=source_identity(found.source))
    stages: list[Stage] = []
    for title, step, inputs, output, schema in (
        ("sample keys → bounds", RecordBoundsStep(fields, key, count, _BOUNDS),
         (replace(given, broadcast=True),), ToPart(), _BOUNDS),
        (f"read records → range by {key}", RecordRangesStep(fields, key, _RECORD),
         (given, StageInput(0, Edge.ALL)), ToPart(count, "column"), _RECORD),
        ("sort records → write", RecordSortStep(fields, key, node.schema),
         (StageInput(1, Edge.ONE_TO_ONE),), to_file(node), node.schema),
    ):  # fmt: skip
        stage = Stage(len(stages), title, Fragment((step,)), inputs, output, schema,
                      run=settings.run)  # fmt: skip
        known = stage_fingerprint(stage, stages, settings.versions)
        stages.append(replace(stage, fingerprint=known))
    return tuple(stages)


def _records(node: n.Node) -> _Records | None:
    """Whole records on the way: no filter, no limit, the same fields in and out, to a folder."""
    match node:
        case n.DataSink(
            n.Sort(n.DataSource(scan) as source, (key,), partial=False, n=count),
            format="fixed",
            name=name,
        ) if scan.format == "fixed" and name:
            fields = tuple(json.loads(dict(scan.options)["fields"]).items())
            written = tuple(json.loads(dict(node.options)["fields"]).items())
            whole = fields == written and scan.schema.names == tuple(f for f, _ in fields)
            plain = not (scan.filter or scan.identity or scan.limit is not None)
            field = next((f for f, _ in fields if key.sql in (f, quote.name(f))), None)
            if plain and whole and field is not None and not key.descending:
                return _Records(source, fields, field, count)
    return None
