"""Keys of any type: hash, range, sort and group give the rows that plain DuckDB gives."""

import math
from typing import Any

import duckdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from millpond.options import options
from millpond.session import Session

KEYS = {
    "DOUBLE": ["nan", "-nan", "0.0", "-0.0", "inf", "-inf", "1e-300", "1.5", "-2"],
    "DECIMAL(38,3)": ["0", "-0.001", "12345678901234567890.125", "-3", "99.999"],
    "HUGEINT": ["0", "-1", "170141183460469231731687303715884105727", "18446744073709551616"],
    "DATE": ["infinity", "-infinity", "2020-01-01", "0044-03-15 (BC)", "1969-12-31"],
    "TIMESTAMP": ["infinity", "-infinity", "2020-01-01 00:00:00.000001", "1969-12-31 23:59:59"],
    "TIMESTAMPTZ": ["2020-01-01 00:00:00+02", "2019-12-31 22:00:00+00", "infinity"],
    "TIME": ["00:00:00", "23:59:59.999999", "12:00:00"],
    "INTERVAL": ["1 month", "30 days", "720 hours", "-1 day", "0 days"],
    "UUID": ["00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff",
             "80000000-0000-0000-0000-000000000000"],
    "BLOB": ["", "a", "a\\x00", "a\\x00b", "\\xFF\\xFF"],
    "VARCHAR": ["", "a", "A", "ä", "a\x01", "\U0001f600", "a" * 1500, "a" * 1500 + "b"],
    "ENUM('z', 'a', 'm')": ["z", "a", "m"],
    "BOOLEAN": ["true", "false"],
    "INTEGER[]": ["[]", "[1]", "[1, 2]", "[NULL]", "[2]"],
    "STRUCT(a INTEGER, b VARCHAR)": ["{'a': 1, 'b': x}", "{'a': 1, 'b': NULL}",
                                     "{'a': NULL, 'b': y}"],
    "STRUCT(v INTERVAL, b INTEGER)": ["{'v': 1 month, 'b': 1}", "{'v': 30 days, 'b': 0}",
                                      "{'v': 720 hours, 'b': 2}", "{'v': NULL, 'b': 1}"],
    "INTERVAL[]": ["[]", "[30 days, 1 day]", "[1 month]", "[720 hours]", "[NULL]", "[2 days]"],
}  # fmt: skip
DIRECTIONS = ["asc nulls last", "asc nulls first", "desc nulls last", "desc nulls first"]


def plain(value: Any) -> Any:
    """Comparable: all NaN are one, and both zeros."""
    if isinstance(value, float):
        return "nan" if math.isnan(value) else value + 0.0
    return repr(value)


def check(rows: list[int | None], kind: str, n: int, shape: str, direction: str) -> None:
    values = KEYS[kind]
    texts = [None if i is None else values[i % len(values)] for i in rows]
    base = duckdb.connect()
    base.execute("SET TimeZone = 'UTC'")
    base.execute("CREATE TABLE given (i INTEGER, t VARCHAR)")
    if texts:
        base.executemany("INSERT INTO given VALUES (?, ?)", list(enumerate(texts)))
    base.execute(f"CREATE TABLE typed AS SELECT i, t::{kind} AS k FROM given ORDER BY i")
    order = f"SELECT i FROM typed ORDER BY k {direction}, i"
    want = [i for (i,) in base.execute(order).fetchall()]
    groups = "SELECT count(*) AS n FROM typed GROUP BY k ORDER BY 1"
    counts = [count for (count,) in base.execute(groups).fetchall()]
    given_ = options(shape=shape, threads=2, split_bytes=64, verify="rows", progress=False)
    with Session(given_) as sp:
        told = [{"i": i, "t": text} for i, text in enumerate(texts)] or [{"i": -1, "t": None}]
        frame = sp.from_items(told).map(f"i::INTEGER AS i, t::VARCHAR::{kind} AS k")
        frame = (frame if texts else frame.filter("i >= 0")).repartition(n)
        ordered = frame.sort(f"k {direction}").select("i")
        assert [row["i"] for row in ordered.take_all()] == want
        hashed = frame.repartition(n, hash_by="k")
        assert sorted(row["i"] for row in hashed.select("i").take_all()) == sorted(want)
        # Equal keys are in one partition.
        apart = sp.partial_sql("SELECT count(*) AS n FROM {0} GROUP BY k", hashed)
        assert sorted(row["n"] for row in apart.take_all()) == counts
        grouped = frame.group_by("k").agg("count(*) AS n").select("n")
        assert sorted(row["n"] for row in grouped.take_all()) == counts


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize("shape", ["auto", "staged"])
def test_every_value_of_a_type(kind: str, shape: str) -> None:
    n = len(KEYS[kind])
    rows = [None, *range(n), None, *reversed(range(n))]
    check(rows, kind, 3, shape, "desc nulls first")


@pytest.mark.full
@pytest.mark.parametrize("kind", KEYS)
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    rows=st.lists(st.none() | st.integers(0, 20), max_size=12),
    n=st.sampled_from([1, 2, 7]),
    shape=st.sampled_from(["auto", "staged"]),
    direction=st.sampled_from(DIRECTIONS),
)
def test_any_rows_of_a_type(
    kind: str, rows: list[int | None], n: int, shape: str, direction: str
) -> None:
    check(rows, kind, n, shape, direction)


@pytest.mark.parametrize("n", [2, 7])
def test_nothing_but_null(n: int) -> None:
    check([None] * 5, "DOUBLE", n, "staged", "desc nulls last")


def test_more_partitions_than_rows() -> None:
    check([2, None, 1], "VARCHAR", 7, "staged", "asc nulls first")
