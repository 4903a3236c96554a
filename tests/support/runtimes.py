"""The places to run that tests go through."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from fake_runtime import FakeRuntime
from small_pipelines import from_files, options, worker

from millpond.runtime import Runtime
from millpond.runtime.local import LocalRuntime
from millpond.worker import run_task


@contextmanager
def in_this_thread(folder: Path) -> Iterator[Runtime]:
    with ExitStack() as stack:
        ours = worker(folder)
        stack.callback(ours.close)
        yield FakeRuntime(2, lambda task: run_task(task, ours))


@contextmanager
def local(folder: Path) -> Iterator[Runtime]:
    ours = worker(folder)
    runtime = LocalRuntime(ours, options(folder, "processes"), slots=2)
    try:
        yield runtime
    finally:
        runtime.close()
        ours.close()


@contextmanager
def ray(folder: Path) -> Iterator[Runtime]:
    """A cluster of two nodes; it takes seconds to start, so one serves a whole module."""
    from ray_cluster import cluster, connected

    with cluster() as found, connected(found, folder) as runtime:
        yield runtime


def reading(runtime: Runtime) -> Any:
    """How to read the parts that `runtime` left."""
    return getattr(runtime, "fetch", from_files)
