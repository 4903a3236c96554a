"""Every error that Millpond raises on purpose, and its warnings.

A message says where, what, what there was instead and what to do. An error
travels between processes, so all of its state is plain data.
"""

import pickle
import sys
import warnings
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any


def warn(text: str) -> None:
    """Warn at the line of the user's that called Millpond."""
    frame, level = sys._getframe(1), 2
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] == "millpond":
        frame, level = frame.f_back, level + 1
    warnings.warn(text, stacklevel=level)


class MillpondError(Exception):
    """The base of all errors raised on purpose."""

    node: str = ""  # Where it was raised, if that was a task on a node that has a name.

    def located(self, place: str) -> "MillpondError":
        """The same error, with the place in the run where it happened."""
        error = _rebuild(type(self), (f"{self} ({place})",), dict(self.__dict__))
        return error.with_traceback(self.__traceback__)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _rebuild, (type(self), self.args, dict(self.__dict__), _sendable(self.__cause__))


def _rebuild(
    kind: type[MillpondError],
    args: tuple[Any, ...],
    state: dict[str, Any],
    cause: bytes | None = None,
) -> MillpondError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(state)
    error.__cause__ = _received(cause)
    return error


def _sendable(cause: BaseException | None) -> bytes | None:
    """A cause goes along where it can be pickled; its text is in the message anyway."""
    try:
        return pickle.dumps(cause) if cause is not None else None
    except Exception:  # Whatever the foreign exception's own pickling raises.
        return None


def _received(data: bytes | None) -> BaseException | None:
    try:
        return pickle.loads(data) if data is not None else None  # Between our own processes.
    except Exception:  # A class that this process does not have.
        return None


class OptionError(MillpondError):
    """An option has a value that it cannot have."""


class ColumnNotFound(MillpondError):
    """A name was used that the input does not have."""

    def __init__(self, name: str, available: Sequence[str], where: str) -> None:
        near = get_close_matches(str(name).casefold(), [a.casefold() for a in available], n=1)
        original = next((a for a in available if near and a.casefold() == near[0]), None)
        hint = f"Did you mean {original!r}? " if original else ""
        has = ", ".join(available) if available else "no columns"
        super().__init__(f"{where}: no column {name!r}. {hint}The input has: {has}.")
        self.name, self.available = name, tuple(available)


class SqlError(MillpondError):
    """SQL that does not parse, or that DuckDB cannot bind or run."""


class SchemaMismatch(MillpondError):
    """Names or types differ where they must agree."""


class NotInPython(MillpondError):
    """A value that Python's own types do not have, such as an infinite date."""


class PathNotFound(MillpondError):
    """A path, or a glob, names no file."""

    def __init__(self, path: str, where: str) -> None:
        super().__init__(
            f"{where}: no file at {path!r}. Check the path; a glob must match at least one file."
        )
        self.path = path


class FileUnreadable(MillpondError):
    """A file exists but is not what it should be: truncated, or another format."""


class TargetNotEmpty(MillpondError):
    """A write would mix with files that are already there."""

    def __init__(
        self, path: str, where: str,
        todo: str = "Pass mode='overwrite' to replace them or mode='append' to add to them.",
    ) -> None:  # fmt: skip
        super().__init__(f"{where}: {path!r} already holds files. {todo}")
        self.path = path


class StorageError(MillpondError):
    """The storage refused or failed; the message says path, status and what to check."""


class NotAtomic(StorageError):
    """The store cannot create a file only where none is, so concurrent writers would collide."""


class TableChanged(StorageError):
    """Another writer changed a table meanwhile, and both changes cannot stand: ours did not."""


class MissingExtra(MillpondError):
    """An optional dependency is not installed."""

    def __init__(self, extra: str, what: str) -> None:
        super().__init__(f"{what} needs the extra {extra!r}: pip install 'millpond[{extra}]'.")
        self.extra = extra


class TaskError(MillpondError):
    """A task failed for a reason that another attempt would not change.

    `__cause__` is the user's own exception where a Python function raised it,
    and `traceback` is its text as it was in the worker.
    """

    def __init__(
        self, message: str, *, stage: int, partition: int, inputs: str, traceback: str = ""
    ) -> None:
        tail = f"\n\n{traceback.rstrip()}" if traceback else ""
        super().__init__(f"{message} (stage {stage}, partition {partition}; input: {inputs}){tail}")
        self.stage, self.partition, self.inputs, self.traceback = (
            stage,
            partition,
            inputs,
            traceback,
        )


class Transient(MillpondError):
    """A failure that may pass: the schedule tries the task again."""


class WorkerLost(Transient):
    """The process or node that ran a task is gone."""


class CallLost(WorkerLost):
    """The same, and the process ran several tasks in turn: which of them it had ended, and which
    ended it, is not known.
    """


class TaskTimedOut(Transient):
    """A task ran for longer than `task_timeout`, and was ended."""


class OutOfMemory(Transient):
    """A task needed more than its share of memory."""


class DiskFull(MillpondError):
    """No space is left where a file must be written."""


class PartDamaged(MillpondError):
    """A part was computed again after a bad checksum, and is still bad."""


class NodeTaken(MillpondError):
    """A task that wants a node to itself waited for it in vain: others have some of it."""


class GaveUp(MillpondError):
    """A task failed on every attempt; the message tells the whole story."""


class RowsUnreadable(MillpondError):
    """Rows of a training set whose bytes are missing or do not fit their checksums."""

    def __init__(self, dataset: str, shard: str, rows: Sequence[int], what: str) -> None:
        some = ", ".join(str(row) for row in rows[:5]) + (", …" if len(rows) > 5 else "")
        super().__init__(
            f"dataset {dataset!r}, shard {shard!r}: {what} ({len(rows)} of the rows asked for: "
            f"{some}). Restore the shard from a copy or write the dataset again; "
            "loader(on_error='skip') replaces such rows."
        )
        self.dataset, self.shard, self.rows = dataset, shard, tuple(rows)


class RowNotFound(MillpondError, IndexError):
    """A training set has no row of this number. Python's own loops over a sequence end with it."""


class StateMismatch(MillpondError):
    """A loader's state does not belong to this loader: other data, seed, order or version."""
