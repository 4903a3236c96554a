"""The fingerprint of a stage: its fragment, inputs, the stages it reads, and versions.

Empty where the stage, or one that it reads, may give other rows in another run: such
a stage is never reused from a journal.
"""

from collections.abc import Sequence

from millpond.physical.stages import (
    ConcatInput,
    Determinism,
    PythonStep,
    RecordBoundsStep,
    RecordRangesStep,
    RecordSortStep,
    SourceInput,
    SqlStep,
    Stage,
    Step,
    ToFile,
    reads,
)
from millpond.plan.fingerprint import digest


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
    target = (output.format, output.name, output.options) if isinstance(output, ToFile) else output
    return digest(
        versions, [_step(s) for s in stage.fragment.steps], inputs, before, target, stage.schema
    )


def _step(step: Step) -> object:
    match step:
        case SqlStep(sql, schema, udfs):
            called = [(udf.name, udf.call.identity, udf.parameters, udf.returns) for udf in udfs]
            return (sql, schema, called) if called else (sql, schema)
        case PythonStep(call, input, schema):
            return call.identity, call.kind, call.batch_size, call.format, input, schema
        case RecordSortStep() | RecordBoundsStep() | RecordRangesStep():
            return step
