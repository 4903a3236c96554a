"""The threads of this process that wait for reads: two pools for all storages."""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

# They wait more than they compute, so they are more than there are cores: of two cores, 16
# read single MiB of an S3 server in 0.7 of the time of 8 (benchmarks/object_store.py ranges).
THREADS = max(16, min(32, 4 * (os.cpu_count() or 1)))

# For one small answer each: a store that takes 30 ms gives 500 a second to 16 threads.
WAITING = 64

_lock = threading.Lock()
_pools: dict[int, ThreadPoolExecutor] = {}


def each(work: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """`work` of every item, in parallel threads, in order; the first error is raised."""
    if len(items) < 2:
        return [work(item) for item in items]
    return list(_threads(THREADS).map(work, items))


def start(work: Callable[[T], R], item: T) -> Future[R]:
    """`work` of one item, a small answer to wait for, in a thread of its own as a rule."""
    return _threads(WAITING).submit(work, item)


def _threads(n: int) -> ThreadPoolExecutor:
    with _lock:
        if n not in _pools:
            _pools[n] = ThreadPoolExecutor(n, thread_name_prefix="millpond-storage")
        return _pools[n]


def _forget() -> None:
    global _lock
    _lock = threading.Lock()
    _pools.clear()


# A forked child (a torch DataLoader's, say) inherits the pool's memory but not its threads.
os.register_at_fork(after_in_child=_forget)
