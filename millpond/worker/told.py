"""Errors of a task, in the words of whoever started the run: what was read, and where."""

from millpond.engine.duckdb import Engine
from millpond.engine.values import FunctionError
from millpond.errors import FileUnreadable, MillpondError, OutOfMemory, SqlError, TaskError
from millpond.formats.scan import reader
from millpond.physical.stages import PartRows, SplitRows, Task


def said(task: Task, error: MillpondError) -> MillpondError:
    """The error with its place in the run, for whoever started the run."""
    inputs = describe_inputs(task)
    if isinstance(error, FunctionError):
        if isinstance(error.cause, MemoryError):
            return OutOfMemory(f"{error} (input: {inputs})")
        told = TaskError(
            str(error), stage=task.id.stage, partition=task.id.partition, inputs=inputs,
            traceback=error.traceback,
        )  # fmt: skip
        told.__cause__ = error.cause
        return told
    place = f"stage {task.id.stage}, partition {task.id.partition}; input: {inputs}"
    located = error.located(place)
    located.__cause__ = error.__cause__
    return located


def describe_inputs(task: Task) -> str:
    """What a task read, in the user's words."""
    said = []
    for item in task.inputs:
        match item:
            case SplitRows(splits=splits):
                for piece in (s for split in splits for s in split.slices):
                    rows = f" rows {piece.first_row}–{piece.first_row + piece.n_rows - 1}" if (
                        piece.n_rows) else ""  # fmt: skip
                    said.append(f"{piece.path}{rows}")
                said += ["rows from Python" for split in splits if split.rows is not None]
            case PartRows(stage=stage, first_partition=first):
                said.append(f"partition {first} of stage {stage}")
    return ", ".join(said[:3]) + (f" and {len(said) - 3} more" if len(said) > 3 else "")


def unreadable(task: Task, error: MillpondError, engine: Engine) -> FileUnreadable | None:
    """Whether an error of DuckDB's comes from a file that has no footer any more."""
    if not isinstance(error, SqlError):
        return None
    for item in task.inputs:
        if not isinstance(item, SplitRows) or item.scan.format != "parquet":
            continue
        for piece in (piece for split in item.splits for piece in split.slices):
            try:
                engine.describe(f"FROM {reader('parquet', [piece.path], ())}", {})
            except MillpondError as why:
                return FileUnreadable(f"{piece.path}: not a readable Parquet file ({why}).")
    return None
