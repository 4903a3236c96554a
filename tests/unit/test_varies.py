"""What may give other rows in a second run is neither reused by one, nor mixed from attempts."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import pytest

import millpond
from millpond.expr.varies import CLOCK, ORDER_SENSITIVE, VALUES, VOLATILE
from millpond.options import options
from millpond.session import Session

LISTED = VOLATILE | CLOCK | ORDER_SENSITIVE
# The same for every session of ours.
ALWAYS_ALIKE = {"current_database", "current_schema", "current_schemas", "in_search_path"}


@pytest.fixture(scope="module")
def sp() -> Iterator[Session]:
    with Session(options(shape="staged", threads=2, progress=False)) as session:
        yield session


@pytest.fixture(scope="module")
def rows(sp: Session) -> millpond.DataFrame:
    return sp.from_items(list(range(100))).repartition(3, hash_by="item")


def never_reused(frame: millpond.DataFrame) -> bool:
    return "never reused by another run" in frame.explain(physical=True)


VARYING = [
    "SELECT random() FROM {0}",
    "SELECT now() FROM {0}",
    "SELECT CURRENT_TIMESTAMP FROM {0}",
    "SELECT item FROM {0} WHERE DATE '2020-01-01' < current_date",
    "SELECT localtimestamp AS t FROM {0}",
    "SELECT age(TIMESTAMP '2020-01-01') FROM {0}",
    "SELECT txid_current() FROM {0}",
    "SELECT current_setting('threads') FROM {0}",
    "SELECT json_group_array(item) FROM {0}",
    "SELECT item FROM {0} LIMIT 3",
    "SELECT item FROM {0} LIMIT 3 OFFSET 1",
    "SELECT item FROM {0} LIMIT 3 PERCENT",
    "SELECT (SELECT item FROM {0} LIMIT 1) AS x",
    "SELECT DISTINCT ON (item % 2) item FROM {0}",
    "SELECT sum(item) OVER (ORDER BY item % 2 ROWS 3 PRECEDING) FROM {0}",
    "SELECT * FROM {0} USING SAMPLE 5 ROWS",
    "SELECT * FROM {0}, glob('/*')",
    "SELECT * FROM {0}, query('SELECT random()')",
    "SELECT * FROM {0}, read_csv('FILE')",
    "SELECT * FROM {0}, 'FILE'",
]
ALIKE = [
    "SELECT item + 1 AS x FROM {0}",
    "SELECT item FROM {0} ORDER BY item LIMIT 3",
    "SELECT DISTINCT item FROM {0}",
    "SELECT DISTINCT ON (item % 2) item FROM {0} ORDER BY item",
    "SELECT sum(item) OVER (ORDER BY item % 2) FROM {0}",
    "SELECT rank() OVER (ORDER BY item) FROM {0}",
    "SELECT item, r FROM {0}, range(3) AS t(r)",
    "SELECT unnest([item, 1]) AS x FROM {0}",
]


@pytest.mark.parametrize("query", VARYING)
def test_a_query_that_may_give_other_rows(
    sp: Session, rows: millpond.DataFrame, tmp_path: Path, query: str
) -> None:
    (tmp_path / "x.csv").write_text("a\n1\n")
    assert never_reused(sp.partial_sql(query.replace("FILE", str(tmp_path / "x.csv")), rows))


@pytest.mark.parametrize("query", ALIKE)
def test_a_query_that_gives_the_same_rows(
    sp: Session, rows: millpond.DataFrame, query: str
) -> None:
    assert not never_reused(sp.partial_sql(query, rows))


STEPS: dict[str, tuple[bool, Callable[[millpond.DataFrame], millpond.DataFrame]]] = {
    "map": (True, lambda f: f.map("current_date AS d")),
    "map by a column": (False, lambda f: f.rename({"item": "current_date"}).map("current_date")),
    "with_columns": (True, lambda f: f.with_columns(d="item + random()")),
    "flat_map": (True, lambda f: f.flat_map("unnest([random()]) AS x")),
    "filter": (True, lambda f: f.filter("current_date > DATE '2020-01-01'")),
    "sort": (True, lambda f: f.sort("random()")),
    "partial_sort": (True, lambda f: f.partial_sort("item, random()")),
    "few in order": (True, lambda f: f.sort("random()").limit(3)),
    "sort by a column": (False, lambda f: f.sort("item + 1")),
    "join": (True, lambda f: f.join(f, on="l.item = r.item AND random() < 0.5")),
    "join by place": (True, lambda f: f.join(f, on="l.item < r.item AND random() < 0.5")),
    "join by a column": (False, lambda f: f.join(f, on="l.item = r.item")),
    "group": (True, lambda f: f.group_by("item").agg("any_value(item) AS x")),
    "group all": (True, lambda f: f.group_by().agg("max(current_date + item::INT) AS x")),
    "group by a column": (False, lambda f: f.group_by("item").agg("max(item) AS x")),
    "given partitions": (True, lambda f: f.repartition(3, by="(random() * 2)::INT")),
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("shape", ["staged", "fused"])
def test_a_step_that_may_give_other_rows(shape: str, step: str) -> None:
    varies, made = STEPS[step]
    with Session(options(shape=shape, threads=2, progress=False)) as sp:
        rows = sp.from_items(list(range(100)))
        if shape == "staged":
            rows = rows.repartition(3, hash_by="item")
        assert never_reused(made(rows)) == varies


def test_words_that_are_values_are_taken_like_in_duckdb(rows: millpond.DataFrame) -> None:
    found = rows.map("current_date = today() AS same, current_schema AS s").distinct().take_all()
    assert found == [{"same": True, "s": "main"}]
    named = rows.rename({"item": "current_date"}).sort("current_date").take(2)
    assert named == [{"current_date": 0}, {"current_date": 1}]


def test_the_lists_hold_what_duckdb_says_may_vary() -> None:
    catalogue = duckdb.connect()
    said = "SELECT DISTINCT function_name FROM duckdb_functions() WHERE stability <> 'CONSISTENT'"
    found = {name for (name,) in catalogue.execute(said).fetchall()}
    assert found - LISTED == ALWAYS_ALIKE & found


def test_the_lists_hold_macros_that_call_what_may_vary() -> None:
    catalogue = duckdb.connect()
    said = "SELECT function_name, macro_definition FROM duckdb_functions() WHERE function_type = "
    for name, body in catalogue.execute(f"{said} 'macro'").fetchall():
        called = set(re.findall(r'(\w+)"?\(', body)) & LISTED - {"error"}
        words = set(re.findall(r"\w+", body)) & VALUES & CLOCK
        assert name in LISTED or not called | words, (name, body)
