# ruff: noqa: E501 (a step and its SQL side by side)
"""Pipelines that nobody wrote: each is run in several shapes, and as plain SQL."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import duckdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from millpond.session import Session
from tests.oracle.harness import Frames, Shape, assert_same, described, oracle_rows

pytestmark = pytest.mark.slow

# Every frame has these columns, so that every step fits after every other.
START = {
    "t": "SELECT id, k::BIGINT AS k, x, s FROM t",
    "u": "SELECT id, k, w::DOUBLE AS x, name AS s FROM u",
    "e": "SELECT id, k::BIGINT AS k, x, s FROM e",
}
CONDITIONS = (
    "k > 1", "x > 2 OR k IS NULL", "s <> 'it''s'", "id % 3 = 1", "s LIKE '%u%'", "k IS DISTINCT FROM 2",
    "isnan(x)", "false",
)  # fmt: skip
COLUMNS = (
    "id, k + 1 AS k, x, s", "id * 2 AS id, k, x / 2 AS x, s", "id, id % 4 AS k, x, upper(s) AS s",
    "id, k, coalesce(x, 0) AS x, s || 'z' AS s", "id, -k AS k, x, NULL::VARCHAR AS s",
)  # fmt: skip
KEYS = ("k", "s", "x", "k, s")
PARTITIONS = (1, 2, 7)


@dataclass(frozen=True)
class Step:
    """One method call with its argument, and the SQL that does the same to the query `{q}`."""

    method: str
    argument: Any

    def apply(self, sp: Session, frame: Any, other: Any) -> Any:
        match self.method, self.argument:
            case "group", key:
                names = key.split(", ")
                grouped = frame.group_by(*names).agg("min(id) AS id", "max(x) AS x")
                rest = [c for c in ("k", "s") if c not in names and c not in grouped.columns]
                return _canonical(grouped, rest)
            case "distinct", key:
                return (
                    frame.select("k", "s").distinct().map("0::BIGINT AS id, k, 0.5::DOUBLE AS x, s")
                )
            case "join", (key, how):
                joined = frame.join(other, key, how)
                return joined if how in ("semi", "anti") else joined.select("id", "k", "x", "s")
            case "union", _:
                return frame.union(other)
            case "hash", (key, n):
                return frame.repartition(n, hash_by=key.split(", "))
            case "even", (by_rows, n):
                return frame.repartition(n, by_rows=by_rows)
            case "given", n:
                return frame.repartition(n, by=f"abs(coalesce(k, 0)) % {n}")
            case "partial", n:
                spread = frame.repartition(n, hash_by="k")
                sql = "SELECT min(id) AS id, k, max(x) AS x, max(s) AS s FROM {0} GROUP BY k"
                return sp.partial_sql(sql, spread)
            case "sql", _:
                return sp.sql("SELECT id, k, x, s FROM f WHERE k IS NOT NULL -- all", f=frame)
            case "top", n:
                return frame.sort("id desc, k, x, s").limit(n)
            case method, argument:
                return getattr(frame, method)(argument)

    def sql(self, q: str, other: str) -> str:
        match self.method, self.argument:
            case "filter", condition:
                return f"SELECT * FROM ({q}) WHERE {condition}"
            case "map", columns:
                return f"SELECT {columns} FROM ({q})"
            case "group", key:
                names = key.split(", ")
                cols = {"id": "min(id)", "k": "NULL::BIGINT", "x": "max(x)", "s": "NULL::VARCHAR"}
                cols |= {name: name for name in names}
                if "x" in names:
                    cols["x"] = "x"
                items = ", ".join(f"{sql} AS {name}" for name, sql in cols.items())
                return f"SELECT {items} FROM ({q}) GROUP BY {', '.join(names)}"
            case "distinct", _:
                return f"SELECT 0::BIGINT AS id, k, 0.5::DOUBLE AS x, s FROM (SELECT DISTINCT k, s FROM ({q}))"
            case "join", (key, how):
                if how in ("semi", "anti"):
                    return f"SELECT a.* FROM ({q}) a {how} JOIN ({other}) b ON a.{key} = b.{key}"
                both = f"coalesce(a.{key}, b.{key})" if how in ("right", "full") else f"a.{key}"
                cols = {c: f"a.{c}" for c in ("id", "k", "x", "s")} | {key: both}
                items = ", ".join(f"{sql} AS {name}" for name, sql in cols.items())
                return f"SELECT {items} FROM ({q}) a {how} JOIN ({other}) b ON a.{key} = b.{key}"
            case "union", _:
                return f"({q}) UNION ALL ({other})"
            case "partial", _:
                return f"SELECT min(id) AS id, k, max(x) AS x, max(s) AS s FROM ({q}) GROUP BY k"
            case "sql", _:
                return f"SELECT id, k, x, s FROM ({q}) WHERE k IS NOT NULL"
            case "top", n:
                return f"SELECT * FROM ({q}) ORDER BY id DESC, k, x, s LIMIT {n}"
        return q


def _canonical(frame: Any, missing: list[str]) -> Any:
    nulls = {"k": "NULL::BIGINT AS k", "s": "NULL::VARCHAR AS s"}
    return frame.map(", ".join(nulls[c] if c in missing else c for c in ("id", "k", "x", "s")))


STEPS = st.one_of(
    st.builds(Step, st.just("filter"), st.sampled_from(CONDITIONS)),
    st.builds(Step, st.just("map"), st.sampled_from(COLUMNS)),
    st.builds(Step, st.just("group"), st.sampled_from(("k", "s", "k, s"))),
    st.builds(Step, st.just("distinct"), st.just("")),
    st.builds(
        Step,
        st.just("join"),
        st.tuples(
            st.sampled_from(("id", "k", "s")),
            st.sampled_from(("inner", "left", "right", "full", "semi", "anti")),
        ),
    ),
    st.builds(Step, st.just("union"), st.just("")),
    st.builds(Step, st.just("hash"), st.tuples(st.sampled_from(KEYS), st.sampled_from(PARTITIONS))),
    st.builds(Step, st.just("even"), st.tuples(st.booleans(), st.sampled_from(PARTITIONS))),
    st.builds(Step, st.just("given"), st.sampled_from(PARTITIONS)),
    st.builds(Step, st.just("partial"), st.sampled_from(PARTITIONS)),
    st.builds(Step, st.just("sql"), st.just("")),
    st.builds(Step, st.just("sort"), st.sampled_from(("k", "s desc, id", "x nulls first"))),
    st.builds(Step, st.just("partial_sort"), st.sampled_from(("k", "x desc"))),
    st.builds(Step, st.just("random_shuffle"), st.integers(0, 3)),
    st.builds(Step, st.just("top"), st.sampled_from((0, 1, 40, 1_000))),
)
SHAPES = (Shape("staged", True, 0), Shape("staged", False, 0), Shape("auto", True, 0))


def run(names: tuple[str, str], steps: list[Step], opened: Any, tables: Any, oracle: Any) -> None:
    one, other = (START[name] for name in names)
    sql = one
    for step in steps:
        sql = step.sql(sql, other)
    if oracle.execute(f"SELECT count(*) FROM ({sql})").fetchone()[0] > 20_000:
        return  # Joins of joins; nothing new is learnt from more rows.
    for shape in SHAPES:
        sp = opened(shape)
        frames = tables(sp)
        frame, second = (
            sp.sql(START[name], **{name: frames[name]})
            if shape.shape == "auto"
            else _started(frames, name)
            for name in names
        )
        for step in steps:
            frame = step.apply(sp, frame, second)
        rows = frame.take_all()
        assert [(f.name, f.type) for f in frame.schema] == described(sql, oracle), shape
        assert_same(rows, oracle_rows(sql, frame.columns, oracle), ordered=False)
        assert frame.count() == len(rows), shape


def _started(frames: Frames, name: str) -> Any:
    columns = START[name].removeprefix("SELECT ").partition(" FROM ")[0]
    return frames[name].map(columns)


PIPELINES = (
    st.tuples(st.sampled_from("tue"), st.sampled_from("tue")),
    st.lists(STEPS, min_size=1, max_size=5),
)
QUIET = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@given(*PIPELINES)
@settings(max_examples=15, deadline=None, suppress_health_check=QUIET, derandomize=True)
def test_generated_pipelines(
    opened: Callable[[Shape], Session], tables: Callable[[Session], Frames],
    oracle: duckdb.DuckDBPyConnection, names: tuple[str, str], steps: list[Step],
) -> None:  # fmt: skip
    run(names, steps, opened, tables, oracle)


@pytest.mark.full
@given(*PIPELINES)
@settings(max_examples=300, deadline=None, suppress_health_check=QUIET)
def test_many_generated_pipelines(
    opened: Callable[[Shape], Session], tables: Callable[[Session], Frames],
    oracle: duckdb.DuckDBPyConnection, names: tuple[str, str], steps: list[Step],
) -> None:  # fmt: skip
    run(names, steps, opened, tables, oracle)
