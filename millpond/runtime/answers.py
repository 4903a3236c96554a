"""How a task's end travels from the process that ran it: as bytes that always unpickle.

A user's exception may not pickle, or not unpickle elsewhere; then its text travels, in
ours. Bytes also keep a runtime from wrapping errors in errors of its own.
"""

import pickle
import traceback
from contextlib import suppress

import cloudpickle

from millpond.errors import MillpondError, OutOfMemory, TaskError
from millpond.physical.stages import Task
from millpond.runtime.place import Ended
from millpond.worker import Worker, describe_inputs, run_task


def answer(task: Task, worker: Worker) -> bytes:
    """Run the task; what it gave or raised."""
    try:
        return pickle.dumps(("ended", run_task(task, worker), b""), protocol=5)
    except BaseException as error:  # The task ends here: also sys.exit() of user code, our bugs.
        return failure(task, error, worker.node)


def failure(task: Task, error: BaseException, node: str) -> bytes:
    """The answer of a task that raised `error` on `node`, if that has a name."""
    if isinstance(error, MillpondError):
        error.node = node
        return _raised(error, error.__cause__)
    if isinstance(error, MemoryError):
        return _raised(OutOfMemory(f"Python ran out of memory: {error}"), None)
    return _raised(_unexpected(task, error), error)


def opened(data: bytes) -> Ended:
    """The inverse of `answer`: gives or raises what the task did."""
    kind, value, cause = pickle.loads(data)
    if kind == "ended":
        ended: Ended = value
        return ended
    with suppress(Exception):  # The user's exception may not unpickle here.
        value.__cause__ = pickle.loads(cause) if cause else None
    raise value


def _unexpected(task: Task, error: BaseException) -> TaskError:
    return TaskError(
        f"{type(error).__name__}: {error}",
        stage=task.id.stage,
        partition=task.id.partition,
        inputs=describe_inputs(task),
        traceback="".join(traceback.format_exception(error)),
    )


def _raised(error: MillpondError, cause: BaseException | None) -> bytes:
    pickled = b""
    with suppress(Exception):
        pickled = cloudpickle.dumps(cause) if cause is not None else b""
    return pickle.dumps(("raised", error, pickled), protocol=5)
