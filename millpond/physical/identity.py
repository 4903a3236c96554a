"""The fingerprint of a stage: its fragment, inputs, the stages it reads, and versions.

Empty where the stage, or one that it reads, may give other rows in another run: such
a stage is never reused from a journal.
"""

from collections.abc import Sequence
from dataclasses import replace

from millpond.physical.fused import all_nodes
from millpond.physical.pipe import varies
from millpond.physical.stages import ConcatInput, Determinism, SourceInput, Stage, ToFile
from millpond.physical.steps import (
    PythonStep,
    ReadStep,
    RecordBoundsStep,
    RecordRangesStep,
    RecordSortStep,
    ShuffleStep,
    SortStep,
    SqlStep,
    Step,
)
from millpond.physical.tasks import reads
from millpond.plan import nodes as n
from millpond.plan.fingerprint import digest, source_identity


def stage_fingerprint(stage: Stage, earlier: Sequence[Stage], versions: str) -> str:
    """The fingerprint of `stage`, given the stages before it."""
    before = [earlier[i].fingerprint for i in reads(stage)]
    if stage.determinism is Determinism.VARIES or not all(before):
        return ""
    places = {number: place for place, number in enumerate(reads(stage))}
    inputs = []
    for item in stage.inputs:
        if isinstance(item, SourceInput):
            slices = [(s.slices, s.rows.digest if s.rows else "") for s in item.splits]
            inputs.append(repr((item.scan, slices, item.broadcast, item.identity, item.first_rows)))
        else:
            # By place among what it reads, not by number: an edit elsewhere renumbers stages.
            numbers = item.stages if isinstance(item, ConcatInput) else (item.stage,)
            rest = repr(item).partition(",")[2]
            inputs.append(repr((type(item).__name__, [places[i] for i in numbers], rest)))
    output = stage.output
    target = (
        (
            output.format,
            output.name,
            output.options,
            output.n,
            output.keys,
            output.keeps_keys,
            output.each_bytes,
            output.sorted_by,
        )
        if isinstance(output, ToFile)
        else output
    )
    return digest(
        versions, [_step(s) for s in stage.fragment.steps], inputs, before, target, stage.schema
    )


def identified(stage: Stage, node: n.Node, versions: str) -> Stage:
    """The only stage of a plan, with its fingerprint."""
    nodes = all_nodes(node)
    if any(varies(at) for at in nodes):
        return stage
    found = [at.source if isinstance(at, n.Kept) else at for at in nodes]
    sources = [source_identity(at) for at in found if isinstance(at, n.DataSource)]
    return replace(stage, fingerprint=digest(stage_fingerprint(stage, (), versions), sources))


def _step(step: Step) -> object:
    match step:
        case SqlStep(sql, schema, udfs):
            called = [(udf.name, udf.call.identity, udf.parameters, udf.returns) for udf in udfs]
            return (sql, schema, called) if called else (sql, schema)
        case PythonStep(call, input, schema, earlier):
            before = [(each.call.identity, each.call.kind, each.schema) for each in earlier]
            return call.identity, call.kind, call.batch_size, call.format, input, schema, *before
        case (
            ReadStep() | ShuffleStep() | SortStep()
            | RecordSortStep() | RecordBoundsStep() | RecordRangesStep()
        ):  # fmt: skip
            return step
