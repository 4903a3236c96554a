"""`run_task(task, worker)`: the only function that executes a task, in every runtime.

A `Worker` is what a process brings: engine, storage, folders, and how to read parts
that lie on other nodes. It is built once per process, from options that never travel
inside a task.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from millpond.engine import python as functions
from millpond.engine.duckdb import Cursor, Engine
from millpond.engine.rows_hash import rows_hash
from millpond.engine.udfs import vectorised
from millpond.engine.write import write_rows
from millpond.errors import FileUnreadable, MillpondError, SqlError, TaskError, WorkerLost
from millpond.formats.rows import FORMATS, read_rows, schema_of
from millpond.formats.scan import Scan, Split, reader, scan_sql
from millpond.physical.stages import (
    OutputFile,
    PartRef,
    PartRows,
    PartsLost,
    RecordSortStep,
    SplitRows,
    SqlStep,
    Step,
    Task,
    TaskId,
    TaskResult,
    ToFile,
    ToMemory,
    ToPart,
)
from millpond.shuffle.read import PartsUnreadable, read_part_rows
from millpond.storage import STORES, LocalStorage, Range, RemoteFiles, Staged, Storage, open_storage

if TYPE_CHECKING:
    import pyarrow as pa

Fetch = Callable[[PartRef, Sequence[tuple[int, int]]], Sequence[Any]]


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """What a process needs to become a worker. May hold secrets: never inside a task."""

    scratch: str  # Private to this process; removed by whoever made it.
    parts: str  # Where parts are written.
    threads: int = 1
    memory_limit_bytes: int = 2**30
    verify: str = "parts"
    storage_options: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(slots=True)
class Worker:
    """A process that can run tasks. `memory` holds rows of `ToMemory` tasks by name."""

    engine: Engine
    storage: Callable[[str], Storage]
    options: WorkerOptions
    node: str = ""
    fetch: Fetch | None = None
    memory: dict[str, pa.Table] = field(default_factory=dict)
    running: dict[TaskId, _Run] = field(default_factory=dict)

    def interrupt(self, task: TaskId) -> None:
        """End a task that runs in another thread soon; it raises whatever it then meets."""
        run = self.running.get(task)
        if run is not None:
            run.interrupt()

    def ranges(self, ref: PartRef, ranges: Sequence[tuple[int, int]]) -> Sequence[Any]:
        """Bytes of a part, wherever it lies."""
        from millpond.storage.direct import read_direct

        if ref.node and ref.node != self.node:
            if self.fetch is None:
                raise OSError(f"{ref.path} lies on node {ref.node}, which cannot be reached")
            return self.fetch(ref, ranges)
        storage = self.storage(ref.path)
        if type(storage) is LocalStorage:  # Not 3FS, which has a faster way of its own.
            # Parts were written past the page cache: reading them through it costs ten times
            # the CPU, see benchmarks/exchange.py.
            return read_direct(ref.path, ranges)
        return storage.read_many([Range(ref.path, offset, length) for offset, length in ranges])

    def close(self) -> None:
        self.engine.close()


def build_worker(options: WorkerOptions, *, node: str = "", fetch: Fetch | None = None) -> Worker:
    """A worker for this process."""
    os.makedirs(options.parts, mode=0o700, exist_ok=True)
    # DuckDB takes its share; the rest is for exchange buffers and Python.
    share = int(options.memory_limit_bytes * 0.6)
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

    return Worker(engine, storage, options, node, fetch)


def run_task(task: Task, worker: Worker) -> TaskResult | PartsLost:
    """Run one task. What cannot be read is a result (`PartsLost`); other failures are raised."""
    wall, cpu = time.perf_counter(), time.thread_time()
    with ExitStack() as stack:
        run = worker.running[task.id] = _Run(task, worker, stack)
        stack.callback(worker.running.pop, task.id)
        try:
            result = run.result()
        except PartsUnreadable as bad:
            return PartsLost(task.id, bad.refs, bad.damaged, bad.reason)
        except MillpondError as error:
            failure = run.failure or run.unreadable(error) or error
            raise _said(task, failure)  # noqa: B904 (it brings its own cause)
    return TaskResult(
        **result, task=task.id, rows_in=run.rows_in, node=worker.node, rows_hash=run.hash_in,
        wall_s=time.perf_counter() - wall, cpu_s=time.thread_time() - cpu,
    )  # fmt: skip


class _Run:
    """One task on its way: tables bound, steps chained, rows counted."""

    def __init__(self, task: Task, worker: Worker, stack: ExitStack) -> None:
        self.task, self.worker, self.stack = task, worker, stack
        self.rows_in = 0
        self.hash_in = 0 if worker.options.verify == "rows" else None
        # What a stream raised while DuckDB read it: DuckDB only tells that something did.
        self.failure: MillpondError | None = None
        self._bounds: pa.Array | None = None
        self._before: Step | None = None  # The step whose rows the next one reads.
        self._called: set[str] = set()
        self._cursors: list[Cursor] = []
        self._interrupted = False

    def interrupt(self) -> None:
        self._interrupted = True
        for cursor in self._cursors:
            cursor.interrupt()

    def result(self) -> dict[str, Any]:
        output = self.task.output
        *before, last = self.task.fragment.steps
        whole = not isinstance(output, ToPart) and isinstance(last, SqlStep) and not before
        cursor = self._cursor(watched=whole)
        rows: Iterator[pa.RecordBatch] | None = None
        for step in before:
            rows, cursor = self._step(step, rows, cursor), self._cursor()
        match output, last:
            case ToFile(), RecordSortStep():
                return self._sort_records(last)
            case ToFile(), SqlStep():
                return self._to_file(cursor, self._bound(last, rows, cursor))
            case ToFile(), _:
                rows, cursor = self._step(last, rows, cursor), self._cursor()
                cursor.register("__s0", self._reader(rows, last))
                return self._to_file(cursor, "FROM __s0")
            case ToMemory(), SqlStep():
                return self._to_memory(cursor.table(self._bound(last, rows, cursor)))
            case ToMemory(), _:
                return self._to_memory(
                    self._reader(self._step(last, rows, cursor), last).read_all()
                )
        return self._to_part(self._step(last, rows, cursor))

    def _cursor(self, *, watched: bool = False) -> Cursor:
        engine = self.worker.engine
        cursor = self.stack.enter_context(engine.watched_cursor() if watched else engine.cursor())
        self._cursors.append(cursor)
        self._check()
        return cursor

    # ---- input -----------------------------------------------------------------------

    def _step(
        self, step: Step, rows: Iterator[pa.RecordBatch] | None, cursor: Cursor
    ) -> Iterator[pa.RecordBatch]:
        assert not isinstance(step, RecordSortStep)
        if isinstance(step, SqlStep):
            found = cursor.reader(self._bound(step, rows, cursor))
        else:
            if rows is None:
                rows = cursor.reader(self._bound(SqlStep("FROM __s0", step.input), None, cursor))
            arrow = self.worker.engine.arrow_schema
            found = functions.apply(step.call, rows, arrow(step.input), arrow(step.schema))
        self._before = step
        return found

    def _bound(self, step: SqlStep, rows: Iterator[pa.RecordBatch] | None, cursor: Cursor) -> str:
        """The step's SQL with its inputs in reach: the task's, or the rows of the step before."""
        for udf in step.udfs:
            if udf.name in self._called:  # All cursors of a process share their functions.
                continue
            self._called.add(udf.name)
            kinds = [field.type for field in udf.parameters]
            cursor.function(udf.name, vectorised(udf, self._fail), kinds, udf.returns)
        if rows is not None:
            assert self._before is not None
            cursor.register("__s0", self._reader(rows, self._before))
            return step.sql
        views = []
        for i, item in enumerate(self.task.inputs):
            name = f"__s{i}"
            match item:
                case SplitRows(scan, splits):
                    for path in {s.path for split in splits for s in split.slices}:
                        self.worker.storage(path)  # From now on the engine can read there.
                    table = ""
                    held = [s.rows.table for s in splits if s.rows is not None]
                    if held:
                        table = f"__rows{i}"
                        cursor.register(table, held[0] if len(held) == 1 else _together(held))
                    how = "NOT MATERIALIZED"
                    if scan.format in FORMATS and not table:
                        table = f"__rows{i}"
                        cursor.register(table, self._stream(scan, splits))
                        # A stream is read once, however often the query names it; but what
                        # is materialized loses its order, so only where it must be.
                        how = how if _names_once(step.sql, name) else "MATERIALIZED"
                    views.append(f"{name} AS {how} ({scan_sql(scan, splits, table)})")
                case PartRows():
                    table_ = self._part_rows(item)
                    if self._is_bounds(i):
                        self._bounds = table_.column(0).combine_chunks()
                    else:
                        cursor.register(name, table_)
        return f"WITH {', '.join(views)}\n{_nested(step.sql)}" if views else step.sql

    def unreadable(self, error: MillpondError) -> FileUnreadable | None:
        """Whether an error of DuckDB's comes from a file that has no footer any more."""
        if not isinstance(error, SqlError):
            return None
        for item in self.task.inputs:
            if not isinstance(item, SplitRows) or item.scan.format != "parquet":
                continue
            for piece in (piece for split in item.splits for piece in split.slices):
                try:
                    self.worker.engine.describe(f"FROM {reader('parquet', [piece.path], ())}", {})
                except MillpondError as why:
                    return FileUnreadable(f"{piece.path}: not a readable Parquet file ({why}).")
        return None

    def _fail(self, error: MillpondError) -> None:
        self.failure = self.failure or error

    def _stream(self, scan: Scan, splits: Sequence[Split]) -> pa.RecordBatchReader:
        """Rows of a format that DuckDB does not read by itself."""
        import pyarrow as pa

        slices = [piece for split in splits for piece in split.slices]
        schema = self.worker.engine.arrow_schema(scan.schema)
        if scan.format == "arrow" and slices:  # Its own types; the query casts.
            own = schema_of(self.worker.storage(slices[0].path), slices[0].path)
            schema = pa.schema([own.field(name) for name in scan.schema.names])

        def kept() -> Iterator[pa.RecordBatch]:
            try:
                for piece in slices:
                    for batch in read_rows(scan, [piece], self.worker.storage(piece.path)):
                        yield batch if batch.schema == schema else batch.cast(schema)
            except MillpondError as error:
                self.failure = self.failure or error
                raise

        return pa.RecordBatchReader.from_batches(schema, kept())

    def _is_bounds(self, i: int) -> bool:
        output = self.task.output
        return (
            isinstance(output, ToPart) and output.how == "range" and i + 1 == len(self.task.inputs)
        )

    def _part_rows(self, rows: PartRows) -> pa.Table:
        import pyarrow as pa

        schema = self.worker.engine.arrow_schema(rows.schema)
        table = pa.Table.from_batches(read_part_rows(rows, schema, self.worker.ranges), schema)
        self.rows_in += table.num_rows
        if self.hash_in is not None:
            self.hash_in = (self.hash_in + rows_hash(self.worker.engine, table)) % 2**64
        return table

    def _reader(self, rows: Iterable[pa.RecordBatch], step: Step) -> pa.RecordBatchReader:
        import pyarrow as pa

        def kept() -> Iterator[pa.RecordBatch]:
            try:
                yield from rows
            except MillpondError as error:
                self.failure = self.failure or error
                raise

        schema = self.worker.engine.arrow_schema(step.schema)
        return pa.RecordBatchReader.from_batches(schema, kept())

    # ---- output ----------------------------------------------------------------------

    def _to_part(self, rows: Iterator[pa.RecordBatch]) -> dict[str, Any]:
        import pyarrow as pa

        from millpond.engine.kernels import partition_numbers, range_partition
        from millpond.shuffle.write import PartWriter

        task, output = self.task, self.task.output
        assert isinstance(output, ToPart)
        path = self._part_path()
        schema = self.worker.engine.arrow_schema(task.schema)
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        writer = PartWriter(path, output.n, schema)
        hashed = None if self.hash_in is None else 0
        try:
            for batch in rows:
                last = batch.num_columns - 1
                numbers: Any = None
                if output.how == "column":
                    numbers = partition_numbers(batch.column(last), f"{output.n} partitions")
                elif output.how == "range":
                    numbers = range_partition(batch.column(last), self._bounds)
                kept = batch if numbers is None else batch.select(range(last))
                if hashed is not None:
                    hashed += rows_hash(self.worker.engine, pa.Table.from_batches([kept]))
                writer.add(kept, numbers)
            written = writer.close()
        except BaseException:
            writer.abort()
            raise
        ref = PartRef(
            *task.id, node=self.worker.node, path=path, size_bytes=written.size_bytes,
            n_partitions=output.n, n_runs=written.n_runs, index_offset=written.index_offset,
            index_checksum=written.index_checksum, rows=written.rows,
        )  # fmt: skip
        return {
            "part": ref,
            "rows": written.rows,
            "size_bytes": written.size_bytes,
            "partition_rows": written.partition_rows,
            "partition_bytes": written.partition_bytes,
            "written_hash": None if hashed is None else hashed % 2**64,
        }

    def _part_path(self) -> str:
        stage, partition, attempt = self.task.id
        # The attempt is in the name: a late one must never replace what a reader opened.
        return os.path.join(
            self.worker.options.parts,
            self.task.run,
            f"{stage:04d}",
            f"{partition:05d}.a{attempt}.part",
        )

    def _to_file(self, cursor: Cursor, sql: str) -> dict[str, Any]:
        output = self.task.output
        assert isinstance(output, ToFile)
        storage = self.worker.storage(output.directory)
        staged = self._staged(output, self.task.id.partition)
        try:
            rows = write_rows(cursor, sql, staged.local, output, self.worker.engine)
            staged = storage.seal(staged)
        except BaseException:
            storage.discard([staged])
            raise
        return {
            "files": (OutputFile(staged, rows),),
            "rows": rows,
            "size_bytes": staged.size_bytes,
        }

    def _staged(self, output: ToFile, number: int) -> Staged:
        """An output file, begun aside."""
        name = output.name.replace("{partition}", f"{number:05d}")
        target = f"{output.directory.rstrip('/')}/{name}"
        tag = f"s{self.task.id.stage}a{self.task.id.attempt}"
        return self.worker.storage(target).stage(target, tag)

    def _sort_records(self, step: RecordSortStep) -> dict[str, Any]:
        """Whole files to sorted files; as many as the memory asks for."""
        from millpond.formats.fixed import Layout
        from millpond.shuffle.records import RecordSort, sort_files

        (given,), output, options = self.task.inputs, self.task.output, self.worker.options
        assert isinstance(given, SplitRows)
        assert isinstance(output, ToFile)
        layout = Layout.of(dict(step.fields), "sort")
        paths = [piece.path for split in given.splits for piece in split.slices]
        files = [file for path in paths if (file := self.worker.storage(path).stat(path))]
        # What the libraries take before the first record is about 100 MB.
        memory = max(options.memory_limit_bytes * 9 // 10 - 100 * 2**20, 64 * 2**20)
        key = layout.places[step.key]
        how = RecordSort(layout, key, memory, options.threads, self._check)
        scratch = os.path.join(options.parts, self.task.run, f"records-a{self.task.id.attempt}")
        os.makedirs(scratch, mode=0o700, exist_ok=True)
        storage, staged = self.worker.storage(output.directory), dict[int, Staged]()

        def name(number: int) -> str:
            if number not in staged:
                staged[number] = self._staged(output, number)
            return staged[number].local

        try:
            done = sort_files(files, name, scratch, how)
            sealed = [storage.seal(staged[number]) for number in sorted(staged)]
        except BaseException:
            storage.discard(list(staged.values()))
            raise
        self.rows_in = done.rows
        made = [OutputFile(each, each.size_bytes // layout.record_bytes) for each in sealed]
        return {
            "files": tuple(made),
            "rows": done.rows,
            "size_bytes": sum(each.size_bytes for each in sealed),
        }

    def _check(self) -> None:
        if self._interrupted:
            raise WorkerLost("the task was cancelled")

    def _to_memory(self, table: pa.Table) -> dict[str, Any]:
        stage, partition, attempt = self.task.id
        path = f"memory:{id(table)}"
        self.worker.memory[path] = table
        ref = PartRef(stage, partition, attempt, "memory", path, table.nbytes, 1, 0, 0, 0,
                      table.num_rows)  # fmt: skip
        return {"part": ref, "rows": table.num_rows, "size_bytes": table.nbytes}


def _together(tables: Sequence[pa.Table]) -> pa.Table:
    import pyarrow as pa

    return pa.concat_tables(tables)


def _names_once(sql: str, name: str) -> bool:
    """Whether a query reads `name` once, by sight: below a WITH it may be read again."""
    return sql.count(name) == 1 and "WITH" not in sql.upper()


def _nested(sql: str) -> str:
    """SQL that may begin with its own WITH, below ours."""
    return f"SELECT * FROM (\n{sql}\n)" if sql.lstrip()[:4].upper() == "WITH" else sql


def _said(task: Task, error: MillpondError) -> MillpondError:
    """The error with its place in the run, for whoever started the run."""
    inputs = describe_inputs(task)
    if isinstance(error, functions.FunctionError):
        told = TaskError(
            str(error), stage=task.id.stage, partition=task.id.partition, inputs=inputs,
            traceback=error.traceback,
        )  # fmt: skip
        told.__cause__ = error.cause
        return told
    place = f"stage {task.id.stage}, partition {task.id.partition}; input: {inputs}"
    located = error.located(place)
    located.__cause__ = error.__cause__
    return located


def describe_inputs(task: Task) -> str:
    """What a task read, in the user's words."""
    said = []
    for item in task.inputs:
        match item:
            case SplitRows(splits=splits):
                for piece in (s for split in splits for s in split.slices):
                    rows = f" rows {piece.first_row}–{piece.first_row + piece.n_rows - 1}" if (
                        piece.n_rows) else ""  # fmt: skip
                    said.append(f"{piece.path}{rows}")
                said += ["rows from Python" for split in splits if split.rows is not None]
            case PartRows(stage=stage, first_partition=first):
                said.append(f"partition {first} of stage {stage}")
    return ", ".join(said[:3]) + (f" and {len(said) - 3} more" if len(said) > 3 else "")
