"""A runtime without workers, and disasters that are named: for tests of what `run` does."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future

from runtime_values import result

from millpond.errors import WorkerLost
from millpond.physical.stages import Task, TaskId
from millpond.runtime import Capacity, Ended, Runtime


class FakeRuntime:
    """Runs `work` in the caller's thread, at once; remembers what it was asked."""

    def __init__(self, slots: int = 4, work: Callable[[Task], Ended] = result) -> None:
        self.submitted: list[TaskId] = []
        self.cancelled: list[TaskId] = []
        self.closed = False
        self._slots, self._work = slots, work

    def capacity(self) -> Capacity:
        return Capacity(self._slots, self._slots)

    def submit(self, tasks: Sequence[Task]) -> Sequence[Future[Ended]]:
        return [self._submit(task) for task in tasks]

    def _submit(self, task: Task) -> Future[Ended]:
        self.submitted.append(task.id)
        future: Future[Ended] = Future()
        try:
            future.set_result(self._work(task))
        except BaseException as error:  # A future takes whatever a task raises.
            future.set_exception(error)
        return future

    def cancel(self, tasks: Sequence[TaskId]) -> None:
        self.cancelled += tasks

    def check_shared(self, folder: str, what: str) -> None:
        pass

    def check_inputs(self, paths: Sequence[str]) -> None:
        pass

    def forget(self, run: str) -> None:
        pass

    def close(self) -> None:
        self.closed = True


Named = tuple[int, int, int]  # Stage, partition, attempt.


class Faulty:
    """A runtime in which named attempts fail, hang until cancelled, or give something else.

    `fail` raises the error instead of running the task; `fail_after` runs it first;
    `replace` gives what the function makes of the task, without running it.
    """

    def __init__(
        self,
        runtime: Runtime,
        *,
        fail: Mapping[Named, BaseException] | set[Named] = frozenset(),  # type: ignore[assignment]
        fail_after: Mapping[Named, BaseException] | None = None,
        hang: set[Named] = frozenset(),  # type: ignore[assignment]
        replace: Mapping[Named, Callable[[Task], Ended]] | None = None,
    ) -> None:
        self._runtime = runtime
        gone = WorkerLost("the worker was killed")
        self._fail = dict(fail) if isinstance(fail, Mapping) else dict.fromkeys(fail, gone)
        self._fail_after, self._hang, self._replace = fail_after or {}, hang, replace or {}
        self._hung: dict[TaskId, Future[Ended]] = {}

    def capacity(self) -> Capacity:
        return self._runtime.capacity()

    def submit(self, tasks: Sequence[Task]) -> Sequence[Future[Ended]]:
        return [self._submit(task) for task in tasks]

    def _submit(self, task: Task) -> Future[Ended]:
        name = tuple(task.id)
        future: Future[Ended] = Future()
        if name in self._hang:
            self._hung[task.id] = future
        elif name in self._fail:
            future.set_exception(self._fail[name])  # type: ignore[index]
        elif name in self._replace:
            future.set_result(self._replace[name](task))  # type: ignore[index]
        elif name in self._fail_after:
            error = self._fail_after[name]  # type: ignore[index]
            (real,) = self._runtime.submit([task])
            real.add_done_callback(lambda _: future.set_exception(error))
        else:
            return self._runtime.submit([task])[0]
        return future

    def cancel(self, tasks: Sequence[TaskId]) -> None:
        self._runtime.cancel([task for task in tasks if task not in self._hung])
        for hung in [self._hung.pop(task) for task in tasks if task in self._hung]:
            hung.cancel()
            hung.set_running_or_notify_cancel()

    def check_shared(self, folder: str, what: str) -> None:
        self._runtime.check_shared(folder, what)

    def check_inputs(self, paths: Sequence[str]) -> None:
        self._runtime.check_inputs(paths)

    def forget(self, run: str) -> None:
        self._runtime.forget(run)

    def close(self) -> None:
        self._runtime.close()
