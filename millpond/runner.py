"""What a plan gives when it runs: rows, files, numbers, text. What frames need of a session."""

from __future__ import annotations

import os
import secrets
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from millpond.engine.stopwatch import timed
from millpond.errors import GaveUp, NodeTaken, OptionError, OutOfMemory, SchemaMismatch, TaskError
from millpond.events import Published
from millpond.expr import Dialect, parse
from millpond.formats.iceberg import Catalog
from millpond.formats.memory import ArrowRows
from millpond.formats.scan import Scan
from millpond.keep import Keeper
from millpond.options import gpu_count
from millpond.physical.explain import Measured, explain_stages
from millpond.physical.measured import first_rows, to_measure
from millpond.physical.planner import plan_stages
from millpond.physical.shape import Physical, why_staged
from millpond.physical.stages import PartRows, ToFile
from millpond.physical.tasks import Done, n_tasks
from millpond.plan import build
from millpond.plan import nodes as n
from millpond.plan.explain import explain
from millpond.plan.fingerprint import digest
from millpond.plan.partitioning import partitioning
from millpond.plan.wire import plain
from millpond.runtime import StageOutcome
from millpond.schema import Schema
from millpond.shuffle.read import read_part_rows
from millpond.storage.commit import Mode, marked, new_commit_id
from millpond.table_targets import TableTarget, TableTargets
from millpond.targets import FileTarget, FolderTarget, Target, WriteResult
from millpond.workplace import Workplace

if TYPE_CHECKING:
    import pyarrow as pa

    Columns: TypeAlias = Mapping[str, str] | pa.Schema  # Names and types that a user declares.

_PLACES_ROWS = n.EvenPartition | n.HashPartition | n.Sort | n.RandomPartition
# A row of two numbers to a worker process and back, on one of two processors: what such a
# function costs beside itself (benchmarks/functions.py).
TRAVEL_NS = 60.0
KEPT_IN_MEMORY_BYTES = 64 * 2**20  # Of one computed frame; beyond, its rows go to files.


class Runner:
    """Runs plans at a workplace. The plan of each method is a frame's, not optimised yet."""

    def __init__(self, work: Workplace) -> None:
        self._work = work
        self._tables = TableTargets(work.worker.engine, work.worker.storage)
        self._writes = Counter[str]()  # How often each write was asked for.

    @property
    def dialect(self) -> Dialect:
        self._work.check_open()
        return self._work.worker.engine.dialect

    @property
    def seed(self) -> int:
        return self._work.options.seed

    def arrow_schema(self, schema: Schema) -> pa.Schema:
        return self._work.worker.engine.arrow_schema(plain(schema))

    def declared(self, columns: Columns, where: str) -> Mapping[str, str] | Schema:
        """The columns that a user says a function gives."""
        if hasattr(columns, "empty_table"):
            return parse.check(lambda: self._named_by_duckdb(columns), where)
        if not isinstance(columns, Mapping | Schema):
            raise SchemaMismatch(
                f"{where}: schema is a dict of names and DuckDB types, a frame's schema, or a "
                f"pyarrow.Schema, not {type(columns).__name__}."
            )
        return columns

    def _named_by_duckdb(self, schema: pa.Schema) -> Schema:
        import pyarrow as pa

        none = pa.RecordBatchReader.from_batches(schema, [])  # Arrow has no empty union.
        return self._work.worker.engine.schema_of(none)

    def check_resources(
        self, cpus: float, gpus: float, memory_bytes: int | None, where: str
    ) -> None:
        """More than this machine has would wait for ever. A cluster may grow: it is asked later."""
        for name, asked in (("cpus", cpus), ("gpus", gpus)):
            if isinstance(asked, bool) or not isinstance(asked, int | float) or asked < 0:
                raise OptionError(f"{where}: {name}={asked!r}; it must be a number ≥ 0.")
        if self._work.options.runtime != "local":
            return
        threads = self._work.options.threads
        if cpus > threads:
            raise OptionError(
                f"{where}: cpus={cpus:g}, and this session has {threads} threads. "
                "Ask for less, or open it with init(threads=…)."
            )
        limit = self._work.options.memory_limit_bytes
        if memory_bytes is not None and memory_bytes > limit:
            raise OptionError(
                f"{where}: memory={memory_bytes:,} bytes, and this session has {limit:,}. "
                "Ask for less, or open it with init(memory_limit=…)."
            )
        if gpus and gpus > (has := gpu_count()):
            number = f"{has} GPU{'' if has == 1 else 's'}" if has else "no GPU"
            raise OptionError(f"{where}: gpus={gpus:g}, and this machine has {number}.")

    # ---- rows ------------------------------------------------------------------------

    def table(self, plan: n.Node) -> pa.Table:
        """All rows in memory."""
        import pyarrow as pa

        batches = list(self.batches(plan))
        return pa.Table.from_batches(batches, self.arrow_schema(plan.schema))

    def batches(self, plan: n.Node) -> Iterator[pa.RecordBatch]:
        """Rows in partition order, in the types that users see."""
        yield from self._rows_of(plan, self._stages(plan), self.arrow_schema(plan.schema))

    def _run(
        self, plan: n.Node, physical: Physical, commit_id: str = ""
    ) -> tuple[Physical, StageOutcome]:
        """Run the stages of `plan`. One task that gets too little room runs again staged."""
        try:
            return physical, self._work.run(_named(physical, commit_id)).only
        except (GaveUp, NodeTaken) as error:
            chosen = physical.shape == "fused" and self._work.options.shape == "auto"
            if not (chosen and isinstance(error.__cause__ or error, OutOfMemory | NodeTaken)):
                raise
        self._work.forget(physical)
        settings = replace(self._work.settings(), shape="staged")
        staged = plan_stages(self._work.optimized(plan), settings)
        return staged, self._work.run(_named(staged, commit_id)).only

    def _rows_of(
        self, plan: n.Node, physical: Physical, wanted: pa.Schema
    ) -> Iterator[pa.RecordBatch]:
        physical, result = self._run(plan, physical)
        try:
            for batch in self._result_batches(physical, result):
                yield batch if batch.schema.types == wanted.types else batch.cast(wanted)
        finally:
            self._work.forget(physical)

    def _result_batches(self, physical: Physical, result: StageOutcome) -> Iterator[pa.RecordBatch]:
        parts = result.parts
        if parts and parts[0].path.startswith("memory:"):
            yield from self._work.worker.memory.pop(parts[0].path).to_batches()
            return
        stage = physical.stages[-1]
        rows = PartRows(stage.id, stage.schema, parts=parts)
        schema = self._work.worker.engine.arrow_schema(stage.schema)
        worker = self._work.worker
        yield from read_part_rows(rows, schema, worker.ranges, elsewhere=worker.elsewhere)

    def count(self, plan: n.Node) -> int:
        """Rows, without keeping any."""
        self._measure(self._work.optimized(plan))
        settings = self._work.settings()
        while isinstance(plan, _PLACES_ROWS):  # It changes no number of rows.
            plan = plan.input
        number = build.typed({"n": "BIGINT"}, "count()", self.dialect)
        if why_staged(self._work.optimized(plan), settings) is None:
            query = parse.query("SELECT count(*) AS n FROM __frame", "count()", self.dialect)
            counted: n.Node = n.GlobalSql(("__frame",), (plan,), query, number)
        else:
            query = parse.query("SELECT count(*) AS n FROM __in0", "count()", self.dialect)
            counted = n.SqlEngine((plan,), query, number)
        return sum(row["n"] for row in self.table(counted).to_pylist())

    def keep(self, plan: n.Node) -> n.Node:
        """Compute, and keep the rows of each partition: in memory while they are small."""
        self._measure(self._work.optimized(plan))
        settings = self._work.settings()
        if partitioning(plan).n not in (None, 1):  # Its partitions may be observed later.
            settings = replace(settings, shape="staged")
        physical = plan_stages(self._work.optimized(plan), settings)
        physical, result = self._run(plan, physical)
        most = min(KEPT_IN_MEMORY_BYTES, self._work.options.memory_limit_bytes // 4)
        kept = Keeper(self.arrow_schema(plan.schema), self._kept_folder(), most)
        try:
            if result.parts and result.parts[0].path.startswith("memory:"):
                kept.add(self._work.worker.memory.pop(result.parts[0].path).to_batches())
            else:
                stage = physical.stages[-1]
                schema = self._work.worker.engine.arrow_schema(stage.schema)
                for i in range(len(result.parts)):
                    rows = PartRows(stage.id, stage.schema, first_part=i, n_parts=1,
                                    parts=result.parts)  # fmt: skip
                    kept.add(read_part_rows(rows, schema, self._work.worker.ranges))
        except BaseException:
            kept.discard()
            raise
        finally:
            self._work.forget(physical)
        splits, files = kept.splits()
        scan = Scan("memory" if not files else "arrow", plan.schema)
        rows_ = ArrowRows(kept.table()) if not files else None
        return n.Kept(plan, n.DataSource(scan, files, rows_), splits)

    def _kept_folder(self) -> str:
        return os.path.join(
            os.path.dirname(self._work.worker_options.parts),
            "kept",
            self._work.id,
            secrets.token_hex(8),
        )

    def trial(self, plan: n.Node, call: n.PythonCall, where: str) -> Schema:
        """The columns that a Python function gives, from at most 100 rows of its input."""
        from millpond.engine import python
        from millpond.engine.values import FunctionError

        rows = self.table(n.Limit(plan, 100))
        try:
            found = python.try_function(call, rows, where)
        except FunctionError as error:
            raise TaskError(
                f"{where}: {error}", stage=0, partition=0, inputs="the first rows of its input",
                traceback=error.traceback,
            ) from error.cause  # fmt: skip
        if not found.schema.names:
            raise SchemaMismatch(
                f"{where}: it gives tables without columns. Give at least one; filter() drops rows."
            )
        given = self._work.worker.engine.arrow_schema(plain(plan.schema))
        exact = call.kind not in ("row", "flat") and call.format == "arrow"
        schema = found.schema if exact else python.widened(found.schema, given)
        return parse.check(lambda: self._named_by_duckdb(schema), where)

    def _stages(self, plan: n.Node) -> Physical:
        self._measure(self._work.optimized(plan))
        return self._work.stages(plan)

    def _measure(self, plan: n.Node) -> None:
        """Find out which functions of batches are light enough to be called in this process.

        What crosses to another process and back costs some nanoseconds a row; who costs
        less is called here, on the stream of one statement. Measured in a worker process:
        a function that crashes, or takes long, does so there. Only where many rows follow.
        """
        work = self._work
        for at in to_measure(plan, work.settings()):
            if at.call not in work.light:
                rows = first_rows(at.input, 2 * at.call.batch_size)
                watch = timed(at.call, self.arrow_schema(at.schema))
                watched = n.PythonBatches(rows, watch, Schema.of([("ns", "DOUBLE")]))
                physical = work.stages(watched)
                found = self._rows_of(watched, physical, self.arrow_schema(watched.schema))
                took = [ns for batch in found for ns in batch.column(0).to_pylist()]
                others = work.options.threads - 1
                light = bool(took) and None not in took and min(took) * others <= TRAVEL_NS
                work.light[at.call] = light
            if not work.light[at.call]:
                return

    # ---- files -----------------------------------------------------------------------

    def write(self, plan: n.DataSink) -> WriteResult:
        """Compute, and publish the files when all of them are complete."""
        physical = self._stages(plan)
        return self.write_to(self._target(plan, physical), plan, physical)

    def write_delta(
        self, plan: n.Node, uri: str, mode: str, keys: str | Sequence[str] | None,
        options: dict[str, Any],
    ) -> WriteResult:  # fmt: skip
        return self._write_table(self._tables.delta(plan, uri, mode, keys, options))

    def write_iceberg(
        self, plan: n.Node, table: str, mode: str, keys: str | Sequence[str] | None,
        catalog: Catalog, options: dict[str, Any],
    ) -> WriteResult:  # fmt: skip
        return self._write_table(self._tables.iceberg(plan, table, mode, keys, catalog, options))

    def _write_table(self, target: TableTarget) -> WriteResult:
        return self.write_to(target, target.sink, self._stages(target.sink))

    def write_to(self, target: Target, plan: n.DataSink, physical: Physical) -> WriteResult:
        """Compute `physical`, the stages of `plan`, and commit its files to `target`."""
        if (done := target.complete()) is not None:
            self._work.clear_after_the_dead(plan.path)
            return done
        target.check()
        storage = self._work.storage(plan.path)
        if (folder := storage.local_path(plan.path)) is not None:
            self._work.place().check_shared(folder, f"the target {plan.path!r}")
        self._work.announce_target(plan.path)
        physical, result = self._run(plan, physical, target.commit_id)
        made = target.commit(result.files)
        self._work.clear_after_the_dead(plan.path)
        self._work.emit(Published(len(result.files), result.rows, result.size_bytes))
        self._work.forget(physical)
        return made

    def _target(self, plan: n.DataSink, physical: Physical) -> Target:
        storage, receipts = self._work.storage(plan.path), self._work.receipts()
        # Only what a data_root remembers is looked for: elsewhere a script that is run
        # twice is meant to write twice.
        fingerprint = physical.stages[-1].fingerprint if receipts is not None else ""
        if not plan.name:
            return FileTarget(storage, plan, receipts, fingerprint)
        key, commit_id = "", new_commit_id()
        if fingerprint:
            # The second of two equal writes of one script is not the first one done again.
            key = digest(fingerprint, plan.path, plan.mode)
            self._writes[key] += 1
            commit_id = digest(key, self._writes[key])[:16]
        if plan.format == "dataset":
            from millpond.dataset_target import DatasetTarget

            return DatasetTarget(storage, plan, self.arrow_schema(plan.schema), commit_id)
        return FolderTarget(storage, plan, cast(Mode, plan.mode), key, commit_id)

    # ---- looking ---------------------------------------------------------------------

    def explain(self, plan: n.Node, *, optimized: bool, physical: bool, analyze: bool) -> str:
        """The plan as text; with `physical` its stages, with `analyze` what they did in a run."""
        better = self._work.optimized(plan) if optimized else plan
        text = explain(better)
        stages = plan_stages(better, self._work.settings())
        if physical or analyze:
            text += "\n\n" + explain_stages(stages)
        if analyze:
            ran = Measured()
            with self._work.watched(ran):
                self.write(plan) if isinstance(plan, n.DataSink) else self._discarded(stages)
            text += "\n\n" + ran.text()
        return text

    def _discarded(self, physical: Physical) -> None:
        """Run for the sake of running."""
        try:
            result = self._work.run(physical).only
            for part in result.parts:
                self._work.worker.memory.pop(part.path, None)
        finally:
            self._work.forget(physical)

    def partitions(self, plan: n.Node) -> int:
        physical = self._work.stages(plan)
        last = physical.stages[-1]
        done: dict[int, Done] = {}
        for stage in physical.stages:
            count = n_tasks(stage, done)
            outs = getattr(stage.output, "n", 1)
            done[stage.id] = Done(count, outs, stage.schema, (0,) * count, ("",) * count)
        return done[last.id].n_tasks


def _named(physical: Physical, commit_id: str) -> Physical:
    """The stages, with the id of the commit in the names of the files that they write."""
    *before, last = physical.stages
    if not commit_id or not isinstance(last.output, ToFile):
        return physical
    output = replace(last.output, name=marked(last.output.name, commit_id))
    return replace(physical, stages=(*before, replace(last, output=output)))
