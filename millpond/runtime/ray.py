"""A Ray cluster: tasks are Ray tasks, and each node has one service that keeps its parts.

The only module that imports ray. Ray places tasks and moves bytes; its own retries are
off, because one schedule decides for all runtimes. No port is opened: bytes of parts
travel as results of calls. Secrets (`WorkerOptions`) go to a node's service when that
starts, and from there to the worker processes of the node, never with a task.
"""

import os
import secrets
import time
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeAlias

from millpond import lazy
from millpond.errors import (
    DiskFull,
    MillpondError,
    OptionError,
    OutOfMemory,
    Transient,
    WorkerLost,
)
from millpond.physical.stages import PartRef, Resources, Task, TaskId
from millpond.runtime.answers import answer, failure, opened
from millpond.runtime.binding import Parts, bound, unbound
from millpond.runtime.homes import name_in
from millpond.runtime.node import NodeService, Versions, parts_folder, versions
from millpond.runtime.place import Capacity, Ended
from millpond.storage.oserrors import explained
from millpond.worker import Worker, WorkerOptions, build_worker

ray: Any = lazy.extra("ray", extra="ray", what="runtime='ray'")

_NAMESPACE = "millpond"
_REFRESH_S = 1.0
_IDLE_S, _IDLE_WITH_CPUS_S = 60.0, 10.0  # After which a process gives its GPUs back.
_FULL_S = 60.0  # For which a node whose disk was full gets no tasks.
_LEAST_BYTES = 128 * 2**20  # Of a worker: with less DuckDB does little but spill.
_START_S, _READ_S, _END_S = 60.0, 60.0, 10.0

Handle: TypeAlias = Any  # Of an actor or an object of Ray's.
Wanted: TypeAlias = Sequence[tuple[PartRef, Sequence[tuple[int, int]]]]


class NodeFull(Transient):
    """The disk of one node is full; the task may run on another."""


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
        self._options, self._shared, self._node_bytes = options, shared_parts, node_bytes
        self._kept = keep_parts
        self._session = secrets.token_hex(8)
        self._owns_ray = _connect(address, cpus)
        self._services: dict[str, Handle] = {}
        self._capacity = Capacity(0, 1)
        self._nodes: list[str] = []  # Those that run tasks.
        self._turn = 0
        self._refreshed_s = float("-inf")
        self._hands: dict[Resources, list[tuple[float, Handle]]] = {}  # Idle: since when.
        self._busy_hands: dict[TaskId, Handle] = {}
        self._full: dict[str, float] = {}  # Nodes whose disk was full, and when.
        self._remotes: dict[tuple[Resources, str], Handle] = {}
        self._parts: dict[int, tuple[Parts, Handle]] = {}
        self._running: dict[TaskId, Handle] = {}
        self._taken_up: dict[str, tuple[str, str] | None] = {}  # Folders of dead sessions.
        try:
            _check_security(allow_insecure)
            self._refresh()
            self._check_versions()
            if shared_parts:
                self.check_shared(options.parts, "data_root")
        except BaseException:
            self.close()
            raise

    def capacity(self) -> Capacity:
        """The CPUs of the nodes that are alive; asked of Ray once a second."""
        if time.monotonic() - self._refreshed_s > _REFRESH_S:
            self._refresh()
        return self._capacity

    def submit(self, task: Task) -> Future[Ended]:
        bare, parts = unbound(task)
        handles = [self._shipped(stage, refs) for stage, refs in parts.items()]
        near = self._near(task.prefer)
        if task.resources.gpus:
            self._busy_hands[task.id] = hand = self._hand(task.resources)
            remote = hand.run
        else:
            remote = self._remote(task.resources, near)
        result = remote.remote(self._session, self._shared, bare, tuple(parts), *handles)
        self._running[task.id] = result
        future: Future[Ended] = Future()
        future.set_running_or_notify_cancel()
        result.future().add_done_callback(lambda ended: self._end(task, result, ended, future))
        return future

    def cancel(self, task: TaskId) -> None:
        result, hand = self._running.get(task), self._busy_hands.get(task)
        if hand is not None:
            with suppress(ray.exceptions.RayError):
                ray.kill(hand)
        elif result is not None:
            with suppress(Exception):  # It has ended, or its node has: the future tells.
                # By force: nothing else ends a query or a function that does not return.
                ray.cancel(result, force=True)

    def close(self, *, keep: bool = False) -> None:
        """End all tasks, remove the folders on the nodes, leave or end the cluster."""
        for task in list(self._running):
            self.cancel(task)
        closing = [service.close.remote(keep and self._kept) for service in self._services.values()]
        with suppress(ray.exceptions.RayError):
            ray.wait(closing, num_returns=len(closing), timeout=_END_S) if closing else None
        hands = [hand for idle in self._hands.values() for _, hand in idle]
        for actor in (*self._services.values(), *hands):
            with suppress(ray.exceptions.RayError):
                ray.kill(actor)
        self._hands.clear()
        self._services.clear()
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
        return _fetch(self._session, node, wanted)

    def name_of(self, part: PartRef) -> tuple[str, str] | None:
        """The folder of a part on its node, and its name there."""
        return name_in(parts_folder(_service_name(self._session, part.node)), part)

    def take_up(self, folder: str) -> tuple[str, str] | None:
        """On which node a dead session left parts in `folder`, and where there; all are asked."""
        if folder not in self._taken_up:
            asked = {node: s.take_up.remote(folder) for node, s in self._services.items()}
            for node, reply in asked.items():
                with suppress(ray.exceptions.RayError):
                    if path := ray.get(reply, timeout=_READ_S):
                        self._taken_up[folder] = node, path
        return self._taken_up.setdefault(folder, None)

    def forget(self, run: str) -> None:
        """Soon: nobody waits for it."""
        for service in self._services.values():
            service.forget.remote(run)

    def check_shared(self, folder: str, what: str) -> None:
        """By a file that all nodes must see; it is removed again."""
        while not os.path.isdir(folder):
            folder = os.path.dirname(folder)
        probe = os.path.join(folder, f".millpond-probe-{secrets.token_hex(8)}")
        with explained(folder, "stage"), open(probe, "x"):
            asked = {node: s.sees.remote(probe) for node, s in self._services.items()}
            try:
                blind = [node for node, reply in asked.items() if not ray.get(reply)]
            finally:
                os.unlink(probe)
        if blind:
            raise OptionError(
                f"{what} is below {folder!r} on this machine, and {len(blind)} of "
                f"{len(asked)} nodes have another folder there or none ({', '.join(blind[:3])}). "
                "Use a path on storage that all nodes mount, or an object store."
            )

    # ---- nodes -----------------------------------------------------------------------

    def _refresh(self) -> None:
        """Follow the cluster: services on new nodes, none for those that are gone."""
        self._refreshed_s = time.monotonic()
        alive = [node for node in ray.nodes() if node["Alive"]]
        cpus = {node["NodeID"]: int(node["Resources"].get("CPU", 0)) for node in alive}
        self._full = {
            node: since_s
            for node, since_s in self._full.items()
            if node in cpus and self._refreshed_s - since_s < _FULL_S
        }
        gpus = [node["Resources"].get("GPU", 0.0) for node in alive]
        for node in [node for node in self._services if node not in cpus]:
            del self._services[node]
        for node in [node for node in cpus if node not in self._services]:
            (has,) = (found["Resources"] for found in alive if found["NodeID"] == node)
            self._services[node] = self._start_service(
                node, _share(self._options, has, self._node_bytes)
            )
        # One more for each node, so that a worker finds its next task waiting there.
        # At least one: a cluster that grows by itself must see a task that waits.
        slots = sum(n + 1 for node, n in cpus.items() if n and node not in self._full)
        largest = max(1, *cpus.values(), 1)
        self._nodes = [node for node, n in cpus.items() if n]
        self._capacity = Capacity(max(1, slots), largest, sum(gpus), max(gpus, default=0.0))
        self._end_idle_hands()

    def _start_service(self, node: str, options: WorkerOptions) -> Handle:
        name = _service_name(self._session, node)
        service = ray.remote(NodeService).options(
            name=name,
            namespace=_NAMESPACE,
            num_cpus=0,
            max_concurrency=8,
            max_restarts=3,
            max_task_retries=1,
            scheduling_strategy=_only(node),
        )
        return service.remote(options, name, self._shared, versions(), self._kept)

    def _check_versions(self) -> None:
        """Rows and hashes depend on them; a node that joins later is checked by its workers."""
        asked = {node: service.versions.remote() for node, service in self._services.items()}
        for node, reply in asked.items():
            try:
                theirs = ray.get(reply, timeout=_START_S)
            except ray.exceptions.RayTaskError:
                raise
            except ray.exceptions.RayError as error:
                # It died while we connected: the others will do.
                del self._services[node]
                if not self._services:
                    raise WorkerLost(f"no node of the Ray cluster answers ({error}).") from error
            else:
                _check_same(versions(), theirs, node)

    # ---- tasks -----------------------------------------------------------------------

    def _near(self, prefer: Sequence[str]) -> str:
        """The node where a task should run; "" where Ray may choose."""
        usable = [node for node in self._nodes if node not in self._full]
        near = next((node for node in prefer if node in usable), "")
        if near or not self._full or not usable:
            return near
        self._turn += 1  # Ray would choose among all nodes, also those whose disk is full.
        return usable[self._turn % len(usable)]

    def _remote(self, resources: Resources, near: str) -> Handle:
        # Without a node to prefer: over all of them. Where there is one only, asking for that
        # would cost a millisecond and a half a task, see benchmarks/scale.py.
        near = near or ("SPREAD" if len(self._nodes) > 1 else "DEFAULT")
        if (resources, near) not in self._remotes:
            placing = near if near in ("SPREAD", "DEFAULT") else _near(near)
            self._remotes[resources, near] = ray.remote(_run).options(
                num_cpus=resources.cpus,
                num_gpus=resources.gpus,
                memory=resources.memory_bytes,
                max_retries=0,
                scheduling_strategy=placing,
            )
        return self._remotes[resources, near]

    def _hand(self, resources: Resources) -> Handle:
        """A process that holds GPUs from task to task: what a class has loaded stays there.

        Tasks of Ray's own would not do: it ends their process after each, to free the GPU.
        """
        idle = self._hands.get(resources)
        if idle:
            return idle.pop()[1]
        # It waits beside its GPU: a whole CPU held meanwhile could be the one that the stage
        # before it needs.
        cpus = resources.cpus if resources.cpus > 1 else 0
        made = ray.remote(_Hand).options(
            num_cpus=cpus, num_gpus=resources.gpus, memory=resources.memory_bytes, max_restarts=0
        )
        return made.remote()

    def _end_idle_hands(self) -> None:
        now_s = time.monotonic()
        for resources, idle in self._hands.items():
            limit_s = _IDLE_S if resources.cpus <= 1 else _IDLE_WITH_CPUS_S
            for since_s, hand in [one for one in idle if now_s - one[0] > limit_s]:
                idle.remove((since_s, hand))
                ray.kill(hand)

    def _shipped(self, stage: int, parts: Parts) -> Handle:
        """The parts of a stage as an object that each node fetches once."""
        known, handle = self._parts.get(stage, (None, None))
        if known is not parts:
            handle = ray.put(parts)
            self._parts[stage] = parts, handle
        return handle

    def _end(
        self, task: Task, result: Handle, ended: "Future[bytes]", future: Future[Ended]
    ) -> None:
        if self._running.get(task.id) is result:
            del self._running[task.id]
        hand = self._busy_hands.pop(task.id, None)
        try:
            reply = ended.result()
            if hand is not None:
                self._hands.setdefault(task.resources, []).append((time.monotonic(), hand))
            future.set_result(opened(reply))
        except BaseException as error:  # The task ends here.
            future.set_exception(self._elsewhere(_translated(error)))

    def _elsewhere(self, error: BaseException) -> BaseException:
        """A full disk is one node's own, while there are others with room."""
        if not isinstance(error, DiskFull) or not error.node or self._shared:
            return error
        self._full[error.node] = time.monotonic()
        if not any(node not in self._full for node in self._nodes):
            return error
        told = NodeFull(str(error))
        told.node = error.node
        return told


def _translated(error: BaseException) -> BaseException:
    """Our error for Ray's, by its class."""
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return OutOfMemory(f"Ray ended the task, because its node ran out of memory: {error}")
    # A RayTaskError was raised where a task starts: our bug, or a broken installation.
    lost = isinstance(error, ray.exceptions.RayError)
    if lost and not isinstance(error, ray.exceptions.RayTaskError):
        first_line = str(error).strip().partition("\n")[0]
        return WorkerLost(f"{type(error).__name__}: {first_line}".removesuffix(": "))
    return error


def _share(options: WorkerOptions, has: dict[str, float], most: int | None) -> WorkerOptions:
    """The options of one of a node's workers: of its memory, what one CPU is due."""
    memory = int(has.get("memory", options.memory_limit_bytes))
    if most is not None:
        memory = min(memory, most)
    each = max(int(memory / max(1.0, has.get("CPU", 1.0))), _LEAST_BYTES)
    return replace(options, memory_limit_bytes=each, alone_bytes=memory)


# ---- connecting ----------------------------------------------------------------------


def _connect(address: str | None, cpus: int | None) -> bool:
    """Connect, or start a cluster on this machine; whether it is ours to end."""
    if ray.is_initialized():
        return False
    quiet = {"log_to_driver": False, "configure_logging": False, "namespace": _NAMESPACE}
    try:
        if address is not None:
            ray.init(address=address, **quiet)
        else:
            _report_nothing()
            ray.init(address="local", num_cpus=cpus, include_dashboard=False, **quiet)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise OptionError(
            f"runtime='ray': no connection to a cluster at {address or 'this machine'!r}: {error} "
            "Check that it runs (`ray status`), and that Ray and Python have its versions."
        ) from error
    return True


def _report_nothing() -> None:
    """A cluster that we start tells nobody about itself; Ray's would report its use."""
    with suppress(ImportError):
        from ray._common.usage.usage_lib import set_usage_stats_enabled_via_env_var

        set_usage_stats_enabled_via_env_var(False)


def _check_security(allow_insecure: bool) -> None:
    # The workers' word counts: this process may have a token that the cluster ignores.
    secure = _has_token_auth() and ray.get(
        ray.remote(_has_token_auth).options(num_cpus=0, max_retries=3).remote(), timeout=_START_S
    )
    if not secure and not allow_insecure:
        raise OptionError(
            "runtime='ray': this cluster runs without token authentication, so whoever reaches "
            "its ports runs code on it and reads your data. Start it, and this program, with "
            "RAY_AUTH_MODE=token (Ray makes a token by `ray get-auth-token --generate`), or "
            "pass allow_insecure=True if only trusted machines reach it."
        )


def _has_token_auth() -> bool:
    try:
        from ray._private.authentication.authentication_utils import is_token_auth_enabled
    except ImportError:
        return False  # A version that says it elsewhere, or not at all.
    return bool(is_token_auth_enabled())


def _check_same(ours: Versions, theirs: Versions, node: str) -> None:
    if ours != theirs:
        raise OptionError(
            f"runtime='ray': node {node} has {theirs}, but this session has {ours}. Partitions "
            "depend on these versions: install the same on all nodes."
        )


def _near(node: str) -> Handle:
    return ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=True)


def _only(node: str) -> Handle:
    return ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=False)


# ---- in a worker process -------------------------------------------------------------

_workers: dict[str, Worker] = {}  # By session: one at a time.
_handles: dict[str, Handle] = {}  # Services, by name.


def _run(session: str, shared: bool, bare: Task, stages: tuple[int, ...], *parts: Parts) -> bytes:
    """A Ray task. `parts` arrive as the tuples that were put, one per stage."""
    try:
        worker = _worker(session, shared)
    except MillpondError as error:
        return failure(bare, error, ray.get_runtime_context().get_node_id())
    return answer(bound(bare, dict(zip(stages, parts, strict=True))), worker)


class _Hand:
    """An actor that runs one task at a time."""

    def run(
        self, session: str, shared: bool, bare: Task, stages: tuple[int, ...], *parts: Parts
    ) -> bytes:
        return _run(session, shared, bare, stages, *parts)


def _worker(session: str, shared: bool) -> Worker:
    """The worker of this process, built at its first task."""
    if session not in _workers:
        for old in [*_workers]:
            _workers.pop(old).close()
        node = ray.get_runtime_context().get_node_id()
        options, wanted = _setup(session, node)
        _check_same(wanted, versions(), node)
        _workers[session] = build_worker(
            options,
            node="" if shared else node,
            fetch=lambda node, wanted: _fetch(session, node, wanted),
        )
    return _workers[session]


def _setup(session: str, node: str) -> tuple[WorkerOptions, Versions]:
    end_s = time.monotonic() + _START_S
    while True:
        try:
            service = _service(session, node)
            asked = service.worker_setup.remote(os.getpid())
            found: tuple[WorkerOptions, Versions] = ray.get(asked, timeout=_START_S)
            return found
        except (ValueError, ray.exceptions.RayError) as error:
            # A node that has just joined gets its service within a second or two.
            if time.monotonic() > end_s:
                raise WorkerLost(f"node {node} has no service of this session") from error
            _handles.clear()
            time.sleep(0.1)


def _fetch(session: str, node: str, wanted: Wanted) -> Sequence[Sequence[bytes] | OSError]:
    try:
        service = _service(session, node)
        asked = service.read.remote([(ref.path, list(ranges)) for ref, ranges in wanted])
        found: list[list[bytes] | str] = ray.get(asked, timeout=_READ_S)
    except (ValueError, ray.exceptions.RayError) as error:
        _handles.pop(_service_name(session, node), None)
        raise OSError(f"node {node} does not give it: {type(error).__name__}") from error
    return [OSError(f"node {node}: {each}") if isinstance(each, str) else each for each in found]


def _service(session: str, node: str) -> Handle:
    """The service of a node; ValueError if there is none, or no longer."""
    name = _service_name(session, node)
    if name not in _handles:
        _handles[name] = ray.get_actor(name, namespace=_NAMESPACE)
    return _handles[name]


def _service_name(session: str, node: str) -> str:
    return f"{session}-{node}"
