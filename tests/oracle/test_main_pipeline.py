"""The main pipeline gives plain DuckDB's rows in every place, at every partition count."""

import pytest

import millpond
from tests.support.sessions import Counted, oracle, tuples

PER_USER = (
    "SELECT user_id, kind, count(*) AS n, sum(price) AS spent FROM {0} GROUP BY user_id, kind"
)
ORACLE = """
SELECT user_id, kind, count(*) AS n, sum(price) AS spent
FROM (SELECT user_id, upper(kind) AS kind, price + 1 AS price FROM events WHERE id % 5 <> 0)
GROUP BY user_id, kind ORDER BY spent DESC NULLS LAST, user_id, kind
"""


def loud(row: dict) -> dict:
    return {"user_id": row["user_id"], "kind": row["kind"].upper(), "price": row["price"]}


def pipeline(sp: millpond.Session, path: str, n: int, *, python: bool) -> millpond.DataFrame:
    frame = sp.read_parquet(path).filter("id % 5 <> 0").map("user_id, kind, price + 1 AS price")
    frame = frame.map(loud if python else "user_id, upper(kind) AS kind, price")
    spread = frame.repartition(n, hash_by="user_id")
    return sp.partial_sql(PER_USER, spread).sort("spent desc, user_id, kind")


@pytest.mark.slow
@pytest.mark.parametrize("python", [False, True], ids=["sql", "python"])
@pytest.mark.parametrize("n", [1, 2, 7])
def test_staged_on_this_machine(events_path: str, n: int, python: bool) -> None:
    with Counted(shape="staged") as run:
        frame = pipeline(run.session, events_path, n, python=python)
        run.forget()  # A function is tried on a few rows, to learn its columns.
        assert tuples(frame) == oracle(ORACLE, events=events_path)
        source, *exchanges = [run.finished[stage] for stage in sorted(run.finished)]
        assert source >= 3, "every source has at least three tasks"
        assert exchanges[-1] == n, "the sort has as many tasks as the user asked for"


def test_fused_is_one_task(events_path: str) -> None:
    with Counted(shape="auto") as run:
        frame = pipeline(run.session, events_path, 1, python=False)
        assert tuples(frame) == oracle(ORACLE, events=events_path)
        assert run.tasks == 1


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 2, 7])
def test_files_come_in_order_and_one_per_partition(events_path: str, n: int, tmp_path) -> None:
    with Counted(shape="staged") as run:
        written = pipeline(run.session, events_path, n, python=False).write_parquet(
            str(tmp_path / "out")
        )
        rows = [oracle("FROM f", f=path) for path in written.files]
        expected = oracle(ORACLE, events=events_path)
        assert [row for file in rows for row in file] == expected
        assert (written.rows, len(written.files)) == (len(expected), n)
        files = sorted((tmp_path / "out").glob("*.parquet"))
        assert [p.name[:10] for p in files] == [f"part-{i:05d}" for i in range(n)]


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["auto", "staged"])
def test_zero_rows_go_all_the_way(events_path: str, shape: str, tmp_path) -> None:
    with Counted(shape=shape) as run:
        frame = run.session.read_parquet(events_path).filter("id < 0").repartition(3, hash_by="id")
        summed = run.session.partial_sql("SELECT id, count(*) AS n FROM {0} GROUP BY id", frame)
        assert summed.sort("n").take_all() == []
        assert summed.count() == 0
        written = summed.write_parquet(str(tmp_path / "none"))
        assert written.rows == 0
        assert run.session.read_parquet(str(tmp_path / "none")).columns == ["id", "n"]
