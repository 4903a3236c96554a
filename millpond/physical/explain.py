"""Stages → text."""

from collections import Counter, defaultdict

from millpond.events import Event, StageFinished, TaskFinished
from millpond.physical.shape import Physical
from millpond.physical.stages import (
    ConcatInput,
    RowsInput,
    ShardsInput,
    SourceInput,
    Stage,
    StageInput,
    ToFile,
    ToMemory,
    ToPart,
)
from millpond.physical.steps import (
    PythonStep,
    ReadStep,
    RecordBoundsStep,
    RecordRangesStep,
    RecordSortStep,
    ShuffleStep,
    SortStep,
    SqlStep,
)


def explain_stages(physical: Physical) -> str:
    """The shape and why, then each stage: what it reads, computes and writes."""
    lines = [f"{physical.shape}: {physical.reason}"]
    for stage in physical.stages:
        lines += _stage(stage)
    return "\n".join(lines)


class Measured:
    """A listener that adds up what each stage of a run did."""

    def __init__(self) -> None:
        self._tasks: Counter[int] = Counter()
        self._wall_s: defaultdict[int, float] = defaultdict(float)
        self._done: list[StageFinished] = []

    def __call__(self, event: Event) -> None:
        match event:
            case TaskFinished(stage=stage, wall_s=wall_s):
                self._tasks[stage] += 1
                self._wall_s[stage] += wall_s
            case StageFinished():
                self._done.append(event)

    def text(self) -> str:
        """One line a stage, in the order in which they ended.

        Rows are counted where they come from a stage; of files, only DuckDB knows how many it read.
        """
        return "\n".join(
            f"stage {done.stage}: {self._tasks[done.stage]} tasks, "
            f"{f'{done.rows_in:,} rows read, ' if done.rows_in > 0 else ''}"
            f"{done.rows:,} rows and {done.size_bytes:,} bytes written, "
            f"{self._wall_s[done.stage]:.3f} s in tasks"
            for done in self._done
        )


def _stage(stage: Stage) -> list[str]:
    kept = "" if stage.fingerprint else ", never reused by another run"
    lines = [f"stage {stage.id}: {stage.title} ({stage.determinism.value}{kept})"]
    for i, item in enumerate(stage.inputs):
        lines.append(f"  __s{i} = {_input(item)}")
    for step in stage.fragment.steps:
        match step:
            case SqlStep(sql) | ReadStep(sql=sql):
                lines.append(f"  sql {' '.join(sql.split())}")
            case PythonStep(call, light=light, earlier=earlier):
                here = ", in this process" if light else ""
                calls = (*(each.call for each in earlier), call)
                said = ", ".join(f"{each.name} per {each.kind}" for each in calls)
                lines.append(f"  python {said}{here}")
            case ShuffleStep(key):
                lines.append(f"  rows in memory, gathered by {key}")
            case SortStep(bounds=str() as bounds):
                lines.append(f"  ranges in memory, cut by {' '.join(bounds.split())}")
            case RecordSortStep(fields, key):
                width = sum(n_bytes for _, n_bytes in fields)
                lines.append(f"  sort records of {width} bytes by {key}")
            case RecordBoundsStep(key=key, n=n_ranges):
                lines.append(f"  {n_ranges - 1} bounds by {key}, from a sample")
            case RecordRangesStep(key=key):
                lines.append(f"  the range of each record by {key}")
    match stage.output:
        case ToPart(n, how):
            lines.append(f"  to a part of {n} partition{'s' if n > 1 else ''} ({how})")
        case ToFile(format, directory, n=n):
            lines.append(f"  to {n or ''}{' ' if n else ''}{format} files in {directory}")
        case ToMemory():
            lines.append("  to memory")
    return lines


def _input(item: SourceInput | StageInput | ConcatInput | RowsInput | ShardsInput) -> str:
    match item:
        case SourceInput(scan, splits, broadcast):
            how = "all by each task" if broadcast else "one a task"
            return f"{scan.format}, {len(splits)} splits, {how}"
        case StageInput(stage, edge, only, merged=merged):
            some = f", {len(only)} chosen" if only else ", small ones together" if merged else ""
            return f"stage {stage}, {edge.value}{some}"
        case ConcatInput(stages):
            return f"stages {', '.join(map(str, stages))}, one after the other"
        case RowsInput(stage, n):
            return f"stage {stage}, cut into {n} runs of rows"
        case ShardsInput(stage, size):
            each = f"{size.rows:,} rows" if size.rows else f"about {size.size_bytes:,} bytes"
            return f"stage {stage}, cut into runs of {each}"
