"""Values that Python's own types do not have, and types that pandas does not have."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from millpond.errors import MillpondError, NotInPython
from millpond.options import options
from millpond.session import Session


@pytest.fixture(scope="module", params=["fused", "staged"])
def sp(request: pytest.FixtureRequest) -> Iterator[Session]:
    with Session(options(shape=request.param, threads=2)) as session:
        yield session


ODD = {
    "'infinity'::DATE": "DATE",
    "'-infinity'::TIMESTAMP": "TIMESTAMP",
    "'0044-03-15 (BC)'::DATE": "DATE",
    "'290000-01-01'::TIMESTAMPTZ": "TIMESTAMP WITH TIME ZONE",
    "['infinity'::DATE]": "DATE[]",
    "'24:00:00'::TIME": "TIME",
}


@pytest.mark.parametrize("sql", ODD)
def test_a_value_without_one_in_python_is_named(sp: Session, sql: str) -> None:
    frame = sp.sql(f"SELECT * FROM (VALUES (NULL), ({sql})) AS t(v)")

    said = r"column 'v' holds a value of type .* in row 1 that Python has not .*Cast it to VARCHAR"
    for ask in (frame.take_all, lambda: frame.take(2), frame.show, frame._repr_html_):
        with pytest.raises(NotInPython, match=said):
            ask()
    with pytest.raises(NotInPython, match=said):
        frame.map(lambda row: row, schema={"v": ODD[sql]}).to_arrow()
    assert frame.map("v::VARCHAR AS v").count() == frame.to_arrow().num_rows == 2


def test_the_end_of_a_day_for_numpy(sp: Session) -> None:
    times = sp.sql("SELECT '24:00:00'::TIME AS t")
    with pytest.raises(MillpondError, match="column 't' holds a value of type time64"):
        times.map_batches(lambda batch: batch, format="numpy", schema={"t": "TIME"}).to_arrow()
    with pytest.raises(NotInPython, match="column 't'"):
        list(times.iter_batches(1, format="numpy"))


def test_unions_that_are_written_are_read(sp: Session, tmp_path: Path) -> None:
    kind = "UNION(num INTEGER, str VARCHAR)"
    unions = sp.sql(f"SELECT v::{kind} AS u FROM (VALUES (2::{kind}), ('x'::{kind})) AS t(v)")
    unions.write_arrow(tmp_path / "arrow")
    unions.write_csv(tmp_path / "csv")

    assert sp.read_arrow(tmp_path / "arrow").take_all() == [{"u": 2}, {"u": "x"}]
    texts = [{"u": "2"}, {"u": "x"}]  # Of a text DuckDB makes a text, in a union that has one.
    assert sp.read_csv(tmp_path / "csv", {"u": kind}).take_all() == texts
    assert unions.filter("false").to_arrow().num_rows == 0


def test_infinite_dates_for_pandas(sp: Session) -> None:
    with pytest.raises(NotInPython, match="column 'd'"):
        sp.sql("SELECT 1 AS a, 'infinity'::DATE AS d").to_pandas()


def test_the_last_moment_of_a_day_is_none(sp: Session) -> None:
    rows = sp.sql("SELECT '23:59:59.999999'::TIME AS t, NULL::TIME AS n").take_all()

    assert [str(rows[0]["t"]), rows[0]["n"]] == ["23:59:59.999999", None]


@pytest.mark.parametrize("format", ["pandas", "numpy"])
def test_unions_are_objects_for_pandas_and_numpy(sp: Session, format: str) -> None:
    kind = "UNION(num INTEGER, str VARCHAR)"
    unions = sp.sql(f"SELECT v::{kind} AS u FROM (VALUES (2::{kind}), ('x'::{kind})) AS t(v)")

    def told(batch: Any) -> dict[str, list[str]]:
        return {"t": [repr(value) for value in batch["u"]]}

    given = unions.map_batches(told, schema={"t": "VARCHAR"}, format=format)
    assert given.take_all() == [{"t": "2"}, {"t": "'x'"}]
    assert list(unions.to_pandas()["u"]) == [2, "x"]


def test_unions_pass_through_functions_of_arrow(sp: Session) -> None:
    kind = "UNION(num INTEGER, str VARCHAR)"
    unions = sp.sql(f"SELECT v::{kind} AS u FROM (VALUES (2::{kind}), ('x'::{kind})) AS t(v)")
    same = unions.map_batches(lambda batch: batch)

    assert same.schema == unions.schema
    assert same.take_all() == [{"u": 2}, {"u": "x"}]
