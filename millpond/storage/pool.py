"""The threads of this process that wait for reads: one pool for all storages."""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

# They wait more than they compute, so they are more than there are cores: of two cores, 16
# read single MiB of an S3 server in 0.7 of the time of 8 (benchmarks/object_store.py ranges).
THREADS = max(16, min(32, 4 * (os.cpu_count() or 1)))

_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None


def each(work: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """`work` of every item, in parallel threads, in order; the first error is raised."""
    if len(items) < 2:
        return [work(item) for item in items]
    return list(_threads().map(work, items))


def _threads() -> ThreadPoolExecutor:
    global _pool
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(THREADS, thread_name_prefix="millpond-storage")
        return _pool


def _forget() -> None:
    global _pool, _lock
    _pool, _lock = None, threading.Lock()


# A forked child (a torch DataLoader's, say) inherits the pool's memory but not its threads.
os.register_at_fork(after_in_child=_forget)
