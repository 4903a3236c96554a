"""Bad input: one clear MillpondError each, at the call that is wrong where that can be known."""

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from millpond.engine.duckdb import VERSION
from millpond.errors import (
    ColumnNotFound,
    FileUnreadable,
    MillpondError,
    MissingExtra,
    OptionError,
    PathNotFound,
    SchemaMismatch,
    SqlError,
    StorageError,
    TaskError,
)
from millpond.loader.reader import open_dataset
from millpond.options import options
from millpond.session import Session

secret_table = pa.table({"a": [1]})  # A Python variable that SQL must not see.


@pytest.fixture(scope="module", params=["auto", "staged"])
def sp(request: pytest.FixtureRequest) -> Iterator[Session]:
    with Session(options(shape=request.param, split_bytes=1_000, threads=2)) as session:
        yield session


def frame(sp: Session) -> Any:
    return sp.from_arrow(pa.table({"a": list(range(300)), "price": [1.5] * 300, "s": ["x"] * 300}))


def nested(levels: int) -> Any:
    return [nested(levels - 1)] if levels else 1


def one(row: dict[str, Any]) -> dict[str, Any]:
    return row


class Scaled:
    def __init__(self, by: int) -> None:
        self.by = by

    def __call__(self, batch: pa.Table) -> pa.Table:
        return batch


Wrong = Callable[[Session, Any], Any]
AT_THE_CALL: dict[str, tuple[Wrong, type[MillpondError], str]] = {
    "unknown column": (lambda sp, f: f.filter("prise > 3"), ColumnNotFound, "Did you mean 'price'"),
    "no frame to join": (lambda sp, f: f.join(f.to_arrow(), "a"), OptionError, "frame, not Table"),
    "no frame in a union": (lambda sp, f: f.union([f]), OptionError, "needs a frame, not list"),
    "no frame in sql": (lambda sp, f: sp.sql("FROM t", t=3), OptionError, "a frame, not int"),
    "no frame in parts": (lambda sp, f: sp.partial_sql("FROM {0}", 3), OptionError, "not int"),
    "one input too few": (
        lambda sp, f: sp.partial_sql("FROM {0} JOIN {1} USING (a)", f), SqlError, "There are: .0",
    ),
    "nothing to wait for": (lambda sp, f: sp.wait(3), OptionError, "needs a frame, not int"),
    "a path of another kind": (lambda sp, f: sp.read_csv(3), OptionError, "needs a path"),
    "a target of another kind": (lambda sp, f: f.write_csv(3), OptionError, "needs a path"),
    "a schema that is a list": (
        lambda sp, f: sp.read_csv(__file__, ["a"]), OptionError, "names and DuckDB types",
    ),
    "a dict for rows": (
        lambda sp, f: sp.from_items({"a": [1]}), OptionError, "dict. from_arrow.. takes tables"),
    "a table for rows": (lambda sp, f: sp.from_items(f.to_arrow()), OptionError, "not Table"),
    "a text for rows": (lambda sp, f: sp.from_items("abc"), OptionError, "rows, not str"),
    "a key by number": (lambda sp, f: sp.from_items([{1: 2}]), SchemaMismatch, "the key 1;"),
    "rows of nothing": (lambda sp, f: sp.from_items([{}]), SchemaMismatch, "has no columns"),
    "mixed pandas": (
        lambda sp, f: sp.from_pandas(pd.DataFrame({"a": [1, "x"]})), SchemaMismatch, "column a"),
    "pandas names twice": (
        lambda sp, f: sp.from_pandas(pd.DataFrame([[1, 2]], columns=["a", "a"])), SchemaMismatch,
        "each column its own name"),
    "polars as pandas": (
        lambda sp, f: sp.from_pandas(f.to_polars()), OptionError, "needs a pandas frame"),
    "a list to select": (
        lambda sp, f: f.select(["a", "s"]), SqlError, r"^select\(.*by itself, as in f\(\*items"),
    "a list of aggregates": (
        lambda sp, f: f.group_by("s").agg(["sum(a) AS a"]), SqlError, r"^agg\(.*by itself"),
    "by_rows of another kind": (
        lambda sp, f: f.repartition(2, by_rows="yes"), OptionError, "by_rows is 'yes'"),
    "join on no columns": (lambda sp, f: f.join(f, []), OptionError, "at least one column"),
    "join of no side": (lambda sp, f: f.join(f, "a = b"), SqlError, r"l\.a or r\.a"),
    "types that are classes": (
        lambda sp, f: f.map(one, schema={"a": int}), SchemaMismatch, "DuckDB's words for them"),
    "sql for batches": (lambda sp, f: f.map_batches("a"), MillpondError, "needs no SQL but a f"),
    "a listener that is none": (lambda sp, f: sp.listen(5), OptionError, "needs a function"),
    "a header by number": (
        lambda sp, f: sp.read_csv(__file__, header=5), OptionError, "header is 5"),
    "no data root": (lambda sp, f: options(data_root=""), OptionError, "data_root: is empty"),
    "a dataset by number": (lambda sp, f: open_dataset(5), OptionError, "needs a path"),
    "no rows": (lambda sp, f: sp.from_items(None), OptionError, "list of rows, not NoneType"),
    "halves": (
        lambda sp, f: sp.from_arrow({"h": pa.array([1], pa.float16())}), SchemaMismatch,
        r"from_arrow\(\): 'h' is halffloat, and DuckDB has no such type"),
    "a function of halves": (
        lambda sp, f: f.map_batches(lambda b: {"h": np.ones(9, "float16")}).schema, SchemaMismatch,
        r"map_batches\(.*'h' is halffloat"),
    "not for Arrow": (lambda sp, f: sp.from_arrow([1]), OptionError, "needs what Arrow can read"),
    "keys by number": (lambda sp, f: f.repartition(2, hash_by=1), OptionError, "names of columns"),
    "a column by number": (lambda sp, f: f.drop(1), OptionError, "named by text, not by int"),
    "a name that is none": (lambda sp, f: f.rename({"a": 1}), OptionError, "new name of 'a'"),
    "names that are no dict": (lambda sp, f: f.rename("a"), OptionError, "needs a dict"),
    "an item that is none": (lambda sp, f: f.select("a", 7), SqlError, "not 7"),
    "a key that is none": (lambda sp, f: f.sort(7), SqlError, "needs SQL text, not int"),
    "a seed that is none": (lambda sp, f: f.random_shuffle("x"), OptionError, "seed is 'x'"),
    "less than no GPU": (lambda sp, f: f.map_batches(str, gpus=-1), OptionError, "gpus=-1"),
    "udfs that are no list": (lambda sp, f: f.map("f(a)", udfs=len), OptionError, "udfs is a list"),
    "not a pandas frame": (lambda sp, f: sp.from_pandas([1]), OptionError, "frame, not list"),
    "nested too deep": (
        lambda sp, f: sp.from_items([{"a": nested(70)}]), SchemaMismatch, "'a' is nested 71 levels",
    ),
    "no columns": (
        lambda sp, f: f.map_batches(lambda b: b.select([])).schema, SchemaMismatch, "without",
    ),
    "unknown in select": (lambda sp, f: f.select("b"), ColumnNotFound, "The input has: a, price"),
    "unknown key": (lambda sp, f: f.repartition(2, hash_by="k"), ColumnNotFound, "'k'"),
    "unknown sort key": (lambda sp, f: f.sort("nope desc"), ColumnNotFound, "'nope'"),
    "unknown group key": (lambda sp, f: f.group_by("g").agg("1 AS x"), ColumnNotFound, "'g'"),
    "unknown join key": (lambda sp, f: f.join(f, "id"), ColumnNotFound, "left side"),
    "unknown in sql": (lambda sp, f: sp.sql("SELECT b FROM t", t=f), SqlError, '"b"'),
    "unknown table": (lambda sp, f: sp.sql("SELECT * FROM u", t=f), SqlError, "u"),
    "a variable": (lambda sp, f: sp.sql("FROM secret_table"), SqlError, "secret_table"),
    "a local variable": (lambda sp, f: sp.partial_sql("FROM f, {0}", f), SqlError, "f"),
    "does not parse": (lambda sp, f: f.map("a +"), SqlError, "character"),
    "the place": (lambda sp, f: f.filter("a > 1 AND AND a < 3"), SqlError, "character 11"),
    "wrong types": (lambda sp, f: f.map("upper([a]) AS x"), SqlError, "upper"),
    "empty sql": (lambda sp, f: f.filter("  ;"), SqlError, "empty"),
    "no sql": (lambda sp, f: f.filter(7), MillpondError, "needs SQL text or a function"),
    "a class that makes no function": (lambda sp, f: f.map(dict), MillpondError, "__call__ method"),
    "a class that takes arguments": (
        lambda sp, f: f.map_batches(Scaled), MillpondError, "without arguments.*'by'"),
    "injected or": (lambda sp, f: f.filter("a=1) or (1=1"), SqlError, "syntax error"),
    "injected select": (lambda sp, f: f.map("a FROM t2 --"), SqlError, "without FROM"),
    "injected statement": (lambda sp, f: f.filter("a = 1; DROP TABLE t"), SqlError, "only"),
    "two columns for one": (lambda sp, f: f.with_columns(b="a, a"), SqlError, "one condition"),
    "aggregate in map": (lambda sp, f: f.map("sum(a) AS s"), SqlError, "aggregate"),
    "window in map": (lambda sp, f: f.map("row_number() OVER () AS r"), SqlError, "window"),
    "unnest in map": (lambda sp, f: f.map("unnest([a]) AS r"), SqlError, "flat_map"),
    "parameter": (lambda sp, f: f.filter("a = $1"), SqlError, "parameter"),
    "duplicate names": (lambda sp, f: f.map("a, s AS A"), SchemaMismatch, "two columns"),
    "clash of suffixes": (
        lambda sp, f: f.with_columns(s_right="s").join(f, "a"), SchemaMismatch, "suffix="),
    "no column left": (lambda sp, f: f.drop("a", "price", "s"), SchemaMismatch, "no column"),
    "missing path": (lambda sp, f: sp.read_parquet("/no/such"), PathNotFound, "/no/such"),
    "empty glob": (lambda sp, f: sp.read_csv("/no/such/*.csv"), PathNotFound, r"\*\.csv"),
    "no paths": (lambda sp, f: sp.read_parquet([]), MillpondError, "path"),
    "n of zero": (lambda sp, f: f.repartition(0), OptionError, "n is 0"),
    "n negative": (lambda sp, f: f.limit(-1), OptionError, "n is -1"),
    "n not whole": (lambda sp, f: f.repartition(2.5), OptionError, "2.5"),
    "batches by text": (lambda sp, f: f.iter_batches("many"), OptionError, "batch_size is 'many'"),
    "batches of no format": (lambda sp, f: f.iter_batches(9, "xls"), OptionError, "'xls'"),
    "rows to show": (lambda sp, f: f.show("all"), OptionError, r"^show\('all'\): n is 'all'"),
    "a million threads": (lambda sp, f: options(threads=10**6), OptionError, "more than 1024"),
    "rows that are none": (
        lambda sp, f: f.flat_map(lambda row: 5).schema, TaskError, "gave int for row 0, not a li"),
    "Parquet as Delta": (
        lambda sp, f: sp.read_delta(os.path.dirname(__file__)), FileUnreadable, "no _delta_log"),
    "n of text": (lambda sp, f: f.take("many"), OptionError, "'many'"),
    "two ways": (lambda sp, f: f.repartition(2, hash_by="a", by_rows=True), OptionError, "one of"),
    "by no integer": (lambda sp, f: f.repartition(2, by="s"), SchemaMismatch, "VARCHAR"),
    "fraction": (lambda sp, f: f.sample(1.5), OptionError, "between 0 and 1"),
    "how": (lambda sp, f: f.join(f, "a", "sideways"), OptionError, "'sideways'"),
    "cross with on": (lambda sp, f: f.join(f, "a", "cross"), OptionError, "cross"),
    "join without on": (lambda sp, f: f.join(f), OptionError, "needs one"),
    "union of others": (
        lambda sp, f: f.union(f, f.select("a", "price", "s AS t")), SchemaMismatch,
        "frame 3 lacks 's' and the first frame lacks 't'"),
    "union of a number and a list": (
        lambda sp, f: f.union(f, f.with_columns(a="[a]")), SchemaMismatch,
        r"column 'a' is BIGINT in frame 1 and BIGINT\[\] in frame 3"),
    "union of a number and a date": (
        lambda sp, f: f.union(f.with_columns(price="DATE '2020-01-01'")), SchemaMismatch,
        "is DOUBLE in frame 1 and DATE in frame 2"),
    "counts": (
        lambda sp, f: sp.partial_sql("FROM {0} UNION FROM {1}", f.repartition(2), f.repartition(3)),
        OptionError, "2, 3"),
    "no frame": (lambda sp, f: sp.partial_sql("SELECT 1"), OptionError, "one frame"),
    "brace of no input": (lambda sp, f: sp.partial_sql("FROM {1}", f), SqlError, "partial_sql"),
    "bad schema": (lambda sp, f: f.map(one, schema={"a": "INTEGERR"}), MillpondError, "INTEGERR"),
    "empty schema": (lambda sp, f: f.map(one, schema={}), SchemaMismatch, "no columns"),
    "batch size": (lambda sp, f: f.map_batches(len, batch_size=0), OptionError, "batch_size"),
    "format": (lambda sp, f: f.map_batches(len, format="excel"), OptionError, "'excel'"),
    "sort by nothing": (lambda sp, f: f.sort([]), SqlError, "sort key"),
    "sort by a number": (lambda sp, f: f.sort("1"), SqlError, "not a column"),
    "install": (lambda sp, f: sp.sql("INSTALL httpfs"), SqlError, "SELECT|syntax|Only"),
    "set": (lambda sp, f: sp.sql("SET threads = 1"), SqlError, "SELECT|syntax|Only"),
}  # fmt: skip


@pytest.mark.parametrize("name", AT_THE_CALL)
def test_wrong_at_the_call(sp: Session, name: str) -> None:
    wrong, kind, said = AT_THE_CALL[name]
    given = frame(sp)

    with pytest.raises(kind, match=said):
        wrong(sp, given)


@pytest.mark.parametrize(
    ("one", "other"),
    [("NULL", "[1]"), ("'[1]'", "[2]"), ("true", "2.5"), ("1", "'x'"),
     ("DATE '2020-01-01'", "TIMESTAMP '2020-01-01 10:00:00'"), ("{'a': 1}", "{'b': 'x'}"),
     ("[1]", "[2.5]"), ("MAP {'a': 1}", "MAP {'b': 2.5}")],
)  # fmt: skip
def test_types_that_duckdb_unites_make_a_union(sp: Session, one: str, other: str) -> None:
    frames = [sp.sql(f"SELECT {value} AS x") for value in (one, other)]

    plain = f"SELECT x::VARCHAR FROM (SELECT {one} AS x UNION ALL SELECT {other})"
    want = [str(value) for (value,) in duckdb.sql(plain).fetchall()]
    got = frames[0].union(frames[1]).map("x::VARCHAR AS x").take_all()
    assert sorted(str(row["x"]) for row in got) == sorted(want)


def test_a_trailing_comment_or_semicolon_is_fine(sp: Session) -> None:
    given = frame(sp).filter("a > 1 -- all but two").map("a -- only this").filter("a < 9;")

    assert given.sort("a -- up").count() == 7
    assert sp.sql("SELECT count(*) AS n FROM t -- counted\n;", t=given).take(1) == [{"n": 7}]
    assert given.with_columns(b="a + 1 -- more").count() == 7


ENDS = ["", " -- c", " -- c;", ";", "; -- c", " ; /* a; /* b */ ; */ -- c", " -- c\n;\n-- d"]
TAKES_SQL: dict[str, Callable[[Session, Any, str], Any]] = {
    "filter": lambda sp, f, end: f.filter("s <> '; --' AND a < 3" + end),
    "map": lambda sp, f, end: f.map("a, 'x;' AS t" + end),
    "flat_map": lambda sp, f, end: f.flat_map("unnest([s, $$;$$]) AS u" + end),
    "select": lambda sp, f, end: f.select("a" + end, "a + 1 AS b" + end, "s"),
    "with_columns": lambda sp, f, end: f.with_columns(a="a + 1" + end, b="a" + end),
    "agg": lambda sp, f, end: f.group_by("s").agg("sum(a) AS x" + end, "max(a) AS m" + end),
    "sort": lambda sp, f, end: f.sort(["s desc" + end, "a desc" + end]),
    "partial_sort": lambda sp, f, end: f.repartition(1).partial_sort("a desc" + end),
    "repartition": lambda sp, f, end: f.repartition(3, by="a % 3" + end).sort("a"),
    "join": lambda sp, f, end: f.join(f, "l.a = r.a AND l.a < 4" + end).sort("a"),
    "sql": lambda sp, f, end: sp.sql("SELECT a, ';' AS t FROM t WHERE a < 3" + end, t=f),
    "partial_sql": lambda sp, f, end: sp.partial_sql("SELECT a FROM {0} WHERE a < 3" + end, f),
}


@pytest.mark.parametrize("name", TAKES_SQL)
def test_sql_may_end_in_comments_and_semicolons_wherever_it_is_taken(
    sp: Session, name: str
) -> None:
    given = frame(sp).limit(9)
    wanted = TAKES_SQL[name](sp, given, "").to_arrow()

    for end in ENDS:
        assert TAKES_SQL[name](sp, given, end).to_arrow() == wanted, end


@pytest.mark.parametrize(
    "text", ["a = 1; a = 2", "a = 1; -- c\n DROP TABLE t", "a = 1 /* ; */ ; 1"]
)
def test_what_follows_a_semicolon_is_refused(sp: Session, text: str) -> None:
    with pytest.raises(SqlError):
        frame(sp).filter(text)


def test_braces_in_sql_are_left_alone(sp: Session) -> None:
    out = sp.partial_sql("SELECT {'a': a}.a AS a, '{0}{1}' AS t, '{}' AS e FROM {0}", frame(sp))

    assert out.limit(1).select("a", "e").take_all() == [{"a": 0, "e": "{}"}]


def test_inputs_stand_outside_of_texts_and_comments(sp: Session) -> None:
    """Else a pattern with `{1}` would look for another text, and give other rows."""
    parts = frame(sp).repartition(1)
    query = """SELECT '{0}' AS t, $${0}$$ AS d, a /* it's {0} /* {1} */ {0} */
        FROM {0} JOIN {1} AS u USING (a)
        WHERE regexp_matches(a::VARCHAR, '^[0-9]{1}$') AND a < 2 -- {0}"""
    assert sp.partial_sql(query, parts, parts.select("a")).sort("a").take_all() == [
        {"t": "{0}", "d": "{0}", "a": 0},
        {"t": "{0}", "d": "{0}", "a": 1},
    ]


def test_numbers_beyond_those_of_duckdb(sp: Session) -> None:
    assert frame(sp).limit(10**30).count() == 300
    once = frame(sp).sample(0.5, seed=2**100 + 7).take_all()
    assert once == frame(sp).sample(0.5, seed=2**100 + 7).take_all()
    assert 0 < len(once) < 300
    shuffled = frame(sp).random_shuffle(seed=2**100 + 7).select("a").take_all()
    assert sorted(row["a"] for row in shuffled) == list(range(300))
    with Session(options(seed=2**80)) as seeded:
        assert 0 < frame(seeded).sample(0.5).random_shuffle().to_arrow().num_rows < 300
    assert frame(sp).sample(np.float32(0.5), seed=7).count() == len(once)  # type: ignore[arg-type]


def test_what_pandas_puts_for_no_value_is_null(sp: Session) -> None:
    rows = pd.DataFrame({"a": pd.to_datetime(["2026-01-01", None])}).to_dict("records")
    assert [row["a"] is None for row in sp.from_items(rows).take_all()] == [False, True]
    assert sp.from_items([1, pd.NA]).take_all() == [{"item": 1}, {"item": None}]


@pytest.mark.parametrize(
    ("gives", "said"),
    [
        (lambda b: b["a"], "gave Series; it must give"),
        (lambda b: {"x": b["a"].mean()}, "gave float64 in the column 'x'"),
        (lambda b: {"x": "text"}, "gave str in the column 'x'"),
    ],
)
def test_what_a_function_of_batches_must_give(sp: Session, gives: Any, said: str) -> None:
    with pytest.raises(TaskError, match=said):
        frame(sp).map_batches(gives, format="pandas").count()


def test_a_partition_number_out_of_range_is_named(sp: Session) -> None:
    for sql, value in (("a % 4", "3"), ("-1 - a", r"-\d+"), ("nullif(a, 5)", "NULL")):
        with pytest.raises(MillpondError, match=value):
            frame(sp).repartition(3 if "4" in sql else 300, by=sql).count()


def test_a_value_that_does_not_convert_is_one_error(sp: Session) -> None:
    with pytest.raises(MillpondError, match="Could not convert string 'x' to INT32"):
        frame(sp).map("s::INTEGER AS i").take_all()


def test_a_function_that_raises(sp: Session) -> None:
    def broken(row: dict[str, Any]) -> dict[str, Any]:
        return {"b": {"one": 1}[row["s"]]}

    with pytest.raises(TaskError, match="KeyError: 'x'") as error:
        frame(sp).map(broken, schema={"b": "INTEGER"}).count()
    assert isinstance(error.value.__cause__, KeyError)
    assert "broken" in error.value.traceback
    assert error.value.inputs == "rows from Python"


def test_a_traceback_begins_where_the_user_wrote(sp: Session) -> None:
    def broken(given: Any) -> Any:
        raise ValueError("mine")

    def marked(a: int) -> bool:
        raise ValueError("mine")

    f = frame(sp)
    for wrong in (
        f.map(broken, schema={"b": "INTEGER"}),
        f.filter(lambda row: True).filter(broken),
        f.map_batches(broken, schema={"b": "INTEGER"}),
        f.filter("marked(a)", udfs=[marked]),
    ):
        with pytest.raises(TaskError, match="mine") as error:
            wrong.take_all()
        _, first, *_ = error.value.traceback.splitlines()
        assert first.startswith(f'  File "{__file__}"'), error.value.traceback
        assert "millpond/engine" not in error.value.traceback


def test_zero_rows_pass_through_everything(sp: Session, tmp_path: Path) -> None:
    none = frame(sp).filter("a < 0")

    assert none.map(lambda row: {"b": row["a"]}, schema={"b": "BIGINT"}).take_all() == []
    assert none.filter(lambda row: True).flat_map("unnest([a, 1]) AS x").count() == 0
    assert none.map_batches(lambda batch: batch).to_arrow().num_rows == 0
    assert none.map_partitions(lambda rows: rows).count() == 0
    assert none.map_groups("s", lambda rows: rows).count() == 0
    assert none.repartition(3, hash_by="a").sort("a").limit(2).distinct("s").count() == 0
    assert none.repartition(2, by_rows=True).random_shuffle(1).count() == 0
    assert none.join(frame(sp), "a", "right").count() == 300
    assert none.group_by("s").agg("sum(a) AS x").take_all() == []
    assert none.group_by().agg("count(*) AS n").take_all() == [{"n": 0}]
    assert sp.sql("SELECT max(a) AS m FROM t", t=none).take_all() == [{"m": None}]
    assert none.union(none).to_pandas().shape == (0, 3)
    none.write_parquet(str(tmp_path / "out"))
    assert sp.read_parquet(str(tmp_path / "out")).columns == ["a", "price", "s"]


def test_nested_types_pass_through_everything(sp: Session, tmp_path: Path) -> None:
    items = [
        {"k": i % 3, "v": {"l": [i, None], "m": {"t": f"é{i}"}}, "e": []} for i in range(50)
    ] + [{"k": None, "v": None, "e": None}]
    nested = sp.from_items(items).map("*, map([1], [k]) AS p, [1, 2]::INTEGER[2] AS a")

    rows = nested.take_all()
    assert [row["v"] for row in rows] == [item["v"] for item in items]
    assert nested.map(lambda row: row, schema=nested.schema).take_all() == rows
    assert nested.filter(lambda row: row["k"] != 1).filter(lambda row: True).count() == 34
    assert nested.repartition(3, hash_by="v").sort("v.m.t desc").count() == 51
    assert nested.distinct("v").count() == 51
    assert nested.join(nested.select("v"), "v").count() == 50
    nested.write_parquet(str(tmp_path / "out"))
    assert sp.read_parquet(str(tmp_path / "out")).sort("v").take_all() == (
        nested.sort("v").take_all()
    )


@pytest.mark.parametrize("name", ["it's", 'a "b" 漢', "a b;--", "{0}", "%20#?", "back\\slash"])
def test_odd_paths_are_written_and_read(sp: Session, tmp_path: Path, name: str) -> None:
    for write in ("write_parquet", "write_csv", "write_json", "write_arrow"):
        target = str(tmp_path / write / name)
        getattr(frame(sp).select("a"), write)(target)
        again = getattr(sp, write.replace("write", "read"))(target)
        assert again.group_by().agg("sum(a)::BIGINT AS s").take_all() == [{"s": 44850}]


@pytest.mark.skipif(not os.path.isdir("/proc/sys"), reason="a file system that nobody may write to")
@pytest.mark.parametrize(
    ("format", "option", "what"),
    [
        ("parquet", {"compresion": "zstd"}, r"compresion.*Near are: \"compression\""),
        ("parquet", {"compression": "zstdd"}, "uncompressed, brotli, gzip"),
        ("parquet", {"row_group_size": "x"}, "row_group_size"),
        ("parquet", {"compression": object()}, "is object; an option is a text"),
        ("parquet", {"a=1, b": 1}, "no option's name"),
        ("parquet", {"per_thread_output": True}, "repartition"),
        ("parquet", {"return_stats": True}, "is no option here"),
        ("parquet", {"Overwrite": True}, "mode= says that"),
        ("csv", {"delm": "|"}, r"delm.*Near are: \"delim\""),
        ("csv", {"delim": "|", "DELIM": ","}, "delim"),
        ("json", {"arry": True}, "arry"),
        ("arrow", {"compresion": "lz4"}, "Did you mean 'compression'"),
        ("arrow", {"compression": "gzip"}, "'gzip' is none. There is compression='lz4'"),
    ],
    ids=str,
)
def test_options_of_files_are_checked_at_the_call(
    sp: Session, tmp_path: Path, format: str, option: dict[str, Any], what: str
) -> None:
    write = getattr(frame(sp), f"write_{format}")
    if VERSION.startswith("1."):  # It writes the names of options in capitals, and knows fewer.
        what = "(?i:" + what.partition(".*Near are")[0] + ")"

    with pytest.raises(OptionError, match=rf"^write_{format}\('.*'\): .*{what}"):
        write(tmp_path / "out", **option)

    assert not any(tmp_path.iterdir())
    if format == "parquet":
        with pytest.raises(OptionError, match=what):
            frame(sp).write_parquet_lazy(tmp_path / "out", **option)


def test_a_target_that_nobody_may_write_to_is_one_clear_error(sp: Session) -> None:
    for target in ("/proc/sys/out", "/proc/sys/out.parquet"):
        with pytest.raises(MillpondError, match="/proc/sys/out"):
            frame(sp).write_parquet(target)


def test_a_file_cut_short_after_the_call_is_named(sp: Session, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"a": list(range(1_000))}), path, row_group_size=100)
    given = sp.read_parquet(str(path))
    path.write_bytes(path.read_bytes()[:-100])

    with pytest.raises(FileUnreadable, match=r"a\.parquet"):
        given.count()


def test_a_file_that_is_gone_is_named(sp: Session, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"a": [1]}), path)
    given = sp.read_parquet(str(path))
    path.unlink()

    with pytest.raises(MillpondError, match=r"a\.parquet"):
        given.take_all()


def test_a_csv_value_that_does_not_fit_names_the_file(sp: Session, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id\n1\n2\nx\n")

    with pytest.raises(MillpondError, match=r"a\.csv"):
        sp.read_csv(str(tmp_path), {"id": "INTEGER"}).take_all()


def test_what_is_no_parquet_is_named(sp: Session, tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_text("this is text, and long enough to be a footer")

    with pytest.raises(FileUnreadable, match=r"a\.parquet"):
        sp.read_parquet(str(tmp_path))


def test_a_closed_session_says_so() -> None:
    session = Session(options(threads=1))
    given = session.from_items([1])
    session.close()

    for use in (given.count, lambda: given.filter("item > 0"), lambda: session.from_items([1])):
        with pytest.raises(MillpondError, match="closed"):
            use()


def test_names_that_need_quotes(sp: Session) -> None:
    odd = sp.from_items([{'a "b"': 1, "select": 2, "é'": 3}])

    assert odd.rename({"select": 'x"'}).columns == ['a "b"', 'x"', "é'"]
    assert odd.drop("select").repartition(2, hash_by='a "b"').sort('"a ""b""" desc').count() == 1
    assert odd.group_by("select").agg('max("é\'") AS m').take_all() == [{"select": 2, "m": 3}]
    assert odd.join(odd, ["select", "é'"]).columns == ['a "b"', "select", "é'", 'a "b"_right']
    assert odd.distinct("select").union(odd).count() == 2


def test_no_columns(sp: Session) -> None:
    with pytest.raises(MillpondError):
        sp.from_arrow(pa.table({})).take_all()
    with pytest.raises(MillpondError, match="column"):
        sp.from_items([{}, {}])


def test_nulls_only(sp: Session) -> None:
    nothing = sp.from_items([{"a": None}, {"a": None}])

    assert nothing.group_by("a").agg("count(*) AS n").take_all() == [{"a": None, "n": 2}]
    assert nothing.join(nothing, "a").count() == 0
    assert nothing.distinct().count() == 1


@pytest.mark.parametrize("items", [[1, "a"], [{"a": 1}, {"a": "x"}], [2**70]])
def test_items_without_a_common_type(sp: Session, items: list[Any]) -> None:
    with pytest.raises(SchemaMismatch, match=r"from_items\(\): the values of a column have no"):
        sp.from_items(items)


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["fused", "staged"])
def test_a_chain_of_three_hundred_steps(shape: str) -> None:
    with Session(options(threads=2, shape=shape)) as sp:
        frame = other = sp.from_items([1, 2])
        for i in range(300):
            frame = frame.map("item + 1 AS item")
            other = other.filter(f"item <> {-i}") if i % 2 else other.with_columns(item="item + 1")

        assert frame.take(1) == [{"item": 301}]
        assert other.sort("item desc").take(1) == [{"item": 152}]
        assert frame.explain().count("Project") == 300


@pytest.mark.slow
def test_five_hundred_filters(sp: Session) -> None:
    """DuckDB's own limit is 1,000 levels, of which each filter was two."""
    frame = sp.from_items([1, 2, 3])
    for i in range(500):
        frame = frame.filter(f"item <> {i + 3}")
    assert frame.take_all() == [{"item": 1}, {"item": 2}]


@pytest.mark.parametrize("text", ["d.upper()", "d.upper().lower()", "D.replace('x', 'z') || c"])
def test_functions_that_are_called_on_a_column_read_it(
    sp: Session, tmp_path: Path, text: str
) -> None:
    rows = pa.table({"a": [1, 2], "c": ["p", "q"], "d": ["x", "y"]})
    pq.write_table(rows, tmp_path / "f.parquet")
    given = sp.read_parquet(tmp_path)

    want = [{"e": value} for (value,) in duckdb.sql(f"SELECT {text} FROM rows").fetchall()]
    assert given.map(f"{text} AS e").take_all() == want
    assert given.with_columns(e=text).select("e").take_all() == want
    assert given.sort(text).map(f"{text} AS e").take_all() == sorted(want, key=str)
    assert given.filter(f"{text} IS NOT NULL").select("a").count() == 2
    groups = given.group_by("a").agg(f"max({text}) AS e").sort("a")
    assert groups.select("e").take_all() == want


def test_a_sort_key_that_is_the_name_of_a_column_is_that_column(sp: Session) -> None:
    given = sp.from_items([{"order": 1, "a b": 2}, {"order": 2, "a b": 1}])

    assert [row["order"] for row in given.sort("a b").take_all()] == [2, 1]
    assert [row["order"] for row in given.sort(["order"]).take_all()] == [1, 2]
    assert given.repartition(1).partial_sort("a b").take(1) == [{"order": 2, "a b": 1}]


def test_a_working_directory_that_is_gone(
    sp: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()

    for wrong in (lambda: frame(sp).write_csv("out"), lambda: sp.read_csv("in")):
        with pytest.raises(StorageError, match="': the working directory is gone"):
            wrong()
    frame(sp).write_csv(tmp_path / "out")
    assert sp.read_csv(tmp_path / "out").count() == 300


def test_of_many_paths_an_error_shows_the_first(sp: Session, tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.parquet" for i in range(5_000)]
    with pytest.raises(PathNotFound, match=r"read_parquet\(\['.*0\.parquet', … 5000 paths\]") as e:
        sp.read_parquet(paths)
    assert len(str(e.value)) < 1_000


def test_columns_that_are_added_and_replaced(sp: Session) -> None:
    given = sp.from_arrow(pa.table({"A b": [1, 2], "c": [[1], [2, 3]], "d": ["x", "y"]}))

    frame = given.with_columns(**{"a B": '"A b" + 1', "n": "len(c) -- so long", "k": "7"})
    assert frame.columns == ["A b", "c", "d", "n", "k"]
    both = given.with_columns(d='"a b" * 10 + 10', e="d || (SELECT 7)").select("d", "e")
    assert both.take_all() == [{"d": 20, "e": "x7"}, {"d": 30, "e": "y7"}]
    assert given.with_columns().take_all() == given.take_all()
    with pytest.raises(SchemaMismatch, match="two columns are named 'Z'"):
        given.with_columns(z="1", Z="2")
    with pytest.raises(SqlError, match="aggregate"):
        given.with_columns(z="max(d)")


@pytest.mark.slow
def test_a_function_that_exits_is_an_error(sp: Session) -> None:
    def leave(row: dict[str, Any]) -> dict[str, Any]:
        raise SystemExit(3)

    with pytest.raises(TaskError, match=r"leave raised SystemExit: 3 on row 0"):
        sp.from_items([1]).map(leave, schema={"x": "BIGINT"}).count()


@pytest.mark.slow
def test_ctrl_c_that_a_function_raises_is_its_own_error(sp: Session) -> None:
    """A task is no main thread: nobody pressed it there, and nothing is wrong with the SQL."""

    def by_value(x: int) -> int:
        raise KeyboardInterrupt("mine")

    def by_batch(batch: Any) -> Any:
        raise KeyboardInterrupt("mine")

    schema = {"item": "BIGINT"}
    rows = sp.from_items([1, 2])
    for frame in (
        rows.map("by_value(item) AS y", udfs=[by_value]),
        rows.map_batches(by_batch, schema=schema).filter("item > 1"),
        rows.map(lambda row: by_value(1), schema=schema),
    ):
        with pytest.raises(TaskError, match="raised KeyboardInterrupt: mine") as told:
            frame.take_all()
        assert isinstance(told.value.__cause__, KeyboardInterrupt)


def test_what_a_missing_extra_is_wanted_for_is_told_at_the_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in list(sys.modules):
        if module.startswith(("millpond.runtime.ray", "millpond.loader.torch")):
            monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtra, match=r"runtime='ray' needs the extra 'ray'"):
        Session(options(runtime="ray"))
    with pytest.raises(MissingExtra, match=r"millpond\.loader\.torch needs the extra 'torch'"):
        importlib.import_module("millpond.loader.torch")
