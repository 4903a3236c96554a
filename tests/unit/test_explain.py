"""explain(): the plan, the stages, the reason of the shape, and what a run did."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from millpond.options import options
from millpond.session import Session


@pytest.fixture
def sp() -> Iterator[Session]:
    with Session(options(threads=2)) as session:
        yield session


def frame(sp: Session) -> Any:
    return sp.from_items([{"k": i % 3, "a": i} for i in range(30)])


def test_as_written_and_optimised(sp: Session) -> None:
    spread = frame(sp).repartition(4, hash_by="k").filter("a > 3").map("k")

    assert spread.explain(optimized=False).splitlines()[1].strip() == "Filter a > 3"
    assert spread.explain().splitlines()[1].strip() == "HashPartition 4 by k"


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda sp, f: f.sort("a"), "fused: one machine, and nothing observes partitions"),
        (
            lambda sp, f: f.map(lambda row: row),
            "<lambda> is a Python function",
        ),
        (lambda sp, f: sp.partial_sql("FROM {0}", f), "staged: partial_sql observes partitions"),
        (lambda sp, f: f.repartition(2).partial_sort("a"), "staged: partial_sort observes"),
        (lambda sp, f: f.repartition(2, by="k"), "staged: partition numbers are given"),
    ],
)
def test_the_shape_has_a_reason(sp: Session, build: Any, reason: str) -> None:
    text = build(sp, frame(sp)).explain(physical=True)

    assert reason in text


def test_what_runs_whole_is_said(sp: Session) -> None:
    with Session(options(shape="staged", threads=2)) as staged:
        rows = frame(staged).repartition(3, by_rows=True)
        text = staged.sql("SELECT count(*) AS n FROM f", f=rows).explain(physical=True)

    assert "sql (whole, on one task)" in text


def test_analyze_runs_and_tells_rows_and_tasks(sp: Session) -> None:
    spread = frame(sp).repartition(4, hash_by="k")
    grouped = sp.partial_sql("SELECT k, count(*) AS n FROM {0} GROUP BY k", spread)

    last = grouped.explain(analyze=True).splitlines()[-1]

    assert "4 tasks, 30 rows read, 3 rows" in last


def test_analyze_says_nothing_of_rows_that_nobody_counted(sp: Session, tmp_path: Path) -> None:
    path = frame(sp).write_parquet(tmp_path / "x.parquet").files[0]

    last = sp.read_parquet(path).filter("k = 0").explain(analyze=True).splitlines()[-1]

    assert "1 tasks, " in last
    assert "rows read" not in last


def test_rows_that_lie_together_do_not_move_for_a_join() -> None:
    with Session(options(shape="staged", threads=2)) as staged:
        spread = frame(staged).repartition(3, hash_by="k")
        other = frame(staged).map("k, a AS b").repartition(3, hash_by="k")
        joined = spread.join(other, "k")

        assert joined.explain(physical=True).count("hash by k") == 2
        assert joined.count() == 300
        assert spread.join(other.map("k * 1 AS k, b"), "k").count() == 300


def test_the_first_rows_of_a_sort_move_no_others() -> None:
    with Session(options(shape="staged", threads=2)) as staged:
        first = frame(staged).repartition(3, by_rows=True).sort("k desc").limit(4)

        assert "range" not in first.explain(physical=True)
        assert [row["a"] for row in first.take_all()] == [2, 5, 8, 11]
