"""This machine: threads for SQL, worker processes for Python functions.

DuckDB releases the interpreter's lock, so SQL tasks share one worker, and its memory,
in this process. Python functions hold it, and may crash: they run in processes, which
are started when first needed and replaced when they die.
"""

import os
import shutil
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace

from millpond.errors import WorkerLost
from millpond.options import gpu_count
from millpond.physical.stages import PartRows, Task, TaskId
from millpond.runtime.place import Capacity, Ended
from millpond.runtime.process import WorkerProcess
from millpond.worker import Worker, WorkerOptions, run_task

_AGAIN_S = 0.05


class LocalRuntime:
    """Runs up to `slots` tasks at once; `process_options` are for each worker process.

    The worker is the caller's, who closes it after the runtime.
    """

    def __init__(self, worker: Worker, process_options: WorkerOptions, *, slots: int) -> None:
        self._worker, self._options, self._slots = worker, process_options, slots
        self._gpus = gpu_count()
        self._pool = ThreadPoolExecutor(slots, thread_name_prefix="millpond-task")
        self._lock = threading.Lock()
        self._ended = threading.Condition(self._lock)
        self._futures: dict[TaskId, Future[Ended]] = {}
        self._active: set[TaskId] = set()  # What the pool's threads are at.
        self._running: dict[TaskId, WorkerProcess] = {}
        self._idle: list[WorkerProcess] = []
        self._started = 0
        self._closed = False

    def capacity(self) -> Capacity:
        node_bytes = self._worker.options.memory_limit_bytes
        return Capacity(self._slots, self._slots, self._gpus, self._gpus, node_bytes=node_bytes)

    def submit(self, tasks: Sequence[Task]) -> Sequence[Future[Ended]]:
        return [self._submit(task) for task in tasks]

    def _submit(self, task: Task) -> Future[Ended]:
        future = self._pool.submit(self._work, task)
        with self._lock:
            self._futures[task.id] = future
        future.add_done_callback(lambda ended: self._forget(task.id, ended))
        return future

    def cancel(self, tasks: Sequence[TaskId]) -> None:
        for task in tasks:
            self._cancel(task)

    def _cancel(self, task: TaskId) -> None:
        with self._lock:
            future = self._futures.get(task)
        if future is None or future.cancel():
            return
        self._stop(task)
        if not future.done():
            threading.Thread(target=self._keep_stopping, args=(task, future), daemon=True).start()

    def check_shared(self, folder: str, what: str) -> None:
        """All tasks run on this machine."""

    def check_inputs(self, paths: Sequence[str]) -> None:
        """Likewise."""

    def forget(self, run: str) -> None:
        if run:
            parts = os.path.join(self._worker.options.parts, run)
            self._worker.held.forget(parts)
            shutil.rmtree(parts, ignore_errors=True)

    def close(self, *, keep: bool = False) -> None:
        """End all tasks and processes, and remove what the processes spilled."""
        with self._lock:
            self._closed = True
        self._pool.shutdown(wait=False, cancel_futures=True)
        # Asked of the threads, not of `_futures`: Ctrl-C may have struck inside `submit`.
        while active := list(self._active):
            for task in active:
                self._stop(task)
            with self._ended:
                self._ended.wait_for(lambda: not self._active, _AGAIN_S)
        self._pool.shutdown(wait=True)
        for process in self._idle:
            self._end(process)
        self._idle.clear()

    @property
    def pids(self) -> list[int]:
        """The worker processes that there are, for tests that kill them."""
        with self._lock:
            return [process.pid for process in (*self._idle, *self._running.values())]

    def _stop(self, task: TaskId) -> None:
        with self._lock:
            process = self._running.get(task)
            if process is not None:
                process.kill()
                return
        self._worker.interrupt(task)

    def _keep_stopping(self, task: TaskId, future: Future[Ended]) -> None:
        # DuckDB forgets an interrupt that comes between two statements of a task, and a
        # task may have been about to get its process.
        while not future.done():
            wait([future], timeout=_AGAIN_S)
            self._stop(task)

    def _work(self, task: Task) -> Ended:
        with self._lock:
            if self._closed:
                raise WorkerLost("the runtime is closed")
            self._active.add(task.id)
        try:
            return self._in_process(task) if task.fragment.has_python else self._in_thread(task)
        finally:
            with self._ended:
                self._active.discard(task.id)
                self._ended.notify_all()

    def _in_thread(self, task: Task) -> Ended:
        return run_task(task, self._worker)

    def _in_process(self, task: Task) -> Ended:
        inputs = (item for item in task.inputs if isinstance(item, PartRows))
        self._worker.held.write(part.path for item in inputs for part in item.parts)
        with self._lock:
            process = self._idle.pop() if self._idle else self._start()
            self._running[task.id] = process
        try:
            return process.run(task)
        finally:
            with self._lock:
                self._running.pop(task.id, None)
                alive = process.is_alive and not self._closed
                if alive:
                    self._idle.append(process)
            if not alive:
                self._end(process)

    def _start(self) -> WorkerProcess:
        self._started += 1
        scratch = f"{self._options.scratch}/process-{self._started}"
        return WorkerProcess(replace(self._options, scratch=scratch), self._worker.node)

    def _end(self, process: WorkerProcess) -> None:
        process.close()
        shutil.rmtree(process.scratch, ignore_errors=True)

    def _forget(self, task: TaskId, ended: Future[Ended]) -> None:
        with self._lock:
            if self._futures.get(task) is ended:
                del self._futures[task]
