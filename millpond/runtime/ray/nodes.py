"""The nodes of a cluster as a session sees them: a service on each, their room, full disks."""

import os
import secrets
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from millpond.errors import OptionError, WorkerLost
from millpond.runtime.calls import Dropped
from millpond.runtime.node import NodeService, sizes, versions
from millpond.runtime.place import Capacity
from millpond.runtime.ray.cluster import NAMESPACE, START_S, Handle, check_same, only, ray
from millpond.runtime.ray.workers import service_name
from millpond.storage.oserrors import explained
from millpond.worker import WorkerOptions

_REFRESH_S = 1.0
_FULL_S = 60.0  # For which a node whose disk was full gets no tasks.
_LEAST_BYTES = 128 * 2**20  # Of a worker: with less DuckDB does little but spill.
_READ_S, END_S = 60.0, 10.0
_TOGETHER = 32  # Short tasks of a call: past a dozen the way to a worker costs next to nothing.


@dataclass(frozen=True, slots=True)
class Serving:
    """What the services of a session are started with."""

    session: str
    options: WorkerOptions
    node_bytes: int | None  # Of memory: what all workers of a node may take.
    shared_parts: bool
    keep_parts: bool


class Nodes:
    """Follows the cluster: nodes come and go."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self.services: dict[str, Handle] = {}
        self.capacity = Capacity(0, 1)
        self.share_bytes: int | None = None  # Of memory, for a task of one CPU on any node.
        self.working: list[str] = []  # Those that run tasks.
        self._turn = 0
        self._going = list[Handle]()  # What services were asked, and nobody waits for.
        self.dropped = set[str]()  # Calls that have not ended yet.
        self._seen = set[str]()  # Inputs that all nodes have.
        self._refreshed_s = float("-inf")
        self._full: dict[str, float] = {}  # Nodes whose disk was full, and when.
        self._taken_up: dict[str, tuple[str, str] | None] = {}  # Folders of dead sessions.

    def refresh(self) -> bool:
        """Services on new nodes, none for those that are gone; at most once a second."""
        if time.monotonic() - self._refreshed_s <= _REFRESH_S:
            return False
        self._refreshed_s = time.monotonic()
        alive = [node for node in ray.nodes() if node["Alive"]]
        cpus = {node["NodeID"]: int(node["Resources"].get("CPU", 0)) for node in alive}
        self._full = {
            node: since_s
            for node, since_s in self._full.items()
            if node in cpus and self._refreshed_s - since_s < _FULL_S
        }
        gpus = [node["Resources"].get("GPU", 0.0) for node in alive]
        for node in [node for node in self.services if node not in cpus]:
            del self.services[node]
        for found in alive:
            if found["NodeID"] not in self.services:
                service = self._start(found["NodeID"], found["Resources"])
                self.services[found["NodeID"]] = service
                if self.dropped:
                    self._ask([service.drop.remote(list(self.dropped))])
        # One more for each node, so that a worker finds its next task waiting there.
        # At least one: a cluster that grows by itself must see a task that waits.
        slots = sum(n + 1 for node, n in cpus.items() if n and node not in self._full)
        largest = max(1, *cpus.values(), 1)
        self.working = [node for node, n in cpus.items() if n]
        node_bytes = self._measure_memory([node["Resources"] for node in alive])
        self.capacity = Capacity(
            max(1, slots), largest, sum(gpus), max(gpus, default=0.0), _TOGETHER, node_bytes,
            len(self.working),
        )  # fmt: skip
        return True

    def _measure_memory(self, nodes: Sequence[dict[str, float]]) -> int | None:
        """That of the largest node, and what a task may take on each. None: one does not tell."""
        working = [has for has in nodes if has.get("CPU", 0) >= 1]
        self.share_bytes = None
        if not working or not all("memory" in has for has in working):
            return None
        most = self._serving.node_bytes
        each = [min(int(has["memory"]), most or sys.maxsize) for has in working]
        shares = (n / has["CPU"] for n, has in zip(each, working, strict=True))
        self.share_bytes = int(min(shares))
        return max(each)

    def near(self, prefer: Sequence[str]) -> str:
        """The node where a task should run; "" where Ray may choose."""
        usable = [node for node in self.working if node not in self._full]
        near = next((node for node in prefer if node in usable), "")
        if near or not self._full or not usable:
            return near
        self._turn += 1  # Ray would choose among all nodes, also those whose disk is full.
        return usable[self._turn % len(usable)]

    def is_full(self, node: str) -> bool:
        """A node's disk is full: whether there are others with room."""
        self._full[node] = time.monotonic()
        return any(other not in self._full for other in self.working)

    def check_versions(self) -> None:
        """Rows and hashes depend on them; a node that joins later is checked by its workers."""
        asked = {node: service.versions.remote() for node, service in self.services.items()}
        told = self._told(asked)
        if not told:
            raise WorkerLost("no node of the Ray cluster answers.")
        for node, theirs in told.items():
            check_same(versions(), theirs, node)

    def check_shared(self, folder: str, what: str) -> None:
        """By a file that all nodes must see; it is removed again."""
        while not os.path.isdir(folder):
            folder = os.path.dirname(folder)
        probe = os.path.join(folder, f".millpond-probe-{secrets.token_hex(8)}")
        with explained(folder, "stage"), open(probe, "x"):
            try:
                self._check_seen([probe], f"{what} is below {folder!r}", "folder")
            finally:
                os.unlink(probe)

    def check_inputs(self, paths: Sequence[str]) -> None:
        """By their sizes, once: nothing is written where inputs lie."""
        new = [path for path in paths if path not in self._seen]
        if new:
            self._check_seen(new, f"the input {new[0]!r} is", "file")
            self._seen.update(new)

    def _check_seen(self, paths: Sequence[str], where: str, kind: str) -> None:
        working = [node for node in self.working if node in self.services]
        here = sizes(paths)
        told = self._told({node: self.services[node].sizes.remote(paths) for node in working})
        blind = [node for node, theirs in told.items() if theirs != here]
        if blind:
            raise OptionError(
                f"{where} on this machine, and {len(blind)} of {len(told)} nodes have another "
                f"{kind} there or none ({', '.join(blind[:3])}). "
                "Use a path on storage that all nodes mount, or an object store."
            )

    def _told(self, asked: Mapping[str, Handle]) -> dict[str, Any]:
        """What the services answer. One that dies is none of ours: the others will do."""
        told = {}
        for node, reply in asked.items():
            try:
                told[node] = ray.get(reply, timeout=START_S)
            except ray.exceptions.GetTimeoutError as error:
                raise WorkerLost(f"node {node} did not answer within {START_S:g} s.") from error
            except ray.exceptions.RayTaskError:
                raise
            except ray.exceptions.RayError:
                del self.services[node]
        return told

    def take_up(self, folder: str) -> tuple[str, str] | None:
        """On which node a dead session left parts in `folder`, and where there; all are asked."""
        if folder not in self._taken_up:
            asked = {node: s.take_up.remote(folder) for node, s in self.services.items()}
            for node, reply in asked.items():
                with suppress(ray.exceptions.RayError):
                    if path := ray.get(reply, timeout=_READ_S):
                        self._taken_up[folder] = node, path
        return self._taken_up.setdefault(folder, None)

    def drop(self, calls: Sequence[str]) -> Sequence["Future[Dropped]"]:
        """Take these calls wherever they run, and let them begin nowhere; what each node says."""
        if not calls:
            return ()
        self.dropped.update(calls)
        asked = [service.drop.remote(calls) for service in self.services.values()]
        self._ask(asked)
        return [reply.future() for reply in asked]

    def forget(self, run: str) -> None:
        """Soon: nobody waits for it, but for the end."""
        self._ask([service.forget.remote(run) for service in self.services.values()])

    def _ask(self, going: Sequence[Handle]) -> None:
        """Note what services were asked: Ray prints what befalls a call whose actor is killed."""
        if self._going:
            before = self._going
            _, self._going = ray.wait(before, num_returns=len(before), timeout=0)
        self._going += going

    def close(self, *, keep: bool) -> None:
        """Remove the folders on the nodes, and end the services."""
        self._ask([service.close.remote(keep) for service in self.services.values()])
        if self._going:
            with suppress(ray.exceptions.RayError):
                ray.wait(self._going, num_returns=len(self._going), timeout=END_S)
        for service in self.services.values():
            with suppress(ray.exceptions.RayError):
                ray.kill(service)
        self.services.clear()

    def _start(self, node: str, has: dict[str, float]) -> Handle:
        serving = self._serving
        name = service_name(serving.session, node)
        service = ray.remote(NodeService).options(
            name=name,
            namespace=NAMESPACE,
            num_cpus=0,
            max_concurrency=8,
            max_restarts=3,
            max_task_retries=1,
            scheduling_strategy=only(node),
        )
        options = _share(serving.options, has, serving.node_bytes)
        return service.remote(options, name, serving.shared_parts, versions(), serving.keep_parts)


def _share(options: WorkerOptions, has: dict[str, float], most: int | None) -> WorkerOptions:
    """The options of one of a node's workers: of its memory, what one CPU is due."""
    memory = int(has.get("memory", options.memory_limit_bytes))
    if most is not None:
        memory = min(memory, most)
    each = max(int(memory / max(1.0, has.get("CPU", 1.0))), _LEAST_BYTES)
    return replace(options, memory_limit_bytes=each, alone_bytes=memory)
