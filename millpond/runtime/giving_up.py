"""The errors that end a run, each with its whole story. Texts only."""

from collections.abc import Sequence

from millpond.errors import GaveUp, OutOfMemory, PartDamaged
from millpond.physical.stages import PartRef, Stage


def attempt_failed(attempt: int, how: str, error: BaseException) -> str:
    """A line of a task's story: which attempt, how and where it ran, and what happened."""
    node = getattr(error, "node", "")
    notes = ", ".join(note for note in (node and f"on node {node}", how) if note)
    return f"attempt {attempt}{f' ({notes})' if notes else ''}: {type(error).__name__}: {error}"


def task_failed(stage: Stage, partition: int, story: Sequence[str], error: BaseException) -> GaveUp:
    """A task failed as often as it may; `story` has a line per attempt."""
    lines = "\n".join(f"  {line}" for line in story)
    text = (
        f"stage {stage.id} ({stage.title}), partition {partition}: "
        f"no attempt succeeded, of {len(story)}:\n{lines}"
    )
    if isinstance(error, OutOfMemory):
        text += "\nRaise memory_limit, or use more partitions, so that each task holds less."
    gave_up = GaveUp(text)
    gave_up.__cause__ = error
    return gave_up


def part_damaged(title: str, ref: PartRef, reason: str) -> PartDamaged:
    """A part failed its checksum, was computed again, and failed it again."""
    return PartDamaged(
        f"the part of stage {ref.stage} ({title}), partition {ref.task}, was damaged, "
        f"computed again, and is damaged again: {reason}. It lies at {_place(ref)}: "
        "check that disk."
    )


def part_lost_again(title: str, ref: PartRef, reason: str, times: int) -> GaveUp:
    """A part cannot be kept anywhere."""
    return GaveUp(
        f"the part of stage {ref.stage} ({title}), partition {ref.task}, was lost {times} "
        f"times; last at {_place(ref)}: {reason}. Check that disk and the network."
    )


def _place(ref: PartRef) -> str:
    return f"{ref.path!r} on node {ref.node!r}" if ref.node else f"{ref.path!r} (shared)"
