"""Tasks go to the cluster in calls: what runs there, and how it ends."""

import itertools
import pickle
import secrets
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, replace

from millpond.errors import CallLost, DiskFull, NodeTaken, OutOfMemory, Transient, WorkerLost
from millpond.physical.stages import PartRef, Resources, Task, TaskId
from millpond.runtime.answers import opened
from millpond.runtime.binding import Parts, unbound
from millpond.runtime.calls import Dropped
from millpond.runtime.homes import name_in
from millpond.runtime.node import parts_folder
from millpond.runtime.place import Capacity, Ended, NotBegun
from millpond.runtime.ray.cluster import (
    Handle,
    check_connected,
    check_security,
    connect,
    is_connected,
    near,
    ray,
    translated,
)
from millpond.runtime.ray.hands import Hands
from millpond.runtime.ray.nodes import END_S, Nodes, Serving
from millpond.runtime.ray.workers import Wanted, fetch, packed, run_call, service_name
from millpond.worker import WorkerOptions

_WAIT_S = 20.0  # For a whole node. Its worker process may have to start first.


class NodeFull(Transient):
    """The disk of one node is full; the task may run on another."""


@dataclass(eq=False, slots=True)
class Call:
    """Tasks that run one after another in one process, with a future for each."""

    name: str
    tasks: list[Task]
    futures: list[Future[Ended]]
    result: Handle = None
    hand: Handle = None  # The process, if it stays: Ray ends it when nobody holds it any more.
    before: Handle = None  # A call for nothing, where this one waits for a whole node,
    since_s: float = 0.0  # and since when.
    in_vain: bool = False


class RayRuntime:
    """Runs tasks on the cluster at `address`, or on a new one on this machine (None).

    `options` are for each worker process, but for their memory: all of a node take together
    what Ray says that it has, and `node_bytes` at most. Parts stay on the node that wrote them,
    unless `shared_parts` says that `options.parts` is one folder for all nodes. With
    `keep_parts` they outlive a session that is killed, or closed with `keep`.
    """

    def __init__(
        self,
        options: WorkerOptions,
        *,
        address: str | None = None,
        cpus: int | None = None,
        node_bytes: int | None = None,
        shared_parts: bool = False,
        keep_parts: bool = False,
        allow_insecure: bool = False,
    ) -> None:
        self._shared, self._kept = shared_parts, keep_parts
        self._session = secrets.token_hex(8)
        self._owns_ray = connect(address, cpus)
        self._nodes = Nodes(Serving(self._session, options, node_bytes, shared_parts, keep_parts))
        self._hands = Hands()
        self._remotes: dict[tuple[Resources, str], Handle] = {}
        self._parts: dict[int, tuple[Parts, Handle]] = {}
        self._running: dict[TaskId, Call] = {}
        self._waiting: list[Call] = []  # For a whole node.
        self._names = map(str, itertools.count())
        self._cancelling = ThreadPoolExecutor(1, thread_name_prefix="millpond-cancel")
        try:
            check_security(allow_insecure)
            self._nodes.refresh()
            self._nodes.check_versions()
            if shared_parts:
                self.check_shared(options.parts, "data_root")
        except BaseException:
            self.close()
            raise

    def capacity(self) -> Capacity:
        """The CPUs of the nodes that are alive; asked of Ray once a second."""
        check_connected()
        if self._nodes.refresh():
            self._hands.end_idle()
        self._look_at_waiting()
        return replace(self._nodes.capacity, may_grow=not self._owns_ray)

    def submit(self, tasks: Sequence[Task]) -> Sequence[Future[Ended]]:
        """By a call for each node that they are to run on."""
        calls: dict[str, Call] = {}
        futures: list[Future[Ended]] = []
        for task in tasks:
            future: Future[Ended] = Future()
            future.set_running_or_notify_cancel()
            futures.append(future)
            near = self._nodes.near(task.prefer)
            call = calls.setdefault(near, Call(next(self._names), [], []))
            call.tasks.append(task)
            call.futures.append(future)
        for node, call in calls.items():
            self._send(call, node)
        return futures

    def cancel(self, tasks: Sequence[TaskId]) -> None:
        if is_connected():
            self._drop({call for task in tasks if (call := self._running.get(task))})

    def close(self, *, keep: bool = False) -> None:
        """End all tasks, remove the folders on the nodes, leave or end the cluster."""
        if not is_connected():
            self._owns_ray = False
            self._cancelling.shutdown()
            return  # Processes and services went with the connection, or go with the cluster.
        left = set(self._running.values())
        self._drop(left)
        wait([future for call in left for future in call.futures], timeout=END_S)
        self._cancelling.shutdown()
        for call in left:
            call.hand = None
        self._nodes.close(keep=keep and self._kept)
        with suppress(ray.exceptions.RayError):
            self._hands.close()
        if self._owns_ray:
            self._owns_ray = False
            ray.shutdown()

    # ---- for the session -------------------------------------------------------------

    def fetch(self, ref: PartRef, ranges: Sequence[tuple[int, int]]) -> Sequence[bytes]:
        """Byte ranges of a part on whichever node; OSError if it cannot be read."""
        (found,) = self.fetch_many(ref.node, [(ref, ranges)])
        if isinstance(found, OSError):
            raise found
        return found

    def fetch_many(self, node: str, wanted: Wanted) -> Sequence[Sequence[bytes] | OSError]:
        """Byte ranges of some parts of one node, or why there are none, by one call."""
        check_connected()
        return fetch(self._session, node, wanted)

    def name_of(self, part: PartRef) -> tuple[str, str] | None:
        """The folder of a part on its node, and its name there."""
        return name_in(parts_folder(service_name(self._session, part.node)), part)

    def take_up(self, folder: str) -> tuple[str, str] | None:
        """On which node a dead session left parts in `folder`, and where there."""
        check_connected()
        return self._nodes.take_up(folder)

    def forget(self, run: str) -> None:
        if is_connected():
            self._nodes.forget(run)

    def check_shared(self, folder: str, what: str) -> None:
        check_connected()
        self._nodes.check_shared(folder, what)

    def check_inputs(self, paths: Sequence[str]) -> None:
        check_connected()
        self._nodes.check_inputs(paths)

    # ---- calls -----------------------------------------------------------------------

    def _send(self, call: Call, node: str) -> None:
        bare, parts = [], dict[int, Parts]()
        for task in call.tasks:
            without, theirs = unbound(task)
            bare.append(without)
            parts |= theirs  # Of one stage, so all have the same.
        handles = [self._shipped(stage, refs) for stage, refs in parts.items()]
        resources = call.tasks[0].resources
        if resources.gpus:
            call.hand = self._hands.take(resources)
            remote = call.hand.run
        else:
            remote = self._remote(resources, node)
        if resources.whole_node:
            self._wait_for_node(call, remote)
        data = packed(self._session, self._shared, call.name, bare, tuple(parts))
        call.result = remote.remote(data, *handles)
        for task in call.tasks:
            self._running[task.id] = call
        call.result.future().add_done_callback(lambda ended: self._end(call, ended))

    def _wait_for_node(self, call: Call, remote: Handle) -> None:
        """Note a call that begins when nobody else has anything of its node: maybe never.

        Ray tells nobody whether a call has begun. A call for nothing that goes first, to the
        same place, has ended by then.
        """
        self._hands.end_idle(room=True)
        call.before = remote.remote(packed(self._session, self._shared, next(self._names), (), ()))
        call.since_s = time.monotonic()
        self._waiting.append(call)

    def _look_at_waiting(self) -> None:
        """Calls that have begun wait no longer, and neither do those that did so for long."""
        for call in [*self._waiting]:
            begun, _ = ray.wait([call.before], timeout=0)
            call.in_vain = not begun and time.monotonic() - call.since_s > _WAIT_S
            if begun or call.in_vain or call.futures[0].done():
                self._waiting.remove(call)
            if call.in_vain:
                self._drop({call})

    def _remote(self, resources: Resources, node: str) -> Handle:
        # Without a node to prefer: over all of them. Where there is one only, asking for that
        # would cost a millisecond and a half a call, see benchmarks/scale.py.
        where = node or ("SPREAD" if len(self._nodes.working) > 1 else "DEFAULT")
        memory = resources.memory_bytes
        if memory is None and self._nodes.share_bytes is not None:
            # What its worker may take: beside others of this cluster there may be less.
            memory = int(self._nodes.share_bytes * resources.cpus)
        asked = replace(resources, memory_bytes=memory)
        if (asked, where) not in self._remotes:
            self._remotes[asked, where] = ray.remote(run_call).options(
                num_cpus=asked.cpus,
                memory=asked.memory_bytes,
                max_retries=0,
                scheduling_strategy=near(node) if node else where,
            )
        return self._remotes[asked, where]

    def _shipped(self, stage: int, parts: Parts) -> Handle:
        """The parts of a stage as an object that each node fetches once."""
        known, handle = self._parts.get(stage, (None, None))
        if known is not parts:
            handle = ray.put(parts)
            self._parts[stage] = parts, handle
        return handle

    def _drop(self, calls: Iterable[Call]) -> None:
        """Cancel what the nodes take, and settle what none has begun.

        What is not taken may end at any moment, and that of its cancellation would end this
        program: a fault of Ray's, see docs/decisions/0122.
        """
        by_name = {call.name: call for call in calls}
        replies = self._nodes.drop(list(by_name))
        left, begun = itertools.count(len(replies) - 1, -1), set[str]()

        def told(reply: "Future[Dropped]") -> None:  # On a thread of Ray's, which must not wait.
            last = next(left) == 0
            if reply.exception() is None:
                found = reply.result()
                begun.update(found.taken, found.others)
                taken = [by_name[name] for name in found.taken]
                with suppress(RuntimeError):  # A node answers after the end of this session.
                    self._cancelling.submit(self._cancel, taken)
            if last and not any(reply.exception() for reply in replies):
                for name, call in by_name.items():
                    if name not in begun:  # And it never will: nobody needs to wait for it.
                        call.hand = None
                        self._settle(call, [])

        for reply in replies:
            reply.add_done_callback(told)

    def _cancel(self, calls: Iterable[Call]) -> None:
        for call in calls:
            if not is_connected():
                return
            with suppress(Exception):  # Its process has died, or its node has: the future tells.
                if call.hand is not None:
                    ray.kill(call.hand)
                else:
                    # By force: nothing else ends a query or a function that does not return.
                    ray.cancel(call.result, force=True)

    def _end(self, call: Call, ended: "Future[bytes]") -> None:
        self._nodes.dropped.discard(call.name)
        try:
            answers = pickle.loads(ended.result())
        except BaseException as error:  # The call ends here, and all of its tasks.
            self._settle(call, _of_all(translated(error), len(call.tasks)))
            return
        if call.hand is not None:
            self._hands.bring(call.tasks[0].resources, call.hand)
        self._settle(call, answers)

    def _settle(self, call: Call, found: Sequence[bytes] | BaseException) -> None:
        """Give its futures what they have not got: answers of the first tasks, or one error."""
        for task in call.tasks:
            if self._running.get(task.id) is call:
                del self._running[task.id]
        if call.in_vain:
            found = _taken(call)
        answers = [] if isinstance(found, BaseException) else found
        for task, future, answer in itertools.zip_longest(call.tasks, call.futures, answers):
            with suppress(InvalidStateError):
                if isinstance(found, BaseException):
                    future.set_exception(found)
                elif answer is None:
                    future.set_result(NotBegun(task.id))
                else:
                    self._give(future, answer)

    def _give(self, future: Future[Ended], answer: bytes) -> None:
        try:
            found = opened(answer)
        except BaseException as error:  # The task ends here.
            future.set_exception(self._elsewhere(error))
        else:
            future.set_result(found)

    def _elsewhere(self, error: BaseException) -> BaseException:
        """A full disk is one node's own, while there are others with room."""
        if not isinstance(error, DiskFull) or not error.node or self._shared:
            return error
        if not self._nodes.is_full(error.node):
            return error
        told = NodeFull(str(error))
        told.node = error.node
        return told


def _taken(call: Call) -> NodeTaken:
    wants = call.tasks[0].resources
    return NodeTaken(
        f"a task waited {_WAIT_S:g} s for all {wants.cpus:g} CPUs and the memory of its node: "
        "other programs of this cluster hold some of them (`ray status`). Wait for them, or use "
        "shape='auto' or 'staged', which take what is free."
    )


def _of_all(error: BaseException, n: int) -> BaseException:
    """What befell a call of `n` tasks. Which of them took the memory, or fell, nobody knows."""
    if n > 1 and isinstance(error, OutOfMemory | WorkerLost):
        return CallLost(f"one of {n} tasks that ran in turn ended their process: {error}")
    return error
