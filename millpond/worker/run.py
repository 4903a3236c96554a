"""A task on its way: inputs bound, steps chained, rows handed to the output."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from millpond.engine import python as functions
from millpond.engine.cursor import Cursor
from millpond.engine.freed_memory import freed_memory_kept
from millpond.engine.pieces import sized
from millpond.engine.udfs import vectorised
from millpond.errors import MillpondError, WorkerLost
from millpond.physical.fragment import ORDINAL_NAME
from millpond.physical.stages import PartRows, PartsLost, Task, TaskResult, ToFile, ToMemory, ToPart
from millpond.physical.steps import (
    PythonStep,
    ReadStep,
    RecordBoundsStep,
    RecordRangesStep,
    RecordSortStep,
    ShuffleStep,
    SortStep,
    SqlStep,
    Step,
)
from millpond.schema import Field, Schema
from millpond.shuffle.index import PartsUnreadable
from millpond.storage.oserrors import make_private
from millpond.worker.files import (
    FILES_AT_ONCE,
    write_in_order,
    write_partitions,
    write_random,
    write_sorted,
)
from millpond.worker.gather import fits, gathered, in_sorted_order
from millpond.worker.inputs import Inputs
from millpond.worker.moving import Moving, moving
from millpond.worker.outputs import (
    can_gather,
    discard,
    keep_in_memory,
    write_file,
    write_gathered,
    write_part,
)
from millpond.worker.told import said, unreadable
from millpond.worker.worker import Worker, WorkerOptions, build_worker

if TYPE_CHECKING:
    import pyarrow as pa


MOVED = SqlStep | ReadStep  # What gives rows that go into several files.
_REST_BYTES = 450 << 20


def run_task(task: Task, worker: Worker) -> TaskResult | PartsLost:
    """Run one task. What cannot be read is a result (`PartsLost`); other failures are raised."""
    wall, cpu = time.perf_counter(), time.thread_time()
    with ExitStack() as stack:
        more = worker.options.alone_bytes > worker.options.memory_limit_bytes
        sorts = isinstance(task.output, ToFile) and task.output.each_bytes > 0
        if task.rows_at_once is not None or (task.alone and more) or sorts:
            worker = stack.enter_context(_alone(worker, task))
        run = worker.running[task.id] = _Run(task, worker, stack)
        stack.callback(worker.running.pop, task.id)
        try:
            result = run.result()
        except (MillpondError, PartsUnreadable) as error:
            failure = run.inputs.failure or error
            if isinstance(failure, PartsUnreadable):
                return PartsLost(task.id, failure.refs, failure.damaged, failure.reason)
            if failure is error:
                failure = unreadable(task, error, worker.engine) or error
            raise said(task, failure)  # noqa: B904 (it brings its own cause)
    told = {"rows_in": run.inputs.rows_in, "rows_hash": run.inputs.hash_in, **result}
    return TaskResult(
        **told, task=task.id, node=worker.node,
        wall_s=time.perf_counter() - wall, cpu_s=time.thread_time() - cpu,
    )  # fmt: skip


@contextmanager
def _alone(worker: Worker, task: Task) -> Iterator[Worker]:
    """A worker for one task with all that its node has: the whole plan, or too large for `worker`.

    On one thread, if that was not enough: each takes memory. That for plans stays for the next.
    """
    stays = task.resources.whole_node and task.rows_at_once is None
    options = _with_all(
        worker.options, task, "plan" if stays else "alone-{}-{}-{}".format(*task.id)
    )
    one, worker.for_plans = (worker.for_plans, None) if stays else (None, worker.for_plans)
    if one is not None and one.options != options:
        _end(one)
        one = None
    if one is None:
        make_private(options.scratch)  # DuckDB makes its own folder in it, no more.
        one = build_worker(options, node=worker.node, fetch=worker.fetch)
        one.memory, one.running, one.held = worker.memory, worker.running, worker.held
    worker.engine.deputy = one.engine
    try:
        yield one
    except BaseException:
        stays = False
        raise
    finally:
        worker.engine.deputy = None
        if stays:
            worker.for_plans = one
        else:
            _end(one)


def _with_all(mine: WorkerOptions, task: Task, scratch: str) -> WorkerOptions:
    threads = mine.threads if task.rows_at_once is None else 1
    if task.resources.whole_node and task.rows_at_once is None:
        threads = max(threads, int(task.resources.cpus))
    return replace(
        mine,
        scratch=os.path.join(mine.scratch, scratch),
        threads=threads,
        memory_limit_bytes=max(mine.memory_limit_bytes, mine.alone_bytes),
        engine_share=_engine_share(mine, task),
    )


def _end(one: Worker) -> None:
    one.close()
    shutil.rmtree(one.options.scratch, ignore_errors=True)


def _engine_share(options: WorkerOptions, task: Task) -> float:
    """DuckDB's share of the memory of a task that has all of it."""
    if task.rows_at_once is not None:
        return 0.9  # A row group may be one page, and a page is read whole.
    each = task.output.each_bytes if isinstance(task.output, ToFile) else 0
    if not each:
        return options.engine_share
    # What a sort need not spill saves a sixth of its CPU; all else are files on their way, and
    # libraries and buffers.
    rest = each * (min(options.threads, FILES_AT_ONCE) + 1) + _REST_BYTES
    return max(options.engine_share, 1 - rest / options.memory_limit_bytes)


class _Run:
    """One task: a cursor for each of its steps."""

    def __init__(self, task: Task, worker: Worker, stack: ExitStack) -> None:
        self.task, self.worker, self.stack = task, worker, stack
        self.inputs = Inputs(task, worker)
        self._before: Step | None = None  # The step whose rows the next one reads.
        self._called: set[str] = set()
        self._cursors: list[Cursor] = []
        self._interrupted = False

    def interrupt(self) -> None:
        self._interrupted = True
        for cursor in self._cursors:
            cursor.interrupt()

    def result(self) -> dict[str, Any]:
        """The fields of the task's result, all of its input read."""
        result = self._output()
        try:
            self.inputs.finish()
        except BaseException:
            discard(result, self.worker)
            raise
        return result

    def _output(self) -> dict[str, Any]:
        task, worker = self.task, self.worker
        *before, last = task.fragment.steps
        if task.rows_at_once and task.fragment.row_wise:
            return self._in_pieces(task.rows_at_once)
        streams = isinstance(task.output, ToPart) or getattr(task.output, "n", None)
        # All of a plan is one task: its first statement is the one that takes long.
        fused = not streams and not task.fragment.has_python
        cursor = self._cursor(watched=fused)
        first = task.fragment.steps[0]
        if isinstance(task.output, ToFile) and task.output.n and isinstance(first, MOVED):
            return self._into_files(moving(first, task, worker, self.inputs, cursor))
        rows: Iterator[pa.RecordBatch] | None = None
        for step in before:
            rows, cursor = self._step(step, rows, cursor), self._cursor()
        match task.output, last:
            case ToFile(), RecordSortStep():
                from millpond.worker.records import sort_records

                return sort_records(last, task, worker, self.inputs, self._check)
            case ToFile(each_bytes=each), SqlStep() if each:
                rows = cursor.reader(self._bound(last, rows, cursor))
                return write_in_order(rows, task, worker, self._check)
            case ToFile(format="dataset"), SqlStep() if self._reads_parts(last):
                from millpond.worker.shards import write_shard

                return write_shard(self.inputs.part_batches(0), task, worker)
            case ToFile(), SqlStep() if self._moves_only(last):
                return write_gathered(self.inputs.part_batches(0), task, worker)
            case ToFile(), SqlStep():
                sql = self._bound(last, rows, cursor)
                few = self.inputs.batch_rows(last.schema)
                return write_file(cursor, sql, task, worker, few, self._check)
            case ToFile(), _:
                rows, cursor = self._step(last, rows, cursor), self._cursor()
                moved = isinstance(last, ShuffleStep | SortStep)
                if moved and can_gather(task.output, last.schema):
                    return write_gathered(rows, task, worker)
                self.inputs.bind_rows("FROM __s0", rows, last.schema, cursor)
                few = self.inputs.batch_rows(last.schema)
                return write_file(cursor, "FROM __s0", task, worker, few, self._check)
        found = self._step(last, rows, cursor)
        if isinstance(task.output, ToMemory):
            return keep_in_memory(found, last.schema, task, worker)
        return write_part(found, self.inputs.bounds, task, worker)

    def _into_files(self, rows: Moving) -> dict[str, Any]:
        """Several files of the rows of the first step, as the next one says, if any."""
        task, worker = self.task, self.worker
        match task.fragment.steps[1:]:
            case (ShuffleStep() as step,):
                return write_random(rows, step, task, worker, self._check)
            case (SortStep(bounds=str() as bounds) as step,):
                cursor = self._cursor()
                found = cursor.table(self.inputs.bind(bounds, cursor))
                return write_sorted(rows, found, step, task, worker, self._check)
        return write_partitions(rows, task, worker, self._check)

    def _reads_parts(self, step: SqlStep) -> bool:
        """Whether all that is to do is to write rows of parts as they are."""
        task = self.task
        if len(task.inputs) != 1 or len(task.fragment.steps) != 1 or step.sql != "FROM __s0":
            return False
        return isinstance(task.inputs[0], PartRows)

    def _moves_only(self, step: SqlStep) -> bool:
        """Whether they are partitions that were exchanged, for a file that Arrow writes."""
        output = self.task.output
        if not self._reads_parts(step):
            return False
        item = self.task.inputs[0]
        exchanged = isinstance(item, PartRows) and (item.n_parts, item.n_rows) == (None, None)
        return exchanged and isinstance(output, ToFile) and can_gather(output, step.schema)

    def _in_pieces(self, n_rows: int) -> dict[str, Any]:
        """What the steps make of `n_rows` rows of the first input at a time."""
        task, worker = self.task, self.worker
        first = task.inputs[0]
        given = first.schema if isinstance(first, PartRows) else first.scan.schema
        if first.first_row is not None:
            given = Schema((*given.fields, Field(ORDINAL_NAME, "BIGINT")))
        few = self.inputs.batch_rows(given)
        whole, cursors = SqlStep("FROM __s0", given), [self._cursor() for _ in task.fragment.steps]
        reading, writing = self._cursor(), self._cursor()
        source = reading.reader(self._bound(whole, None, reading), few)

        def made() -> Iterator[pa.RecordBatch]:
            for piece in sized(source, worker.engine.arrow_schema(given), min(n_rows, few)):
                rows: Iterator[pa.RecordBatch] = iter([piece])
                self._before = whole
                for step, cursor in zip(task.fragment.steps, cursors, strict=True):
                    rows = self._step(step, rows, cursor)
                yield from rows

        if isinstance(task.output, ToPart):
            return write_part(made(), self.inputs.bounds, task, worker)
        self.inputs.bind_rows("FROM __s0", made(), task.fragment.schema, writing)
        few = self.inputs.batch_rows(task.fragment.schema)
        return write_file(writing, "FROM __s0", task, worker, few, self._check)

    def _cursor(self, *, watched: bool = False) -> Cursor:
        engine = self.worker.engine
        cursor = self.stack.enter_context(
            engine.watched_cursor() if watched else engine.kept_cursor()
        )
        self._cursors.append(cursor)
        self._check()
        return cursor

    def _step(
        self, step: Step, rows: Iterator[pa.RecordBatch] | None, cursor: Cursor
    ) -> Iterator[pa.RecordBatch]:
        match step:
            case SqlStep():
                found = cursor.reader(
                    self._bound(step, rows, cursor), self.inputs.batch_rows(step.schema)
                )
            case PythonStep():
                if rows is None:
                    first = SqlStep("FROM __s0", step.input)
                    rows = cursor.reader(
                        self._bound(first, None, cursor), self.inputs.batch_rows(step.input)
                    )
                if step.light:
                    self.stack.enter_context(freed_memory_kept())
                arrow = self.worker.engine.arrow_schema
                most_bytes = self.worker.options.memory_limit_bytes
                earlier = [(each.call, arrow(each.schema)) for each in step.earlier]
                found = functions.apply(
                    step.call, rows, arrow(step.input), arrow(step.schema), most_bytes, earlier
                )
            case ShuffleStep():
                if not fits(self.task, self.worker):
                    return self._step(SqlStep(step.sql, step.schema), rows, cursor)
                found = gathered(step, self.inputs.part_batches(0), self.worker)
            case SortStep():
                if not fits(self.task, self.worker):
                    return self._step(SqlStep(step.sql, step.schema), rows, cursor)
                found = in_sorted_order(step, self.inputs.part_batches(0), self.worker)
            case RecordBoundsStep() | RecordRangesStep():
                from millpond.worker.records import record_rows

                found = record_rows(step, self.task, self.worker, self.inputs)
            case _:
                raise AssertionError(step)
        self._before = step
        return found

    def _bound(self, step: SqlStep, rows: Iterator[pa.RecordBatch] | None, cursor: Cursor) -> str:
        """The step's SQL with its inputs in reach: the task's, or the rows of the step before."""
        for udf in step.udfs:
            if udf.name in self._called:  # All cursors of a process share their functions.
                continue
            self._called.add(udf.name)
            kinds = [field.type for field in udf.parameters]
            cursor.function(udf.name, vectorised(udf, self.inputs.fail), kinds, udf.returns)
        if rows is None:
            return self.inputs.bind(step.sql, cursor)
        assert self._before is not None
        self.inputs.bind_rows(step.sql, rows, self._before.schema, cursor)
        return step.sql

    def _check(self) -> None:
        if self._interrupted:
            raise WorkerLost("the task was cancelled")
