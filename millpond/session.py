"""A session: opens and closes options, storage, engine and runtime; runs plans.

It is the `Runner` of its frames. It holds the only state of a process: a scratch
folder, an engine, a runtime. `close` (also `with`, and at exit) leaves nothing behind.
"""

from __future__ import annotations

import atexit
import os
import secrets
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from millpond.dataframe import DataFrame, WriteResult
from millpond.engine.duckdb import VERSION as DUCKDB
from millpond.errors import MillpondError, OptionError, SchemaMismatch, TargetNotEmpty, TaskError
from millpond.events import Event, Published, RunFinished, RunStarted
from millpond.expr import Dialect, parse
from millpond.formats.memory import ArrowRows
from millpond.formats.parquet import RowGroups, row_groups
from millpond.formats.scan import Scan
from millpond.keep import Keeper
from millpond.optimize import RULES, optimize
from millpond.options import Options, options
from millpond.physical.explain import Measured, explain_stages
from millpond.physical.fragment import plain
from millpond.physical.planner import plan_stages
from millpond.physical.shape import Physical, Settings, why_staged
from millpond.physical.stages import OutputFile, PartRef, PartRows
from millpond.plan import build
from millpond.plan import nodes as n
from millpond.plan.explain import explain
from millpond.plan.partitioning import partitioning
from millpond.report.interrupt import one_line
from millpond.report.line import live_line
from millpond.report.record import Recorder
from millpond.runtime import Journal, Outcome, StageOutcome, run
from millpond.runtime.journal import StoredJournal
from millpond.runtime.publish import Receipts, publish, rolled_forward
from millpond.runtime.scratch import Scratch
from millpond.schema import Schema
from millpond.shuffle.read import read_part_rows
from millpond.sources import Paths, Sources
from millpond.storage import Staged, Storage
from millpond.version import VERSION
from millpond.worker import Worker, WorkerOptions, build_worker

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from millpond.runtime import Runtime

_PLACES_ROWS = n.EvenPartition | n.HashPartition | n.Sort | n.RandomPartition
KEPT_IN_MEMORY_BYTES = 64 * 2**20  # Of one computed frame; beyond, its rows go to files.


def init(
    data_root: str | None = None, *, runtime: str | None = None, address: str | None = None,
    threads: int | None = None, memory_limit: str | int | None = None,
    storage_options: Mapping[str, str] | None = None, progress: bool | None = None,
    seed: int | None = None, shape: str | None = None, verify: str | None = None,
    name: str | None = None, allow_insecure: bool | None = None,
) -> Session:  # fmt: skip
    """Open a session in this process: no service, no port, nothing left behind.

    With `data_root`, finished work is kept there and a rerun resumes. `runtime="ray"` runs
    on a Ray cluster. Options also come from `MILLPOND_…`; an argument wins. The rest:
    docs/reference/options.md.

    >>> with millpond.init() as sp:
    ...     sp.from_items([1, 2]).count()
    2
    """
    given = dict(locals())
    return Session(options(**given))


class Session:
    """Makes frames and runs them. Made by `init`."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self._id = secrets.token_hex(6)
        self._runs = 0
        # Private (0700), and swept by the next session on this machine if we are killed.
        scratch = Scratch(f"session-{self._id}")
        self._scratch = scratch.path
        self._remove = weakref.finalize(self, scratch.remove)
        root = options.data_root
        # In an object store lie journal and receipts only: parts are read by small ranges,
        # so they stay on the disks of the machines that wrote them.
        mounted = root is not None and "://" not in root
        parts = os.path.join(root if root and mounted else self._scratch, "parts")
        self._worker_options = WorkerOptions(
            scratch=self._scratch,
            parts=parts,
            threads=options.threads,
            memory_limit_bytes=options.memory_limit_bytes,
            verify=options.verify,
            storage_options=options.storage_options,
        )
        self._worker: Worker = build_worker(self._worker_options)
        self._sources = Sources(self._worker.engine, self._worker.storage)
        self._runtime: Runtime | None = None
        self._journal: Journal | None = None
        self._footers: dict[tuple[str, str], RowGroups] = {}
        line = live_line(options.progress, self._worker.engine.fraction)
        self._listeners: list[Callable[[Event], None]] = [line] if line else []
        if root:
            self._listeners.append(Recorder(self._id, self._record))
        self._closed = False
        self._at_exit = partial(_close_at_exit, weakref.WeakMethod(self.close))
        atexit.register(self._at_exit)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the session: workers, engine and scratch are gone afterwards."""
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self._at_exit)
        self._close_runtime()
        self._worker.close()
        self._remove()

    def listen(self, listener: Callable[[Event], None]) -> None:
        """Call `listener` with every event of later runs; see `millpond.events`."""
        self._listeners.append(listener)

    @property
    def parts_folder(self) -> str:
        """Where this machine's tasks write their parts."""
        return self._worker_options.parts

    def __repr__(self) -> str:
        where = self.options.data_root or "no data_root"
        return f"Session(runtime={self.options.runtime!r}, {where})"

    # ---- sources ---------------------------------------------------------------------

    def read_parquet(
        self, paths: Paths, *, columns: Sequence[str] | None = None, recursive: bool = False,
        union_by_name: bool = False,
    ) -> DataFrame:  # fmt: skip
        """Parquet files: a path, a folder, a glob, a URI, or a list of them.

        Folders named `key=value` give columns. Other folders are entered if `recursive`.
        All files must have the same columns, unless `union_by_name`, which fills what
        one of them lacks with NULL.
        """
        where = f"read_parquet({paths!r})"
        return self._frame(
            self._sources.parquet(
                paths, where, columns=columns, recursive=recursive, union_by_name=union_by_name
            )
        )

    def read_csv(
        self, paths: Paths, schema: Mapping[str, str] | None = None, delim: str = ",", *,
        header: bool | None = None,
    ) -> DataFrame:  # fmt: skip
        """CSV files, also gzip or zstd. Types are found out once, unless `schema` says them."""
        where = f"read_csv({paths!r})"
        return self._frame(
            self._sources.csv(paths, where, schema=schema, delim=delim, header=header)
        )

    def read_json(self, paths: Paths, schema: Mapping[str, str] | None = None) -> DataFrame:
        """JSON files: one object a line, or an array per file; also gzip or zstd."""
        return self._frame(self._sources.json(paths, f"read_json({paths!r})", schema=schema))

    def read_arrow(self, paths: Paths) -> DataFrame:
        """Arrow IPC files or streams (Feather); local ones are mapped, not copied."""
        return self._frame(self._sources.arrow(paths, f"read_arrow({paths!r})"))

    def read_text(self, paths: Paths, *, whole: bool = False) -> DataFrame:
        """Text in UTF-8, also gzip or zstd: a row per line (`path`, `line`), or with `whole`
        one per file (`path`, `text`)."""
        return self._frame(self._sources.text(paths, f"read_text({paths!r})", whole=whole))

    def read_fixed(self, paths: Paths, fields: Mapping[str, int]) -> DataFrame:
        """Binary records of fixed width: `fields` gives the bytes of each, all BLOBs."""
        return self._frame(self._sources.fixed(paths, fields, f"read_fixed({paths!r})"))

    def _frame(self, source: n.DataSource) -> DataFrame:
        return DataFrame(self, source)

    def from_items(self, items: Iterable[Any]) -> DataFrame:
        """Python values: dicts become columns, anything else a column `item`.

        >>> sp.from_items([{"a": 1}, {"a": 2}]).columns
        ['a']
        """
        import pyarrow as pa

        rows = list(items)
        if rows and all(isinstance(row, dict) for row in rows):
            names = list(dict.fromkeys(name for row in rows for name in row))
            return self.from_arrow(pa.table({c: [row.get(c) for row in rows] for c in names}))
        return self.from_arrow(pa.table({"item": rows}))

    def from_arrow(self, rows: Any) -> DataFrame:
        """Anything with `__arrow_c_stream__`: pyarrow, Polars, a DuckDB relation."""
        import pyarrow as pa

        table = rows if isinstance(rows, pa.Table) else pa.table(rows)
        if not table.num_columns:
            raise SchemaMismatch("from_arrow(): the rows have no columns.")
        schema = self._worker.engine.schema_of(table)
        return DataFrame(self, n.DataSource(Scan("memory", schema), rows=ArrowRows(table)))

    def from_pandas(self, frame: pd.DataFrame) -> DataFrame:
        """A pandas frame, without its index."""
        import pyarrow as pa

        return self.from_arrow(pa.Table.from_pandas(frame, preserve_index=False))

    # ---- queries ---------------------------------------------------------------------

    def sql(self, query: str, **frames: DataFrame) -> DataFrame:
        """SQL over whole frames by name, in DuckDB's dialect.

        >>> sp.sql("SELECT sum(item)::INTEGER AS s FROM t", t=sp.from_items([1, 2])).take(1)
        [{'s': 3}]
        """
        plans = {name: frame.plan for name, frame in frames.items()}
        return DataFrame(self, build.global_sql(query, plans, "sql()", self.dialect))

    def partial_sql(
        self, query: str, *frames: DataFrame, co_partitioned: bool | None = None
    ) -> DataFrame:
        """SQL on each partition; inputs are `{0}`, `{1}`, …, other braces are left alone.

        Partition counts are equal, or 1: that input goes to every partition.
        """

        def warn(text: str) -> None:
            warnings.warn(text, stacklevel=5)

        plans = [frame.plan for frame in frames]
        return DataFrame(
            self,
            build.partial_sql(query, plans, "partial_sql()", self.dialect, co_partitioned, warn),
        )

    def wait(self, *frames: DataFrame) -> None:
        """Compute several frames, and do what lazy writes among them ask for."""
        for frame in frames:
            plan = frame.plan
            if isinstance(plan, n.DataSink):
                self.write(plan)
            else:
                frame.compute()

    # ---- what frames need (`dataframe.Runner`) ---------------------------------------

    @property
    def dialect(self) -> Dialect:
        self._check_open()
        return self._worker.engine.dialect

    @property
    def seed(self) -> int:
        return self.options.seed

    def arrow_schema(self, schema: Schema) -> pa.Schema:
        return self._worker.engine.arrow_schema(plain(schema))

    def table(self, plan: n.Node) -> pa.Table:
        """All rows in memory."""
        import pyarrow as pa

        batches = list(self.batches(plan))
        return pa.Table.from_batches(batches, self.arrow_schema(plan.schema))

    def batches(self, plan: n.Node) -> Iterator[pa.RecordBatch]:
        """Rows in partition order, in the types that users see."""
        yield from self._rows_of(self._stages(plan), self.arrow_schema(plan.schema))

    def _rows_of(self, physical: Physical, wanted: pa.Schema) -> Iterator[pa.RecordBatch]:
        result = self._run(physical).only
        try:
            for batch in self._result_batches(physical, result):
                yield batch if batch.schema.types == wanted.types else batch.cast(wanted)
        finally:
            self._forget(physical)

    def write_dataset(self, plan: n.Node, path: str, **layout: Any) -> None:
        """Shards in partition order; rows stream through this process."""
        from millpond.loader.write import write_dataset

        # Staged, so that rows wait in parts on disk and not in memory.
        physical = plan_stages(self._optimized(plan), replace(self._settings(), shape="staged"))
        schema = self.arrow_schema(plan.schema)
        rows = self._rows_of(physical, schema)
        options = self.options.storage_options
        write_dataset(rows, path, schema=schema, storage_options=options, **layout)

    def count(self, plan: n.Node) -> int:
        """Rows, without keeping any."""
        settings = self._settings()
        while isinstance(plan, _PLACES_ROWS):  # It changes no number of rows.
            plan = plan.input
        number = build.typed({"n": "BIGINT"}, "count()", self.dialect)
        if why_staged(self._optimized(plan), settings) is None:
            query = parse.query("SELECT count(*) AS n FROM __frame", "count()", self.dialect)
            counted: n.Node = n.GlobalSql(("__frame",), (plan,), query, number)
        else:
            query = parse.query("SELECT count(*) AS n FROM __in0", "count()", self.dialect)
            counted = n.SqlEngine((plan,), query, number)
        return sum(row["n"] for row in self.table(counted).to_pylist())

    def write(self, plan: n.DataSink) -> WriteResult:
        """Compute, and publish the files when all of them are complete."""
        storage = self._storage(plan.path)
        physical = self._stages(plan)
        fingerprint = physical.stages[-1].fingerprint
        receipts = self._receipts()
        receipt = receipts.find(plan.path) if receipts else None
        # Also where the plan is another by now: what was published halfway is made whole.
        whole = receipt is not None and rolled_forward(storage, receipt, plan.path)
        if receipt and whole and fingerprint and receipt.fingerprint == fingerprint:
            return _write_result(receipt.files, receipt.rows)
        before = [file.path for file in storage.list(plan.path)]
        if before and plan.mode == "error":
            raise TargetNotEmpty(plan.path, f"write_{plan.format}({plan.path!r})")
        if (folder := storage.local_path(plan.path)) is not None:
            self._place().check_shared(folder, f"the target {plan.path!r}")
        result = self._run(physical).only
        staged = [file.staged for file in result.files]
        old = before if plan.mode == "overwrite" else []
        publish(storage, staged, old, result.rows, target=plan.path, fingerprint=fingerprint,
                receipts=receipts)  # fmt: skip
        self._emit(Published(len(staged), result.rows, result.size_bytes))
        self._forget(physical)
        return _write_result(staged, result.rows)

    def keep(self, plan: n.Node) -> n.Node:
        """Compute, and keep the rows of each partition: in memory while they are small."""
        settings = self._settings()
        if partitioning(plan).n not in (None, 1):  # Its partitions may be observed later.
            settings = replace(settings, shape="staged")
        physical = plan_stages(self._optimized(plan), settings)
        result = self._run(physical).only
        kept = Keeper(self.arrow_schema(plan.schema), self._kept_folder(), KEPT_IN_MEMORY_BYTES)
        try:
            if result.parts and result.parts[0].path.startswith("memory:"):
                kept.add(self._worker.memory.pop(result.parts[0].path).to_batches())
            else:
                stage = physical.stages[-1]
                schema = self._worker.engine.arrow_schema(stage.schema)
                for i in range(len(result.parts)):
                    rows = PartRows(stage.id, stage.schema, first_part=i, n_parts=1,
                                    parts=result.parts)  # fmt: skip
                    kept.add(read_part_rows(rows, schema, self._worker.ranges))
        finally:
            self._forget(physical)
        splits, files = kept.splits()
        scan = Scan("memory" if not files else "arrow", plan.schema)
        rows_ = ArrowRows(kept.table()) if not files else None
        return n.Kept(plan, n.DataSource(scan, files, rows_), splits)

    def _kept_folder(self) -> str:
        return os.path.join(
            os.path.dirname(self._worker_options.parts), "kept", secrets.token_hex(8)
        )

    def check_resources(self, cpus: float, gpus: float, where: str) -> None:
        """More than this machine has would wait for ever. A cluster may grow: it is asked later."""
        if self.options.runtime != "local":
            return
        if cpus > self.options.threads:
            raise OptionError(
                f"{where}: cpus={cpus:g}, and this session has {self.options.threads} threads. "
                "Ask for less, or open it with init(threads=…)."
            )
        if gpus > 0 and not any(name.startswith("nvidia") for name in os.listdir("/dev")):
            raise OptionError(f"{where}: gpus={gpus:g}, and this machine has no GPU.")

    def explain(self, plan: n.Node, *, optimized: bool, physical: bool, analyze: bool) -> str:
        """The plan as text; with `physical` its stages, with `analyze` what they did in a run."""
        better = self._optimized(plan) if optimized else plan
        text = explain(better)
        stages = plan_stages(better, self._settings())
        if physical or analyze:
            text += "\n\n" + explain_stages(stages)
        if analyze:
            ran = Measured()
            self._listeners.append(ran)
            try:
                self.write(plan) if isinstance(plan, n.DataSink) else self._discarded(stages)
            finally:
                self._listeners.remove(ran)
            text += "\n\n" + ran.text()
        return text

    def _discarded(self, physical: Physical) -> None:
        """Run for the sake of running."""
        try:
            result = self._run(physical).only
            for part in result.parts:
                self._worker.memory.pop(part.path, None)
        finally:
            self._forget(physical)

    def partitions(self, plan: n.Node) -> int:
        physical = self._stages(plan)
        last = physical.stages[-1]
        from millpond.physical.stages import Done, n_tasks

        done: dict[int, Done] = {}
        for stage in physical.stages:
            count = n_tasks(stage, done)
            outs = getattr(stage.output, "n", 1)
            done[stage.id] = Done(count, outs, stage.schema, (0,) * count, ("",) * count)
        return done[last.id].n_tasks

    def trial(self, plan: n.Node, call: n.PythonCall, where: str) -> Schema:
        """The columns that a Python function gives, from at most 100 rows of its input."""
        from millpond.engine import python

        rows = self.table(n.Limit(plan, 100))
        try:
            found = python.try_function(call, rows, where)
        except python.FunctionError as error:
            raise TaskError(
                f"{where}: {error}", stage=0, partition=0, inputs="the first rows of its input",
                traceback=error.traceback,
            ) from error.cause  # fmt: skip
        return self._worker.engine.schema_of(found)

    # ---- running ---------------------------------------------------------------------

    def _run(self, physical: Physical) -> Outcome:
        self._check_open()
        begin, error = time.perf_counter(), ""
        self._emit(RunStarted(physical.shape, len(physical.stages)))
        try:
            journal, place = self._open_journal(), self._place()
            return run(physical.stages, place, self._emit, journal=journal, discard=self._discard)
        except BaseException as stopped:
            error = type(stopped).__name__
            if isinstance(stopped, KeyboardInterrupt):
                # It may have struck where the run had not yet noted a task that it started.
                self._close_runtime()
                one_line(stopped)
            raise
        finally:
            self._emit(RunFinished(time.perf_counter() - begin, error))

    def _discard(self, parts: Sequence[PartRef], files: Sequence[OutputFile]) -> None:
        """What attempts that nobody wants have left; parts go with their folder."""
        for file in files:
            self._storage(file.staged.path).discard([file.staged])

    def _settings(self) -> Settings:
        self._check_open()
        self._runs += 1
        return Settings(
            split_bytes=self.options.split_bytes,
            footer=self._footer,
            sort_key=self._worker.engine.sort_key,
            shape=self.options.shape,
            staged_only=self.options.runtime != "local",
            versions=f"millpond {VERSION}, duckdb {DUCKDB}",
            run=f"{self._id}-{self._runs}",
        )

    def _place(self) -> Runtime:
        if self._runtime is None:
            self._runtime = self._open_runtime()
        return self._runtime

    def _open_runtime(self) -> Runtime:
        mine, given = self._worker_options, self.options
        # A process runs one task of Python at a time, beside the engine of this process.
        each = replace(mine, threads=1, memory_limit_bytes=_process_share(mine))
        if given.runtime == "ray":
            from millpond.runtime.ray import RayRuntime

            on_ray = RayRuntime(
                each,
                address=given.address,
                cpus=mine.threads,
                shared_parts=given.data_root is not None and "://" not in given.data_root,
                allow_insecure=given.allow_insecure,
            )
            self._worker.fetch = on_ray.fetch
            return on_ray
        from millpond.runtime.local import LocalRuntime

        return LocalRuntime(self._worker, each, slots=mine.threads)

    def _receipts(self) -> Receipts | None:
        root = self.options.data_root
        return Receipts(self._storage(root), root) if root else None

    def _record(self, name: str, text: str) -> None:
        """Keep what happened in a run beside its results, for `millpond report`."""
        root = str(self.options.data_root).rstrip("/")
        self._storage(root).put_if_absent(f"{root}/events/{name}", text.encode())

    def _close_runtime(self) -> None:
        if self._runtime is not None:
            self._runtime.close()
            self._runtime = None

    def _open_journal(self) -> Journal | None:
        root = self.options.data_root
        if root is None:
            return None
        if self._journal is None:
            storage = self._storage(root)

            def is_staged(staged: Staged) -> bool:
                found = storage.stat(staged.local)
                return found is not None and found.size_bytes == staged.size_bytes

            self._journal = StoredJournal(storage, root, self._id, is_staged)
        return self._journal

    def _result_batches(self, physical: Physical, result: StageOutcome) -> Iterator[pa.RecordBatch]:
        parts = result.parts
        if parts and parts[0].path.startswith("memory:"):
            yield from self._worker.memory.pop(parts[0].path).to_batches()
            return
        stage = physical.stages[-1]
        rows = PartRows(stage.id, stage.schema, parts=parts)
        schema = self._worker.engine.arrow_schema(stage.schema)
        yield from read_part_rows(rows, schema, self._worker.ranges)

    def _forget(self, physical: Physical) -> None:
        """Parts of a finished run that nothing reuses."""
        if self.options.data_root is None and self._runtime is not None:
            self._runtime.forget(physical.stages[0].run)

    def _stages(self, plan: n.Node) -> Physical:
        return plan_stages(self._optimized(plan), self._settings())

    def _optimized(self, plan: n.Node) -> n.Node:
        return optimize(plan, RULES if self.options.optimize else ())

    def _emit(self, event: Event) -> None:
        for listener in list(self._listeners):
            try:
                listener(event)
            except Exception as error:  # Whoever watches a run cannot stop it.
                self._listeners.remove(listener)
                warnings.warn(f"a listener raised {error!r}, and is not called again", stacklevel=2)

    def _storage(self, path: str) -> Storage:
        return self._worker.storage(path)

    def _footer(self, path: str) -> RowGroups:
        storage = self._storage(path)
        info = storage.stat(path)
        key = path, info.version if info else ""
        if key not in self._footers:
            self._footers[key] = row_groups(storage, path)
        return self._footers[key]

    def _check_open(self) -> None:
        if self._closed:
            raise MillpondError("this session is closed; open another with millpond.init().")


def _close_at_exit(close: weakref.WeakMethod[Callable[[], None]]) -> None:
    method = close()
    if method is not None:
        method()


def _write_result(files: Sequence[Staged], rows: int) -> WriteResult:
    size_bytes = sum(file.size_bytes for file in files)
    return WriteResult(tuple(file.path for file in files), rows, size_bytes)


def _process_share(options: WorkerOptions) -> int:
    return max(int(options.memory_limit_bytes * 0.3 / options.threads), 128 * 2**20)
