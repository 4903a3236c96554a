"""A `Worker` is what a process brings: engine, storage, folders, a way to other nodes' parts.

It is built once per process, from options that never travel inside a task.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from millpond.engine.duckdb import Engine
from millpond.physical.stages import PartRef, TaskId
from millpond.shuffle.read import Elsewhere
from millpond.storage import STORES, LocalStorage, Range, RemoteFiles, Storage, open_storage
from millpond.storage.oserrors import make_private
from millpond.worker.held import HeldParts

if TYPE_CHECKING:
    import pyarrow as pa

# Ranges of some parts of a node -> for each part their bytes, or why there are none.
Fetch = Callable[
    [str, Sequence[tuple[PartRef, Sequence[tuple[int, int]]]]],
    Sequence[Sequence[Any] | OSError],
]


class Interruptible(Protocol):
    """A task on its way."""

    def interrupt(self) -> None: ...


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """What a process needs to become a worker. May hold secrets: never inside a task."""

    scratch: str  # Private to this process; removed by whoever made it.
    parts: str  # Where parts are written.
    threads: int = 1
    memory_limit_bytes: int = 2**30
    alone_bytes: int = 0  # What a task may take that runs alone on its node, if more.
    engine_share: float = 0.6  # Of the memory, DuckDB's; 30 % are buffers.
    verify: str = "parts"
    held_bytes: int = 0  # Of small parts that stay in memory; 0 where others must find them.
    storage_options: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def buffer_bytes(self) -> int:
        """For one buffer of one task: rows read ahead, or rows on their way into a run.

        A task reads ahead into one of
        them, and a part that it writes takes two, and the batch at hand some more.
        """
        share = int(self.memory_limit_bytes * 0.3 / self.threads)
        return max(1 << 20, min(64 << 20, share // 4))


@dataclass(slots=True)
class Worker:
    """A process that can run tasks. `memory` holds rows of `ToMemory` tasks by name."""

    engine: Engine
    storage: Callable[[str], Storage]
    options: WorkerOptions
    held: HeldParts
    node: str = ""
    fetch: Fetch | None = None
    memory: dict[str, pa.Table] = field(default_factory=dict)
    running: dict[TaskId, Interruptible] = field(default_factory=dict)
    for_plans: Worker | None = None  # One with all that the node has, between two plans.
    _large: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def room_for(self, size_bytes: int) -> Iterator[None]:
        """While rows of so many bytes are copied: if they are large, nobody else's are."""
        if size_bytes <= self.options.buffer_bytes:
            yield
            return
        with self._large:
            yield

    def interrupt(self, task: TaskId) -> None:
        """End a task that runs in another thread soon; it raises whatever it then meets."""
        run = self.running.get(task)
        if run is not None:
            run.interrupt()

    def ranges(self, ref: PartRef, ranges: Sequence[tuple[int, int]]) -> Sequence[Any]:
        """Bytes of a part, wherever it lies."""
        from millpond.storage.direct import read_direct

        if self._is_far(ref):
            (found,) = self._fetched(ref.node, [(ref, ranges)])
            if isinstance(found, OSError):
                raise found
            return found
        held = self.held.read(ref.path, ranges)
        if held is not None:
            return held
        storage = self.storage(ref.path)
        if type(storage) is LocalStorage:  # Not 3FS, which has a faster way of its own.
            # Parts were written past the page cache: reading them through it costs ten times
            # the CPU, see benchmarks/exchange.py.
            return read_direct(ref.path, ranges)
        return storage.read_many([Range(ref.path, offset, length) for offset, length in ranges])

    @property
    def elsewhere(self) -> Elsewhere:
        """How many parts of one other node are read by one call."""
        return Elsewhere(lambda ref: ref.node if self._is_far(ref) else "", self._fetched)

    def _is_far(self, ref: PartRef) -> bool:
        return ref.node not in ("", self.node)

    def _fetched(
        self, node: str, wanted: Sequence[tuple[PartRef, Sequence[tuple[int, int]]]]
    ) -> Sequence[Sequence[Any] | OSError]:
        if self.fetch is None:
            raise OSError(f"{wanted[0][0].path} lies on node {node}, which cannot be reached")
        return self.fetch(node, wanted)

    def close(self) -> None:
        if self.for_plans is not None:
            self.for_plans.close()
        self.engine.close()


def build_worker(options: WorkerOptions, *, node: str = "", fetch: Fetch | None = None) -> Worker:
    """A worker for this process."""
    make_private(options.parts)
    # DuckDB takes its share; the rest is for exchange buffers and Python.
    share = int(options.memory_limit_bytes * options.engine_share)
    engine = Engine(
        threads=options.threads,
        memory_limit_bytes=max(share, 64 * 2**20),
        scratch=options.scratch,
    )
    lock = threading.Lock()
    stores: dict[str, Storage] = {}

    def storage(uri: str) -> Storage:
        scheme = uri.partition("://")[0] if "://" in uri else ""
        with lock:
            if scheme not in stores:
                stores[scheme] = open_storage(uri, options.storage_options)
                if scheme in STORES:
                    engine.read_through(RemoteFiles(stores[scheme], scheme))
            return stores[scheme]

    return Worker(engine, storage, options, HeldParts(options.held_bytes), node, fetch)
