"""Which columns a query may read: all that it names, and all of them where it may read unnamed."""

from collections.abc import Iterator

import pytest

from millpond.options import options
from millpond.session import Session


@pytest.fixture(scope="module")
def sp() -> Iterator[Session]:
    with Session(options(threads=1)) as session:
        yield session


def read(sp: Session, query: str) -> str:
    """The columns of a source that a query of it still reads after the rules."""
    frame = sp.from_items([{"k": 1, "a": 2, "b": {"c": 3}, "t": 4}])
    return sp.partial_sql(query, frame).explain().splitlines()[-1].partition("[")[2].rstrip("]")


@pytest.mark.parametrize(
    ("query", "columns"),
    [
        ("SELECT k, sum(a) AS s FROM {0} GROUP BY ALL", "k, a"),
        ("SELECT count(*) AS n FROM {0}", "k"),
        ("SELECT x.b.c FROM {0} AS x", "b"),
        ("SELECT a.k FROM {0} a JOIN {0} o USING (t)", "k, a, t"),
        ("SELECT max(K) AS m FROM {0} WHERE A > 1", "k, a"),
        ("WITH c AS (SELECT k FROM {0}) SELECT k FROM c", "k"),
        ("SELECT list_transform([k], lambda z: z + a) AS l FROM {0}", "k, a"),
    ],
)
def test_named_columns_are_read(sp: Session, query: str, columns: str) -> None:
    assert read(sp, query) == columns


@pytest.mark.parametrize(
    "query",
    [
        "FROM {0}",
        "SELECT * EXCLUDE (k) FROM {0}",
        "SELECT x FROM {0} AS x",
        "SELECT count(DISTINCT x) AS n FROM {0} x",
        "SELECT d FROM {0} AS x(d, e)",
        "SELECT n.k FROM (SELECT 1 AS k) n NATURAL JOIN {0}",
        "SELECT k FROM (SELECT * EXCLUDE (a) FROM {0})",  # The star excludes it by its name.
        "SELECT k FROM (FROM (DESCRIBE FROM {0})), {0}",
        "SELECT k FROM (FROM {0}) WHERE false",  # No scan is left in the plan.
        "SELECT #1 FROM {0}",
        "SELECT k FROM query_table('__in0')",
    ],
)
def test_where_columns_may_be_read_unnamed_all_are_kept(sp: Session, query: str) -> None:
    assert read(sp, query) == "k, a, b, t"


@pytest.mark.parametrize(
    ("query", "columns"),
    [
        ("SELECT k FROM (FROM {0})", "k"),
        ("SELECT COLUMNS('k|a') FROM {0}", "k, a"),
        ("SELECT k FROM (SELECT * FROM {0}) WHERE t > 1", "k, t"),
        ("SELECT k FROM (SELECT * FROM {0} JOIN (SELECT 2 AS a) USING (a))", "k, a"),
        ("SELECT n FROM (SELECT *, row_number() OVER (ORDER BY a) AS n FROM {0})", "a"),
        ("SELECT m FROM (SELECT 1 AS m), LATERAL (SELECT * FROM {0} WHERE k = m)", "k"),
        ("SELECT k FROM (SELECT DISTINCT * FROM {0})", "k, a, b, t"),
        ("SELECT k FROM (FROM {0} UNION FROM {0})", "k, a, b, t"),
    ],
)
def test_what_a_star_reads_duckdb_says(sp: Session, query: str, columns: str) -> None:
    assert read(sp, query) == columns


def test_a_star_over_tables_whose_columns_would_shift_is_left_alone(sp: Session) -> None:
    one = sp.from_items([{"a": 1, "b": 2, "c": 3}]).repartition(1)
    two = sp.from_items([{"c": 4, "a": 5, "b": 6}]).repartition(1)

    # Of `two` the column a is meant; beside b, which `one` needs, it would be another's partner.
    frame = sp.partial_sql("SELECT b FROM (FROM {0} UNION ALL FROM {1})", one, two)

    assert [row["b"] for row in frame.take_all()] == [2, 5]
    assert "[c, a, b]" in frame.explain()
