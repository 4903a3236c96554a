"""What the user holds: a lazy frame. Each method is one call of `plan.build`.

A frame is a plan and the runner of its session. Every method here returns a new frame;
names and types are checked at the call. What reads rows (`count`, `take`, `to_…`,
`write_…`, `compute`) is in `results`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from millpond.errors import OptionError
from millpond.expr import Dialect
from millpond.options import size
from millpond.plan import build, joins, sinks
from millpond.plan import nodes as n
from millpond.plan.functions import python_call
from millpond.plan.udfs import udf_values
from millpond.results import Results, checked_format

if TYPE_CHECKING:
    from millpond.runner import Columns

Function = Callable[..., Any]


class DataFrame(Results):
    """Rows to come. Made by a session; see `millpond.init`."""

    def _new(self, plan: n.Node | Callable[[], n.Node]) -> DataFrame:
        return DataFrame(self._runner, plan)

    # ---- row by row ------------------------------------------------------------------

    def map(
        self, sql_or_fn: str | Function, *, schema: Columns | None = None,
        udfs: Sequence[Function] | None = None, key: str | None = None,
        deterministic: bool = True,
    ) -> DataFrame:  # fmt: skip
        """Each row to one row: an SQL select list, or a function `dict -> dict`.

        A function's columns are learnt from up to 100 rows unless `schema` (name to DuckDB
        type, or a `pyarrow.Schema`) says them. Row order is kept. `udfs` are Python functions
        that the SQL calls by name, typed by annotations; they get Arrow arrays, or single
        values if written so.

        >>> sp.from_items([1, 2, 3]).map("item * 10 AS tens").take_all()
        [{'tens': 10}, {'tens': 20}, {'tens': 30}]
        """
        if isinstance(sql_or_fn, str):
            where = _where("map", sql_or_fn)
            called = udf_values(udfs, where, self._d, deterministic=deterministic)
            return self._new(build.project(self.plan, sql_or_fn, where, self._d, udfs=called))
        return self._python("map", sql_or_fn, "row", schema, key, deterministic)

    def flat_map(
        self, sql_or_fn: str | Function, *, schema: Columns | None = None,
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
        where = _where("select", ", ".join(map(str, columns_or_sql)))
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
        where = f"rename({names!r})"
        if not isinstance(names, Mapping):
            raise OptionError(f'{where}: needs a dict, such as {{"old": "new"}}.')
        return self._new(build.rename(self.plan, names, where, self._d))

    def drop(self, *names: str) -> DataFrame:
        """All columns but these.

        >>> sp.from_items([{"a": 1, "b": 2}]).drop("a").columns
        ['b']
        """
        return self._new(build.drop(self.plan, names, _where("drop", ", ".join(map(str, names)))))

    # ---- functions of several rows ---------------------------------------------------

    def map_batches(
        self, fn_or_class: Function, *, batch_size: int = 122_880,
        schema: Columns | None = None, format: str = "arrow", cpus: float = 1,
        gpus: float = 0, memory: str | int | None = None, key: str | None = None,
        deterministic: bool = True,
    ) -> DataFrame:  # fmt: skip
        """A function of batches of `batch_size` rows; a class is built once per worker.

        `format` is what it is called with: "arrow" (a table), "pandas", "numpy" (a dict of
        arrays). It may give any of these. Without `schema` it is tried on up to 100 rows.

        `cpus`, `gpus` and `memory` ("4GB" or bytes) are what a task needs while it calls the
        function: no more of them run at once than a node, or `memory_limit`, has room for.
        """
        build.whole(batch_size, "map_batches()", "batch_size", least=1)
        needs = self._needs("map_batches()", format, cpus, gpus, memory)
        rest = needs | {"batch_size": batch_size}
        return self._python("map_batches", fn_or_class, "batch", schema, key, deterministic, **rest)

    def map_partitions(
        self, fn: Function, *, schema: Columns | None = None, format: str = "arrow",
        cpus: float = 1, gpus: float = 0, memory: str | int | None = None,
        key: str | None = None, deterministic: bool = True,
    ) -> DataFrame:  # fmt: skip
        """A function or class of whole partitions, held in memory; else as `map_batches`."""
        method = "map_partitions"
        rest = self._needs(f"{method}()", format, cpus, gpus, memory)
        return self._python(method, fn, "partition", schema, key, deterministic, **rest)

    def map_groups(
        self, by: str | Sequence[str], fn: Function, *, schema: Columns | None = None,
        format: str = "arrow", cpus: float = 1, gpus: float = 0,
        memory: str | int | None = None, key: str | None = None, deterministic: bool = True,
    ) -> DataFrame:  # fmt: skip
        """A function or class of all rows that share a key, which meet; else as `map_batches`."""
        names = tuple(f.name for f in self.plan.schema.named(by, f"map_groups({by!r})"))
        needs = self._needs("map_groups()", format, cpus, gpus, memory)
        rest = needs | {"group_keys": names}
        return self._python("map_groups", fn, "group", schema, key, deterministic, **rest)

    def _needs(
        self, where: str, format: str, cpus: float, gpus: float, memory: str | int | None
    ) -> dict[str, Any]:
        memory_bytes = None if memory is None else size(f"{where}: memory", memory)
        self._runner.check_resources(cpus, gpus, memory_bytes, where)
        needs = {"cpus": float(cpus), "gpus": float(gpus), "memory_bytes": memory_bytes}
        return {"format": checked_format(format, where)} | needs

    def _python(
        self, method: str, fn: Function, kind: str, schema: Columns | None,
        key: str | None, deterministic: bool, **rest: Any,
    ) -> DataFrame:  # fmt: skip
        where = f"{method}({getattr(fn, '__name__', type(fn).__name__)})"
        call = python_call(fn, kind, where, key=key, deterministic=deterministic, **rest)
        if schema is not None:
            given = self._runner.declared(schema, where)
            return self._new(build.python(self.plan, call, given, where, self._d))

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
        return self._new(n.RandomPartition(self.plan, self._seed(seed, "random_shuffle()")))

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
        where = f"sample({fraction!r})"
        return self._new(build.sample(self.plan, fraction, self._seed(seed, where), where))

    def _seed(self, seed: int | None, where: str) -> int:
        return build.seed_of(self._runner.seed if seed is None else seed, where)

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
        right = plan_of(other, where)
        return self._new(joins.join(self.plan, right, on, how, suffix, where, self._d))

    def union(self, *others: DataFrame) -> DataFrame:
        """All rows of all frames, matched by name, types promoted; duplicates stay.

        >>> sp.from_items([1]).union(sp.from_items([2.5])).take_all()
        [{'item': 1.0}, {'item': 2.5}]
        """
        inputs = [self.plan, *(plan_of(other, "union()") for other in others)]
        return self._new(build.union(inputs, "union()", self._d))

    def distinct(self, *columns: str) -> DataFrame:
        """Rows without duplicates; with columns, the first row of each in input order.

        >>> sp.from_items([1, 1, 2]).distinct().count()
        2
        """
        where = _where("distinct", ", ".join(map(str, columns)))
        return self._new(build.distinct(self.plan, columns, where))

    def group_by(self, *keys: str) -> Grouped:
        """Groups of equal keys, over the whole frame; NULL is a key like any other.

        >>> f = sp.from_items([{"k": "a", "x": 1}, {"k": "a", "x": 2}])
        >>> f.group_by("k").agg("sum(x)::INTEGER AS s").take_all()
        [{'k': 'a', 's': 3}]
        """
        for key in keys:
            self.plan.schema.field(key, _where("group_by", ", ".join(map(str, keys))))
        return Grouped(self, keys)

    # ---- files -----------------------------------------------------------------------

    def write_parquet_lazy(
        self, path: str | os.PathLike[str], *, mode: str = "error",
        partition_by: str | Sequence[str] | None = None, **parquet_options: Any,
    ) -> DataFrame:  # fmt: skip
        """A frame that writes when it is computed (`sp.wait(a, b)`); else as `write_parquet`."""
        plan = sinks.sink(
            self.plan, "parquet", path, mode, parquet_options, partition_by, explain=self._d.explain
        )
        return self._new(plan)

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
        where = _where("agg", ", ".join(map(str, aggregates)))
        runner = self.frame._runner
        plan = build.aggregate(self.frame.plan, self.keys, aggregates, where, runner.dialect)
        return DataFrame(runner, plan)


def plan_of(frame: DataFrame, where: str) -> n.Node:
    """The plan of what must be a frame."""
    if not isinstance(frame, DataFrame):
        raise OptionError(
            f"{where}: needs a frame, not {type(frame).__name__}. from_items(), from_arrow() and "
            "from_pandas() make one of rows that you have."
        )
    return frame.plan


def _where(method: str, given: object) -> str:
    text = given if isinstance(given, str) else repr(given)
    text = " ".join(text.split())
    return f"{method}({text if len(text) <= 60 else text[:57] + '…'})"
