"""What the driver costs: tasks per second, and bytes, with a runtime that does nothing.

    python benchmarks/scale.py [--tasks 1000000] [--wide 10000] [--overhead]

Each measurement runs in a process of its own. `tasks` is one stage of many tasks and a
reader; `exchange` is `--wide` tasks × as many partitions. Both go through `run`: the
schedule, the counting of rows per partition, the events. `MB` is the peak resident
memory minus that of a run of ten tasks. `--overhead` adds milliseconds per task on
real workers: an empty SQL query in threads, and on a Ray cluster of two CPUs (if ray
is installed) beside bare Ray tasks that do nothing; there also a call for the bytes of parts.

What docs/scale.md predicts for the larger of two sizes from the smaller is printed beside what
was found; of memory, more than 20 % between them is an error (of time, it may be the machine).
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from millpond.formats.scan import FileSlice, Scan, Split
from millpond.physical.stages import (
    Edge,
    PartRef,
    SourceInput,
    Stage,
    StageInput,
    Task,
    TaskId,
    TaskResult,
    ToPart,
)
from millpond.physical.steps import Fragment, SqlStep
from millpond.runtime import Capacity, Runtime, run
from millpond.schema import Schema

SCHEMA = Schema.of([("x", "BIGINT")])
LIMIT_BYTES, LIMIT_TASKS_PER_S = 2 * 10**9, 20_000
AGREE = 0.2


class Nothing:
    """A runtime whose tasks are done when they are submitted, with a row per partition."""

    def __init__(self, n_partitions: int) -> None:
        self._counts = np.ones(n_partitions, "<i8").tobytes()

    def capacity(self) -> Capacity:
        return Capacity(10_000, 200)

    def submit(self, tasks: Sequence[Task]) -> "list[Future[Any]]":
        futures = [Future[Any]() for _ in tasks]
        for task, future in zip(tasks, futures, strict=True):
            future.set_result(self._result(task))
        return futures

    def _result(self, task: Task) -> TaskResult:
        assert isinstance(task.output, ToPart)
        n = task.output.n
        path = f"/data/parts/0123456789ab-1/{task.id.stage:04d}/{task.id.partition:05d}.a0.part"
        part = PartRef(*task.id, f"node-{task.id.partition % 50}", path, 64 * n, n, 1, 64, 0, n)
        counts = self._counts if n > 1 else b""
        return TaskResult(task.id, part, (), -1, n, 64 * n, counts, counts, node=part.node)

    def cancel(self, task: TaskId) -> None: ...
    def check_shared(self, folder: str, what: str) -> None: ...
    def forget(self, run: str) -> None: ...
    def close(self) -> None: ...


def stages(n_tasks: int, n_partitions: int) -> list[Stage]:
    """`n_tasks` tasks that write `n_partitions` each, and those that read them."""
    fragment = Fragment((SqlStep("SELECT x FROM __s0", SCHEMA),))
    splits = tuple(Split((FileSlice(f"/data/in/{i:07d}.parquet", i, 1),)) for i in range(n_tasks))
    source = SourceInput(Scan("parquet", SCHEMA), splits)
    return [
        Stage(0, "write", fragment, (source,), ToPart(n_partitions), SCHEMA),
        Stage(1, "read", fragment, (StageInput(0, Edge.ONE_TO_ONE),), ToPart(), SCHEMA),
    ]


def measure(n_tasks: int, n_partitions: int) -> dict[str, float]:
    """Seconds, and peak memory of this process, of one run."""
    graph = stages(n_tasks, n_partitions)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    start = time.perf_counter()
    cpu = time.process_time()
    run(graph, Nothing(n_partitions), lambda event: None)
    return {
        "tasks": n_tasks + n_partitions,
        "wall_s": time.perf_counter() - start,
        "cpu_s": time.process_time() - cpu,
        "plan_bytes": before,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def in_process(n_tasks: int, n_partitions: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--one", str(n_tasks), str(n_partitions)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found: dict[str, float] = json.loads(out)
    return found


# ---- overhead on real workers --------------------------------------------------------


def overhead(place: str, n_tasks: int) -> dict[str, float]:
    """Milliseconds per task, of an empty query on two CPUs, the workers being warm."""
    from millpond.runtime.local import LocalRuntime
    from millpond.worker import WorkerOptions, build_worker

    with tempfile.TemporaryDirectory() as folder:
        options = WorkerOptions(scratch=folder + "/scratch", parts=folder + "/parts")
        worker, bare = build_worker(options), dict[str, float]()
        runtime: Runtime
        if place == "ray":
            from millpond.runtime.ray import RayRuntime

            runtime = RayRuntime(options, cpus=2, allow_insecure=True)
            bare = {"bare_ray_ms": bare_ray(n_tasks, lambda: b"")}
            bare["bare_ray_same_query_ms"] = bare_ray(n_tasks, lambda: query(options))
        else:
            runtime = LocalRuntime(worker, options, slots=2)
        try:
            seconds(runtime, 20)
            each_ms = seconds(runtime, n_tasks) / n_tasks * 1e3
            told = {"ms_per_task": each_ms, **bare}
            if isinstance(runtime, LocalRuntime):
                return told
            told |= {f"fetch_{n}_parts_ms": fetch_ms(runtime, n) for n in (1, 32)}
            return told | {"fetch_mb_per_s": fetch_mb_per_s(runtime)}
        finally:
            runtime.close()
            worker.close()


def seconds(runtime: Runtime, n_tasks: int) -> float:
    fragment = Fragment((SqlStep("SELECT 1::BIGINT AS x", SCHEMA),))
    splits = SourceInput(Scan("memory", SCHEMA), (Split(),) * n_tasks)
    start = time.perf_counter()
    run([Stage(0, "empty", fragment, (splits,), ToPart(), SCHEMA)], runtime, lambda event: None)
    return time.perf_counter() - start


def fetch_ms(runtime: Any, n_parts: int) -> float:
    """Milliseconds of a call that brings that many parts of 20 KB from another node."""
    fragment = Fragment((SqlStep("SELECT range AS x FROM range(2500)", SCHEMA),))
    splits = SourceInput(Scan("memory", SCHEMA), (Split(),) * n_parts)
    made = run([Stage(0, "parts", fragment, (splits,), ToPart(), SCHEMA)], runtime, lambda e: None)
    wanted = [(part, [(0, part.size_bytes)]) for part in made.only.parts]
    runtime.fetch_many(wanted[0][0].node, wanted)
    start = time.perf_counter()
    for _ in range(100):
        runtime.fetch_many(wanted[0][0].node, wanted)
    return (time.perf_counter() - start) * 10


def fetch_mb_per_s(runtime: Any, size_bytes: int = 8 << 20) -> float:
    """MB a second that one reader gets from another node, by calls for 8 MiB of a large part."""
    rows = SqlStep("SELECT (hash(range) >> 1)::BIGINT AS x FROM range(8 << 20)", SCHEMA)
    splits = SourceInput(Scan("memory", SCHEMA), (Split(),))
    stage = Stage(0, "part", Fragment((rows,)), (splits,), ToPart(), SCHEMA)
    (part,) = run([stage], runtime, lambda e: None).only.parts
    runtime.fetch_many(part.node, [(part, [(0, size_bytes)])])
    start, n = time.perf_counter(), 0
    for at in range(0, 8 * size_bytes, size_bytes):
        ((data,),) = runtime.fetch_many(part.node, [(part, [(at, size_bytes)])])
        n += len(data)
    return n / (time.perf_counter() - start) / 1e6


def query(options: Any) -> bytes:
    """What a task of ours does, without our schedule and our way there and back."""
    import pickle

    import millpond.worker as room

    if not hasattr(room, "bare"):  # A worker for each process, as a runtime has them.
        mine = replace(options, scratch=f"{options.scratch}-{time.monotonic_ns()}")
        room.bare = room.build_worker(mine)  # type: ignore[attr-defined]
    schema = Schema.of([("x", "BIGINT")])
    fragment = Fragment((SqlStep("SELECT 1::BIGINT AS x", schema),))
    task = Task(TaskId(0, time.monotonic_ns()), fragment, (), ToPart(), schema)
    return pickle.dumps(room.run_task(task, room.bare))  # type: ignore[attr-defined]


def bare_ray(n_tasks: int, work: Any) -> float:
    """Milliseconds per task of Ray itself, all given to it at once: its quickest way."""
    import ray

    task = ray.remote(work).options(max_retries=0)
    ray.get([task.remote() for _ in range(20)])
    start = time.perf_counter()
    ray.get([task.remote() for _ in range(n_tasks)])
    return (time.perf_counter() - start) / n_tasks * 1e3


def predicted(
    small: dict[str, Any], large: dict[str, Any], what: str, times: float, unit: float
) -> None:
    """By the model, which is linear: `times` as much for the large one."""
    says, found = small[what] * times / unit, large[what] / unit
    off = found / says - 1
    print(f"{large['case']:>13}: {what} predicted {says:.1f}, found {found:.1f} ({off:+.0%})")
    # A few megabytes are the interpreter's own, and time may be the machine's.
    counts = what == "extra_bytes" and found >= 10
    assert not counts or abs(off) <= AGREE, "docs/scale.md predicts something else"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--tasks", type=int, default=1_000_000)
    parser.add_argument("--wide", type=int, default=10_000)
    parser.add_argument("--overhead", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", type=int, nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(*args.one)))
        return
    base = in_process(10, 1)["peak_bytes"]
    table = []
    for name, n_tasks, n_partitions in [
        ("tasks / 10", args.tasks // 10, 1),
        ("tasks", args.tasks, 1),
        ("exchange / 4", args.wide // 2, args.wide // 2),
        ("exchange", args.wide, args.wide),
    ]:
        found = in_process(n_tasks, n_partitions)
        extra = found["peak_bytes"] - base
        rate = found["tasks"] / found["cpu_s"]  # Of CPU time: others may share the machine.
        table.append({"case": name, **found, "tasks_per_s": rate, "extra_bytes": extra})
        print(
            f"{name:>13}: {n_tasks:>9,} × {n_partitions:<6,} {rate:>9,.0f} tasks/s "
            f"{found['cpu_s']:>7.1f} CPU s {extra / 1e6:>8,.0f} MB "
            f"{extra / found['tasks']:>7,.0f} bytes/task"
        )
        assert found["peak_bytes"] <= LIMIT_BYTES, "the driver takes more than it may"
        if found["tasks"] >= 10**5:  # Of CPU time; the smaller ones are over in a moment.
            assert rate >= LIMIT_TASKS_PER_S, "the schedule is slower than it may be"
    predicted(table[0], table[1], "cpu_s", 10, 1)
    predicted(table[2], table[3], "extra_bytes", 2, 1e6)
    for place in ("threads", "ray") if args.overhead else ():
        told = overhead(place, 1_000)
        table.append({"case": f"overhead {place}", **told})
        print(f"{place:>13}: " + ", ".join(f"{k} {v:.2f}" for k, v in told.items() if v))
    if args.json:
        args.json.write_text(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
