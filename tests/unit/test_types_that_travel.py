"""Types that are hard to carry: nested slices, huge integers, intervals, maps, two zeros."""

import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

import millpond
from millpond.errors import TaskError
from millpond.options import options
from millpond.session import Session

pytestmark = pytest.mark.slow

NESTED = "{'a': i, 'd': {'e': [i], 'f': {'g': i::VARCHAR}}}"


@pytest.fixture(scope="module", params=["fused", "staged"])
def sp(request: pytest.FixtureRequest) -> Iterator[Session]:
    with Session(options(shape=request.param, split_bytes=400, threads=2, verify="rows")) as sp:
        yield sp


@pytest.mark.parametrize("column", [NESTED, f"CASE WHEN i % 3 = 0 THEN NULL ELSE {NESTED} END",
                                    "[{'x': i}]::STRUCT(x BIGINT)[1]"])  # fmt: skip
def test_structs_in_structs_travel_in_slices(sp: Session, tmp_path: Path, column: str) -> None:
    rows = sp.sql(f"SELECT i AS id, {column} AS v FROM range(11) r(i)")
    expected = rows.take_all()

    rows.repartition(2, by_rows=True).write_parquet(tmp_path / "out")
    moved = rows.repartition(3, by_rows=True).random_shuffle(seed=3).sort("id")

    assert sp.read_parquet(tmp_path / "out").sort("id").take_all() == expected
    assert moved.take_all() == expected
    assert sp.from_arrow(rows.to_arrow().slice(4)).map("id, v").take_all() == expected[4:]
    cut = rows.map_batches(lambda b: b.slice(2, 3), schema=rows.to_arrow().schema)
    assert cut.sort("id").take_all() == expected[2:5]


def test_both_zeros_are_one_group_of_a_function(sp: Session) -> None:
    rows = sp.sql(
        "SELECT CASE i % 3 WHEN 0 THEN 0.0 WHEN 1 THEN -0.0::DOUBLE ELSE 'nan' END::DOUBLE AS x, "
        "{'y': x} AS s FROM range(12) r(i)"
    )
    for key in ("x", "s"):
        groups = rows.map_groups(key, lambda g: pa.table({"n": [g.num_rows]}))
        assert sorted(row["n"] for row in groups.take_all()) == [4, 8]


@pytest.mark.parametrize("format", ["parquet", "arrow", "json"])
def test_huge_integers_are_written_digit_by_digit(sp: Session, tmp_path: Path, format: str) -> None:
    huge = "i::HUGEINT * 1000000000000000000000 + 1"
    rows = sp.sql(f"SELECT i, {huge} AS h, [{huge}] AS hs, i::UHUGEINT AS u FROM range(3) r(i)")

    getattr(rows.repartition(2, by_rows=True), f"write_{format}")(tmp_path / "out")

    if format == "json":
        written = "".join(path.read_text() for path in (tmp_path / "out").glob("part*"))
        assert '"h":2000000000000000000001' in written
        return
    back = getattr(sp, f"read_{format}")(tmp_path / "out")
    assert back.sort("i").take_all() == rows.take_all()
    assert back.schema.types == ("BIGINT", "DECIMAL(38,0)", "DECIMAL(38,0)[]", "DECIMAL(38,0)")


def test_arrow_files_hold_what_to_arrow_gives(sp: Session, tmp_path: Path) -> None:
    rows = sp.sql("SELECT '12:00:00+05:30'::TIMETZ AS t, '0101'::BIT AS b, uuid() IS NULL AS n")

    rows.write_arrow(tmp_path / "out")

    assert sp.read_arrow(tmp_path / "out").take_all() == rows.take_all()
    assert rows.take_all() == [{"t": "12:00:00+05:30", "b": "0101", "n": False}]


@pytest.mark.parametrize("format", ["pandas", "numpy"])
def test_intervals_and_maps_go_through_objects(sp: Session, format: str) -> None:
    rows = sp.sql("SELECT INTERVAL (i) MONTH AS v, MAP {i: 'a'} AS m FROM range(3) r(i)")
    schema = {"v": "INTERVAL", "m": "MAP(BIGINT, VARCHAR)"}

    same = rows.map_batches(lambda batch: batch, schema=schema, format=format)

    assert same.take_all() == rows.take_all()


def test_workers_find_a_millpond_that_only_the_scripts_path_knows(tmp_path: Path) -> None:
    script = tmp_path / "job.py"
    root = str(Path(millpond.__file__).parent.parent)
    script.write_text(
        textwrap.dedent(f"""
            import sys
            sys.path.insert(0, {root!r})
            import millpond

            with millpond.init(threads=1) as sp:
                print(sp.from_items([1]).map(lambda row: {{"n": row["item"] + 1}}).take_all())
        """)
    )
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env={"PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout == "[{'n': 2}]\n", done.stderr


def test_nanoseconds_go_through_row_functions(sp: Session) -> None:
    query = "SELECT '2024-01-01 00:00:00.000000001'::TIMESTAMP_NS AS v UNION ALL SELECT NULL"
    given = sp.sql(query)
    there = given.map(lambda row: {"v": row["v"]}, schema={"v": "TIMESTAMP_NS"})
    kept = there.filter(lambda row: row["v"] is not None).map("v::VARCHAR AS v")
    assert kept.take_all() == [{"v": "2024-01-01 00:00:00.000000001"}]
    assert there.count() == 2
    with pytest.raises(TaskError, match="its nanoseconds would be lost; TIMESTAMP_NS"):
        given.map(lambda row: {"v": row["v"]}, schema={"v": "TIMESTAMP"}).count()
