"""Batches made ahead by one thread, in groups, so that few hand-overs are needed.

The thread knows the maker of groups and a queue, nothing of the loader: when the
consumer drops its iterator, the thread ends. It is started at the first batch and
never before, so nothing is running when a process forks or is spawned earlier.
"""

import os
import queue
import threading
from collections.abc import Iterator
from typing import Generic, TypeVar

from millpond.loader.ending import close_at_exit

T = TypeVar("T")


class Forked(Exception):
    """The iterator was carried into a child process, where its thread does not run."""


class _Failed:
    def __init__(self, error: BaseException) -> None:
        self.error = error


class _Done:
    pass


class Ahead(Generic[T]):
    """Items of `source`, made up to `depth` ahead by a thread; errors come in their place."""

    def __init__(self, source: Iterator[T], depth: int) -> None:
        self._queue: queue.Queue[T | _Failed | _Done] = queue.Queue(maxsize=max(1, depth))
        self._stop = threading.Event()
        self._pid = os.getpid()
        self._thread = threading.Thread(
            target=_fill,
            args=(source, self._queue, self._stop),
            name="millpond-prefetch",
            daemon=True,
        )
        self._thread.start()
        close_at_exit(self)

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if os.getpid() != self._pid:
            raise Forked
        item = self._queue.get()
        if isinstance(item, _Done):
            raise StopIteration
        if isinstance(item, _Failed):
            raise item.error
        return item

    def close(self) -> None:
        """End the thread; what it made and nobody took is dropped."""
        self._stop.set()
        if os.getpid() != self._pid:
            return
        while self._thread.is_alive():
            try:
                self._queue.get(timeout=0.01)
            except queue.Empty:
                continue


def _fill(
    source: Iterator[T], into: "queue.Queue[T | _Failed | _Done]", stop: threading.Event
) -> None:
    try:
        for item in source:
            into.put(item)
            del item  # Else this frame keeps a group's memory while it waits.
            if stop.is_set():
                return
        into.put(_Done())
    # The end of a thread: whatever went wrong is raised where the batch was awaited.
    except BaseException as error:
        into.put(_Failed(error))
