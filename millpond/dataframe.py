"""What the user holds: a lazy frame. Each method is one call of `plan.build`.

A frame is a plan and the session that can run it. Every method returns a new frame;
names and types are checked at the call, rows are read by `count`, `take`, `to_…`,
`write_…` and `compute` only.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from millpond.errors import OptionError
from millpond.expr import Dialect
from millpond.lazy import extra
from millpond.options import size
from millpond.plan import build, joins, sinks
from millpond.plan import nodes as n
from millpond.plan.functions import python_call
from millpond.plan.partitioning import partitioning
from millpond.plan.udfs import udf_values
from millpond.schema import Schema

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    import pyarrow as pa

Function = Callable[..., Any]


class Runner(Protocol):
    """What a frame needs of its session."""

    @property
    def dialect(self) -> Dialect: ...
    @property
    def seed(self) -> int: ...
    def table(self, plan: n.Node) -> pa.Table: ...
    def batches(self, plan: n.Node) -> Iterator[pa.RecordBatch]: ...
    def count(self, plan: n.Node) -> int: ...
    def write(self, plan: n.DataSink) -> WriteResult: ...
    def keep(self, plan: n.Node) -> n.Node: ...
    def check_resources(self, cpus: float, gpus: float, where: str) -> None: ...
    def write_dataset(self, plan: n.Node, path: str, **layout: int | None) -> None: ...
    def arrow_schema(self, schema: Schema) -> pa.Schema: ...
    def explain(self, plan: n.Node, *, optimized: bool, physical: bool, analyze: bool) -> str: ...
    def partitions(self, plan: n.Node) -> int: ...
    def trial(self, plan: n.Node, call: n.PythonCall, where: str) -> Schema: ...


@dataclass(frozen=True, slots=True)
class WriteResult:
    """What a write made: files in order, rows and bytes in all."""

    files: tuple[str, ...]
    rows: int
    size_bytes: int


class DataFrame:
    """Rows to come. Made by a session; see `millpond.init`."""

    def __init__(self, runner: Runner, plan: n.Node | Callable[[], n.Node]) -> None:
        self._runner = runner
        self._given = plan
        self._kept: n.Node | None = None

    @property
    def plan(self) -> n.Node:
        """The logical plan. A Python function without `schema=` is tried on a few rows here."""
        if self._kept is not None:
            return self._kept
        if callable(self._given):
            self._given = self._given()
        return self._given

    def _new(self, plan: n.Node | Callable[[], n.Node]) -> DataFrame:
        return DataFrame(self._runner, plan)

    # ---- row by row ------------------------------------------------------------------

    def map(
        self, sql_or_fn: str | Function, *, schema: Mapping[str, str] | None = None,
        udfs: Sequence[Function] | None = None, key: str | None = None,
        deterministic: bool = True,
    ) -> DataFrame:  # fmt: skip
        """Each row to one row: an SQL select list, or a function `dict -> dict`.

        A function's columns are learnt from up to 100 rows unless `schema` (name to DuckDB
        type) says them. Row order is kept. `udfs` are Python functions that the SQL calls by
        name, typed by annotations; they get Arrow arrays, or single values if written so.

        >>> sp.from_items([1, 2, 3]).map("item * 10 AS tens").take_all()
        [{'tens': 10}, {'tens': 20}, {'tens': 30}]
        """
        if isinstance(sql_or_fn, str):
            where = _where("map", sql_or_fn)
            called = udf_values(udfs, where, self._d, deterministic=deterministic)
            return self._new(build.project(self.plan, sql_or_fn, where, self._d, udfs=called))
        return self._python("map", sql_or_fn, "row", schema, key, deterministic)

    def flat_map(
        self, sql_or_fn: str | Function, *, schema: Mapping[str, str] | None = None,
        udfs: Sequence[Function] | None = None, key: str | None = None,
        deterministic: bool = True,
    ) -> DataFrame:  # fmt: skip
        """Each row to any number of rows: a select list with `unnest`, or `dict -> list[dict]`.

        >>> sp.from_items([2]).flat_map("unnest(range(item)) AS i").take_all()
        [{'i': 0}, {'i': 1}]
        """
        if isinstance(sql_or_fn, str):
            where = _where("flat_map", sql_or_fn)
            called = udf_values(udfs, where, self._d, deterministic=deterministic)
            plan = build.project(self.plan, sql_or_fn, where, self._d, flat=True, udfs=called)
            return self._new(plan)
        return self._python("flat_map", sql_or_fn, "flat", schema, key, deterministic)

    def filter(
        self, sql_or_fn: str | Function, *, udfs: Sequence[Function] | None = None,
        key: str | None = None, deterministic: bool = True,
    ) -> DataFrame:  # fmt: skip
        """Rows for which the SQL condition, or the function `dict -> bool`, is true.

        >>> sp.from_items([1, 2, 3]).filter("item > 1").count()
        2
        """
        if isinstance(sql_or_fn, str):
            where = _where("filter", sql_or_fn)
            called = udf_values(udfs, where, self._d, deterministic=deterministic)
            return self._new(build.filtered(self.plan, sql_or_fn, where, self._d, called))
        call = python_call(sql_or_fn, "filter", "filter()", key=key, deterministic=deterministic)
        return self._new(n.PythonBatches(self.plan, call, self.schema))

    def select(self, *columns_or_sql: str) -> DataFrame:
        """Columns by name, or SQL select items.

        >>> sp.from_items([{"a": 1, "b": 2}]).select("b", "a + b AS c").take(1)
        [{'b': 2, 'c': 3}]
        """
        where = _where("select", ", ".join(columns_or_sql))
        return self._new(build.select(self.plan, columns_or_sql, where, self._d))

    def with_columns(self, **sql: str) -> DataFrame:
        """Add columns, or replace those of the same name, in place.

        >>> sp.from_items([1]).with_columns(twice="item * 2").take(1)
        [{'item': 1, 'twice': 2}]
        """
        where = _where("with_columns", ", ".join(sql))
        return self._new(build.with_columns(self.plan, sql, where, self._d))

    def rename(self, names: Mapping[str, str]) -> DataFrame:
        """Other names for some columns: `{"old": "new"}`.

        >>> sp.from_items([1]).rename({"item": "n"}).columns
        ['n']
        """
        return self._new(build.rename(self.plan, names, f"rename({dict(names)})", self._d))

    def drop(self, *names: str) -> DataFrame:
        """All columns but these.

        >>> sp.from_items([{"a": 1, "b": 2}]).drop("a").columns
        ['b']
        """
        return self._new(build.drop(self.plan, names, _where("drop", ", ".join(names)), self._d))

    # ---- functions of several rows ---------------------------------------------------

    def map_batches(
        self, fn_or_class: Function, *, batch_size: int = 122_880,
        schema: Mapping[str, str] | None = None, format: str = "arrow", cpus: float = 1,
        gpus: float = 0, key: str | None = None, deterministic: bool = True,
    ) -> DataFrame:  # fmt: skip
        """A function of batches of `batch_size` rows; a class is built once per worker.

        `format` is what it is called with: "arrow" (a table), "pandas", "numpy" (a dict of
        arrays). It may give any of these. Without `schema` it is tried on up to 100 rows.
        """
        build.whole(batch_size, "map_batches()", "batch_size", least=1)
        self._runner.check_resources(cpus, gpus, "map_batches()")
        rest = {"batch_size": batch_size, "format": _format(format, "map_batches()"),
                "cpus": float(cpus), "gpus": float(gpus)}  # fmt: skip
        return self._python("map_batches", fn_or_class, "batch", schema, key, deterministic, **rest)

    def map_partitions(
        self, fn: Function, *, schema: Mapping[str, str] | None = None, format: str = "arrow",
        key: str | None = None, deterministic: bool = True,
    ) -> DataFrame:  # fmt: skip
        """A function of each whole partition, which must fit in memory."""
        rest = {"format": _format(format, "map_partitions()")}
        return self._python("map_partitions", fn, "partition", schema, key, deterministic, **rest)

    def map_groups(
        self, by: str | Sequence[str], fn: Function, *, schema: Mapping[str, str] | None = None,
        format: str = "arrow", key: str | None = None, deterministic: bool = True,
    ) -> DataFrame:  # fmt: skip
        """A function of all rows that share a key; exchanges rows by key."""
        keys = [by] if isinstance(by, str) else list(by)
        names = tuple(self.plan.schema.field(k, f"map_groups({by!r})").name for k in keys)
        rest = {"format": _format(format, "map_groups()"), "group_keys": names}
        return self._python("map_groups", fn, "group", schema, key, deterministic, **rest)

    def _python(
        self, method: str, fn: Function, kind: str, schema: Mapping[str, str] | None,
        key: str | None, deterministic: bool, **rest: Any,
    ) -> DataFrame:  # fmt: skip
        where = f"{method}({getattr(fn, '__name__', type(fn).__name__)})"
        call = python_call(fn, kind, where, key=key, deterministic=deterministic, **rest)
        if schema is not None:
            return self._new(build.python(self.plan, call, schema, where, self._d))

        def tried() -> n.Node:
            return n.PythonBatches(self.plan, call, self._runner.trial(self.plan, call, where))

        return self._new(tried)

    # ---- partitions and order --------------------------------------------------------

    def repartition(
        self, n: int, *, hash_by: str | Sequence[str] | None = None, by: str | None = None,
        by_rows: bool = False,
    ) -> DataFrame:  # fmt: skip
        """Spread the rows over `n` partitions: even by files, or as one option says.

        `hash_by`: rows with equal keys meet in one partition, and order is lost. `by`: SQL
        that gives each row's partition, from 0. `by_rows`: sizes differ by at most one row,
        and order is kept. Reads and moves all rows.

        >>> sp.from_items(list(range(100))).repartition(8, hash_by="item").num_partitions
        8
        """
        where = f"repartition({n!r})"
        plan = build.repartition(
            self.plan, n, where, self._d, hash_by=hash_by, by=by, by_rows=by_rows
        )
        return self._new(plan)

    def random_shuffle(self, seed: int | None = None) -> DataFrame:
        """A uniform order over all rows: a function of `seed` and the input alone."""
        return self._new(n.RandomPartition(self.plan, self._runner.seed if seed is None else seed))

    def partial_sort(self, by: str | list[str]) -> DataFrame:
        """Sort inside each partition; `by` as in `sort`."""
        where = _where("partial_sort", by)
        return self._new(build.sort(self.plan, by, where, self._d, partial=True))

    def sort(self, by: str | list[str]) -> DataFrame:
        """Sort the whole frame: `"a"`, `"a desc nulls first"`, or a list; ties keep input order.

        NULLs come last unless said otherwise, as in DuckDB.

        >>> sp.from_items([3, 1, None, 2]).sort("item desc").take_all()
        [{'item': 3}, {'item': 2}, {'item': 1}, {'item': None}]
        """
        return self._new(build.sort(self.plan, by, _where("sort", by), self._d))

    def limit(self, n: int) -> DataFrame:
        """The first `n` rows: exactly `min(n, rows)` in all.

        >>> sp.from_items(list(range(10))).limit(3).count()
        3
        """
        return self._new(build.limit(self.plan, n, f"limit({n!r})"))

    def sample(self, fraction: float, seed: int | None = None) -> DataFrame:
        """Each row with probability `fraction`; the same rows for the same seed and input."""
        seed = self._runner.seed if seed is None else seed
        return self._new(build.sample(self.plan, fraction, seed, f"sample({fraction!r})"))

    # ---- sets, joins, groups ---------------------------------------------------------

    def join(
        self, other: DataFrame, on: str | Sequence[str] | None = None, how: str = "inner",
        suffix: str = "_right",
    ) -> DataFrame:  # fmt: skip
        """Join on names of both sides, or on SQL over `l.` and `r.`.

        `how`: inner, left, right, full, semi, anti, cross (no `on`). Named keys appear once;
        other names that clash get `suffix`.

        >>> a, b = sp.from_items([1, 2]), sp.from_items([2, 3])
        >>> a.join(b, "item").take_all()
        [{'item': 2}]
        """
        where = f"join(on={on!r}, how={how!r})"
        return self._new(joins.join(self.plan, other.plan, on, how, suffix, where, self._d))

    def union(self, *others: DataFrame) -> DataFrame:
        """All rows of all frames, matched by name, types promoted; duplicates stay.

        >>> sp.from_items([1]).union(sp.from_items([2.5])).take_all()
        [{'item': 1.0}, {'item': 2.5}]
        """
        inputs = [self.plan, *(other.plan for other in others)]
        return self._new(build.union(inputs, "union()", self._d))

    def distinct(self, *columns: str) -> DataFrame:
        """Rows without duplicates; with columns, the first row of each in input order.

        >>> sp.from_items([1, 1, 2]).distinct().count()
        2
        """
        return self._new(build.distinct(self.plan, columns, _where("distinct", ", ".join(columns))))

    def group_by(self, *keys: str) -> Grouped:
        """Groups of equal keys, over the whole frame; NULL is a key like any other.

        >>> f = sp.from_items([{"k": "a", "x": 1}, {"k": "a", "x": 2}])
        >>> f.group_by("k").agg("sum(x)::INTEGER AS s").take_all()
        [{'k': 'a', 's': 3}]
        """
        for key in keys:
            self.plan.schema.field(key, _where("group_by", ", ".join(keys)))
        return Grouped(self, keys)

    # ---- results ---------------------------------------------------------------------

    def count(self) -> int:
        """How many rows there are."""
        return self._runner.count(self.plan)

    def take(self, n: int) -> list[dict[str, Any]]:
        """The first `n` rows as dicts."""
        return self._rows(build.limit(self.plan, n, f"take({n!r})"))

    def take_all(self) -> list[dict[str, Any]]:
        """All rows as dicts."""
        return self._rows(self.plan)

    def _rows(self, plan: n.Node) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self._runner.table(plan).to_pylist()
        # Sums of whole numbers are HUGEINT, which Arrow only has as a decimal.
        whole = [f.name for f in plan.schema if f.type in ("HUGEINT", "UHUGEINT")]
        for row in rows if whole else ():
            row.update({name: int(row[name]) for name in whole if row[name] is not None})
        return rows

    def to_arrow(self) -> pa.Table:
        """All rows as an Arrow table."""
        return self._runner.table(self.plan)

    def to_pandas(self) -> pd.DataFrame:
        """All rows as a pandas frame. Needs the extra `pandas`."""
        extra("pandas", extra="pandas", what="to_pandas()")
        return self.to_arrow().to_pandas()

    def to_polars(self) -> pl.DataFrame:
        """All rows as a Polars frame. Needs the extra `polars`."""
        return extra("polars", extra="polars", what="to_polars()").from_arrow(self.to_arrow())

    def iter_batches(self, batch_size: int = 1024, format: str = "arrow") -> Iterator[Any]:
        """Batches of exactly `batch_size` rows, the last one shorter, in the given format."""
        from millpond.engine.python import as_format, sized

        build.whole(batch_size, "iter_batches()", "batch_size", least=1)
        _format(format, "iter_batches()")
        schema = self._runner.arrow_schema(self.schema)
        for batch in sized(self._runner.batches(self.plan), schema, batch_size):
            yield as_format(batch, format)

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self.to_arrow().__arrow_c_stream__(requested_schema)

    def compute(self) -> DataFrame:
        """Compute now and keep the rows; frames derived later reuse them."""
        if self._kept is None:
            self._kept = self._runner.keep(self.plan)
        return self

    def is_computed(self) -> bool:
        """Whether the rows are kept."""
        return self._kept is not None

    def recompute(self) -> DataFrame:
        """Forget kept rows and compute again."""
        self._kept = None
        return self.compute()

    # ---- files -----------------------------------------------------------------------

    def write_parquet(
        self, path: str | os.PathLike[str], *, mode: str = "error", **parquet_options: Any
    ) -> WriteResult:
        """Write Parquet, all or nothing: the folder `path` with one file per partition.

        A path that ends in `.parquet` is one file, unless a partition count was given.
        `mode`: "error" refuses a target that holds files, "overwrite" replaces them, "append"
        adds to them. Other options are those of DuckDB's COPY, such as `compression="zstd"`.
        """
        return self._write("parquet", path, mode, parquet_options)

    def write_csv(
        self, path: str | os.PathLike[str], *, mode: str = "error", **csv_options: Any
    ) -> WriteResult:
        """Write CSV with a header, as `write_parquet`; also `.csv.gz` and `.csv.zst`."""
        return self._write("csv", path, mode, {"header": True, **csv_options})

    def write_json(
        self, path: str | os.PathLike[str], *, mode: str = "error", **json_options: Any
    ) -> WriteResult:
        """Write one JSON object a line, as `write_parquet`; `array=True` for an array."""
        return self._write("json", path, mode, json_options)

    def write_arrow(
        self, path: str | os.PathLike[str], *, mode: str = "error", **arrow_options: Any
    ) -> WriteResult:
        """Write Arrow IPC files, as `write_parquet`; `compression="lz4"` or `"zstd"`."""
        return self._write("arrow", path, mode, arrow_options)

    def write_fixed(
        self, path: str | os.PathLike[str], fields: Mapping[str, int] | None = None, *,
        mode: str = "error",
    ) -> WriteResult:  # fmt: skip
        """Write binary records of fixed width, as `write_parquet`; `fields` as in `read_fixed`.

        Without `fields`, the widths are those that a `read_fixed` below has.
        """
        where = f"write_fixed({str(path)!r})"
        widths = fields or sinks.widths(self.plan, where)
        return self._write("fixed", path, mode, {"fields": json.dumps(dict(widths))})

    def write_dataset(
        self, path: str, *, rows_per_shard: int | None = None, shard_bytes: str | int = "256MB",
        align: int | None = None,
    ) -> None:  # fmt: skip
        """Write a training set for `millpond.open_dataset`: shards and one index, all or nothing.

        Shards hold about `shard_bytes`, or exactly `rows_per_shard` rows. `align` keeps
        samples from straddling chunks of a store. Rows come in partition order, through this
        process; `path` must be empty.
        """
        self._runner.write_dataset(
            self.plan, str(path), rows_per_shard=rows_per_shard,
            shard_bytes=size("shard_bytes", shard_bytes), align=align,
        )  # fmt: skip

    def write_parquet_lazy(
        self, path: str | os.PathLike[str], *, mode: str = "error", **parquet_options: Any
    ) -> DataFrame:
        """A frame that writes when it is computed (`sp.wait(a, b)`)."""
        return self._new(sinks.sink(self.plan, "parquet", path, mode, parquet_options))

    def _write(
        self, format: str, path: str | os.PathLike[str], mode: str, options: Mapping[str, Any]
    ) -> WriteResult:
        return self._runner.write(sinks.sink(self.plan, format, path, mode, options))

    # ---- looking ---------------------------------------------------------------------

    @property
    def schema(self) -> Schema:
        """Names and DuckDB types."""
        return self.plan.schema

    @property
    def columns(self) -> list[str]:
        """Names."""
        return list(self.plan.schema.names)

    @property
    def num_partitions(self) -> int:
        """How many partitions the rows come in, without running anything."""
        return partitioning(self.plan).n or self._runner.partitions(self.plan)

    def explain(
        self, *, optimized: bool = True, physical: bool = False, analyze: bool = False
    ) -> str:
        """The plan as text: as written, optimised, or as stages and tasks."""
        return self._runner.explain(
            self.plan, optimized=optimized, physical=physical, analyze=analyze
        )

    def show(self, n: int = 10) -> None:
        """Print the first `n` rows as a table."""
        from millpond.report.table import print_table

        print_table(self.take(n), self.columns)

    def __repr__(self) -> str:
        return f"DataFrame({self.schema})"

    def _repr_html_(self) -> str:
        from millpond.report.table import html_table

        return html_table(self.take(20), self.columns)

    @property
    def _d(self) -> Dialect:
        return self._runner.dialect


@dataclass(frozen=True, slots=True)
class Grouped:
    """Groups of a frame, waiting for `agg`."""

    frame: DataFrame
    keys: tuple[str, ...]

    def agg(self, *aggregates: str) -> DataFrame:
        """One row per group: the keys, then the aggregates, such as `"sum(x) AS s"`."""
        where = _where("agg", ", ".join(aggregates))
        runner = self.frame._runner
        plan = build.aggregate(self.frame.plan, self.keys, aggregates, where, runner.dialect)
        return DataFrame(runner, plan)


def _where(method: str, given: object) -> str:
    text = given if isinstance(given, str) else repr(given)
    text = " ".join(text.split())
    return f"{method}({text if len(text) <= 60 else text[:57] + '…'})"


def _format(format: str, where: str) -> str:
    if format not in ("arrow", "pandas", "numpy"):
        raise OptionError(f"{where}: format={format!r} is none of 'arrow', 'pandas', 'numpy'.")
    if format == "pandas":
        extra("pandas", extra="pandas", what=f"{where} with format='pandas'")
    return format
