"""In a worker process of a cluster: its worker, the tasks of a call, bytes of other nodes."""

import os
import pickle
import time
from collections.abc import Sequence
from typing import TypeAlias

from millpond.errors import MillpondError, WorkerLost
from millpond.physical.stages import PartRef, Task
from millpond.runtime.answers import answer, failure
from millpond.runtime.binding import Parts, bound
from millpond.runtime.calls import Calls
from millpond.runtime.commands import CALL_S
from millpond.runtime.node import Versions, versions
from millpond.runtime.ray.cluster import NAMESPACE, START_S, Handle, check_same, ray
from millpond.worker import Worker, WorkerOptions, build_worker

_READ_S = 60.0

Wanted: TypeAlias = Sequence[tuple[PartRef, Sequence[tuple[int, int]]]]

_workers: dict[str, tuple[Worker, Calls]] = {}  # By session: one at a time.
_handles: dict[str, Handle] = {}  # Services, by name.


def packed(
    session: str, shared: bool, name: str, tasks: Sequence[Task], stages: Sequence[int]
) -> bytes:
    """The argument of a call: one of bytes costs Ray a third of what several values do."""
    return pickle.dumps((session, shared, name, tasks, stages), protocol=5)


def run_call(call: bytes, *parts: Parts) -> bytes:
    """A Ray task. `parts` arrive as the tuples that were put, one per stage.

    An answer for each task, until they have taken `CALL_S`: the rest have not begun. None at
    all if the call was dropped.
    """
    session, shared, name, tasks, stages = pickle.loads(call)
    try:
        worker, calls = _worker(session, shared)
        if not calls.begin(name):
            return pickle.dumps([])
    except MillpondError as error:
        node = ray.get_runtime_context().get_node_id()
        return pickle.dumps([failure(task, error, node) for task in tasks])
    by_stage, answers = dict(zip(stages, parts, strict=True)), []
    end_s = time.monotonic() + CALL_S
    try:
        for task in tasks:
            answers.append(answer(bound(task, by_stage), worker))
            if time.monotonic() > end_s:
                break
    finally:
        calls.end(name)
    return pickle.dumps(answers)


class Hand:
    """An actor that runs one call at a time."""

    def run(self, call: bytes, *parts: Parts) -> bytes:
        return run_call(call, *parts)


def _worker(session: str, shared: bool) -> tuple[Worker, Calls]:
    """The worker of this process, built at its first task, and the calls of its node."""
    if session not in _workers:
        for old in [*_workers]:
            _workers.pop(old)[0].close()
        node = ray.get_runtime_context().get_node_id()
        options, wanted, calls = _setup(session, node)
        check_same(wanted, versions(), node)
        worker = build_worker(
            options,
            node="" if shared else node,
            fetch=lambda node, wanted: fetch(session, node, wanted),
        )
        _workers[session] = worker, Calls(calls)
    return _workers[session]


def _setup(session: str, node: str) -> tuple[WorkerOptions, Versions, str]:
    end_s = time.monotonic() + START_S
    while True:
        try:
            service = _service(session, node)
            asked = service.worker_setup.remote(os.getpid())
            found: tuple[WorkerOptions, Versions, str] = ray.get(asked, timeout=START_S)
            return found
        except (ValueError, ray.exceptions.RayError) as error:
            # A node that has just joined gets its service within a second or two.
            if time.monotonic() > end_s or not _is_served(session):
                raise WorkerLost(f"node {node} has no service of this session") from error
            _handles.clear()
            time.sleep(0.1)


def _is_served(session: str) -> bool:
    """Does any node have a service of this session? One that has ended may have left calls."""
    names = ray.util.list_named_actors(all_namespaces=True)
    return any(each["name"].startswith(service_name(session, "")) for each in names)


def fetch(session: str, node: str, wanted: Wanted) -> Sequence[Sequence[bytes] | OSError]:
    """Byte ranges of some parts of one node, or why there are none, by one call."""
    try:
        service = _service(session, node)
        asked = service.read.remote([(ref.path, list(ranges)) for ref, ranges in wanted])
        found: list[list[bytes] | str] = ray.get(asked, timeout=_READ_S)
    except (ValueError, ray.exceptions.RayError) as error:
        _handles.pop(service_name(session, node), None)
        raise OSError(f"node {node} does not give it: {type(error).__name__}") from error
    return [OSError(f"node {node}: {each}") if isinstance(each, str) else each for each in found]


def _service(session: str, node: str) -> Handle:
    """The service of a node; ValueError if there is none, or no longer."""
    name = service_name(session, node)
    if name not in _handles:
        _handles[name] = ray.get_actor(name, namespace=NAMESPACE)
    return _handles[name]


def service_name(session: str, node: str) -> str:
    return f"{session}-{node}"
