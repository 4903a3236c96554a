"""Joins by hash, and with a small side that goes to every task, give plain DuckDB's rows."""

from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest

from millpond.options import options
from millpond.session import Session
from tests.oracle.harness import Frames, assert_same, oracle_rows

pytestmark = pytest.mark.slow
HOWS = ("inner", "left", "right", "full", "semi", "anti", "cross")
CONDITIONS = ("k", "l.k < r.k AND l.id > 100", "l.x = r.k")
SELECT = "l.id, l.k"


def sql(how: str, on: str) -> str:
    condition = "l.k = r.k" if on == "k" else on
    kind = {"full": "FULL OUTER", "cross": "CROSS"}.get(how, how.upper())
    both = on == "k" and how in ("right", "full")
    items = "l.id, coalesce(l.k, r.k) AS k" if both else SELECT
    right = "" if how in ("semi", "anti") else ", r.letter"
    tail = "" if how == "cross" else f"ON {condition}"
    return f"SELECT {items}{right} FROM t AS l {kind} JOIN v AS r {tail}"


@pytest.mark.parametrize("on", CONDITIONS)
@pytest.mark.parametrize("how", HOWS)
def test_a_small_side_goes_to_every_task(
    how: str, on: str, folder: Path, tables: Callable[[Session], Frames],
    oracle: duckdb.DuckDBPyConnection,
) -> None:  # fmt: skip
    small = (folder / "v").glob("*.parquet")
    split_bytes = 8 * sum(path.stat().st_size for path in small)
    with Session(options(shape="staged", split_bytes=split_bytes, threads=2, verify="rows",
                         progress=False)) as sp:  # fmt: skip
        f = tables(sp)
        left = f["t"].select("id", "k", "x").repartition(5)
        joined = left.join(f["v"], None if how == "cross" else on, how)
        columns = ["id", "k"] if how in ("semi", "anti") else ["id", "k", "letter"]
        query = sql(how, on)

        rows = joined.select(*columns).take_all()

        assert ("right side to all" in joined.explain(physical=True)) == (
            how in ("inner", "left", "semi", "anti", "cross")
        )
    assert_same(rows, oracle_rows(query, columns, oracle), ordered=False)


def test_rows_that_were_grouped_by_a_key_do_not_move_for_it_again(
    tables: Callable[[Session], Frames], oracle: duckdb.DuckDBPyConnection
) -> None:
    with Session(options(shape="staged", split_bytes=1, threads=2, progress=False)) as sp:
        t = tables(sp)["t"].repartition(4)
        twice = (
            t.group_by("k", "flag").agg("count(*) AS n")
            .filter("n > 1").group_by("k", "flag", "n").agg("max(n) AS m").distinct("k", "flag")
        )  # fmt: skip
        both = t.group_by("k").agg("sum(id) AS s").join(t.group_by("k").agg("max(id) AS m"), "k")

        assert twice.explain(physical=True).count("hash by") == 1
        assert both.explain(physical=True).count("hash by") == 2
        rows = both.take_all()
        assert len(twice.take_all()) == len({(r["k"], r["flag"]) for r in twice.take_all()})

    query = "SELECT k, sum(id) AS s, max(id) AS m FROM t WHERE k IS NOT NULL GROUP BY k"
    assert_same(rows, oracle_rows(query, ["k", "s", "m"], oracle), ordered=False)


def test_small_partitions_that_nobody_counts_are_read_by_one_task(
    tables: Callable[[Session], Frames],
) -> None:
    planned: list[int] = []
    with Session(options(shape="staged", split_bytes=1, threads=2, progress=False)) as sp:
        sp.listen(lambda event: planned.append(event.tasks) if hasattr(event, "tasks") else None)
        t = tables(sp)["t"]
        t.group_by("k").agg("count(*) AS n").take_all()
        t.sort("s").take_all()
        merged = list(planned)
        planned.clear()
        t.repartition(7, hash_by="k").map("k").take_all()

    assert [n for n in merged if n > 1] == [8, 8, 8]  # Row groups: each of them a task.
    assert planned[-1] == 7
