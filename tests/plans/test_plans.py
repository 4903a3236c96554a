"""Golden pairs: each rule alone, on a plan that it changes and on one that it leaves alone.

`pytest tests/plans --update` rewrites the `.plan` files; the diff is for people to read.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from millpond import optimize as o
from millpond.optimize import RULES, Rule, optimize
from millpond.options import options
from millpond.plan.explain import explain
from millpond.session import Session

HERE = Path(__file__).parent
Build = Callable[[Session, Any, Any], Any]

PAIRS: dict[Rule, tuple[Build, Build]] = {
    o.partition_as_it_is: (
        lambda sp, t, u: t.repartition(7, hash_by="k").filter("a > 1").repartition(7, hash_by="k"),
        lambda sp, t, u: t.repartition(7, hash_by="k").filter("a > 1").repartition(5, hash_by="k"),
    ),
    o.partition_below_partition: (
        lambda sp, t, u: t.repartition(3).repartition(7, hash_by="k").repartition(5, hash_by="a"),
        lambda sp, t, u: t.repartition(7, hash_by="k").repartition(5, by_rows=True),
    ),
    o.partition_below_sort: (
        lambda sp, t, u: t.repartition(7, hash_by="k").sort("a"),
        lambda sp, t, u: t.repartition(7, hash_by="k").partial_sort("a"),
    ),
    o.partition_below_group: (
        lambda sp, t, u: t.repartition(7, hash_by="a").group_by("k").agg("count(*) AS n"),
        lambda sp, t, u: t.repartition(7, hash_by="k").group_by("k", "a").agg("count(*) AS n"),
    ),
    o.partition_below_sql: (
        lambda sp, t, u: sp.sql("FROM t JOIN u USING (k)", t=t.repartition(2, hash_by="k"), u=u),
        lambda sp, t, u: sp.sql("FROM t", t=t.repartition(2, by="k % 2")),
    ),
    o.filter_below_partition: (
        lambda sp, t, u: t.repartition(7, hash_by="k").filter("a > 1").filter("b = 'x'"),
        lambda sp, t, u: t.repartition(7, hash_by="k").filter("random() < 0.5"),
    ),
    o.filter_below_sort: (
        lambda sp, t, u: t.sort("a desc").filter("k = 1"),
        lambda sp, t, u: t.sort("a").limit(3).filter("k = 1"),
    ),
    o.filter_below_columns: (
        lambda sp, t, u: t.select("k", "a").filter("k = 1"),
        lambda sp, t, u: t.map("k + 1 AS k").filter("k = 1"),
    ),
    o.filter_below_group: (
        lambda sp, t, u: t.group_by("k", "b").agg("sum(a) AS s").filter("k > 1"),
        lambda sp, t, u: t.group_by("k").agg("sum(a) AS s").filter("s > k"),
    ),
    o.filter_below_union: (
        lambda sp, t, u: t.select("k").union(u.select("k")).filter("k > 1"),
        lambda sp, t, u: t.select("k").union(u.select("w AS k")).filter("k / 2 > 1"),
    ),
    o.filter_below_join: (
        lambda sp, t, u: t.join(u, "k").filter("a > 1 AND b <> ''").filter("w > 0.5"),
        lambda sp, t, u: t.join(u, "k", "full").filter("a > 1"),
    ),
    o.filter_of_filter: (
        lambda sp, t, u: t.filter("a > 1 OR k = 2").filter("b = 'x'"),
        lambda sp, t, u: t.filter("a > 1").filter("random() < 0.5"),
    ),
    o.union_of_unions: (
        lambda sp, t, u: t.union(t.filter("a > 1")).union(t.limit(1).union(t.limit(2))),
        lambda sp, t, u: t.select("k").union(u.select("w AS k")).union(t.select("b AS k")),
    ),
    o.limit_of_limit: (
        lambda sp, t, u: t.limit(9).limit(3),
        lambda sp, t, u: t.limit(9).filter("a > 1").limit(3),
    ),
    o.limit_below_project: (
        lambda sp, t, u: t.map("a + 1 AS a").limit(3),
        lambda sp, t, u: t.flat_map("unnest(range(a)) AS a").limit(3),
    ),
    o.limit_into_scan: (
        lambda sp, t, u: t.limit(3),
        lambda sp, t, u: t.sort("a").limit(3),
    ),
    o.narrow_inputs: (
        lambda sp, t, u: t.join(u, "k").sort("w").repartition(7, hash_by="k").map("a * w AS x"),
        lambda sp, t, u: t.repartition(7, hash_by="k").map("* EXCLUDE (b)"),
    ),
    o.narrow_inputs_of_sql: (
        lambda sp, t, u: sp.partial_sql(
            "SELECT k, max(a) AS m FROM (FROM {0}) GROUP BY k", t.repartition(7, hash_by="k")),
        lambda sp, t, u: sp.partial_sql(
            "SELECT a FROM (SELECT * EXCLUDE (c) FROM {0})", t.repartition(7, hash_by="k")),
    ),
    o.row_functions_together: (
        lambda sp, t, u: t.map(raised, schema={"k": "BIGINT", "a": "DOUBLE"}).filter(is_odd)
        .flat_map(twice, schema={"k": "BIGINT", "a": "DOUBLE"}),
        lambda sp, t, u: t.map(named, schema={"k": "BIGINT", "id": "UUID"}).filter(is_odd)
        .map_batches(same).filter("k > 0").filter(is_odd),
    ),
}  # fmt: skip


def raised(row: dict[str, Any]) -> dict[str, Any]:
    return {"k": row["k"], "a": row["a"] + 1}


def is_odd(row: dict[str, Any]) -> bool:
    return bool(row["k"] % 2)


def twice(row: dict[str, Any]) -> list[dict[str, Any]]:
    return [row, {"k": -row["k"]}]


def named(row: dict[str, Any]) -> dict[str, Any]:
    return {"k": row["k"], "id": "6CCD780C-BABA-1026-9564-5B8C656024DB"}


def same(rows: pa.Table) -> pa.Table:
    return rows


@pytest.fixture(scope="module")
def sp() -> Iterator[Session]:
    with Session(options(threads=1)) as session:
        yield session


def tables(sp: Session) -> tuple[Any, Any]:
    t = sp.from_arrow(pa.table({"k": [1, 2], "a": [3, 4], "b": ["x", "y"], "c": [0, 0]}))
    return t, sp.from_arrow(pa.table({"k": [1, 2], "w": [0.5, 1.5], "d": ["p", "q"]}))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_rule_alone(rule: Rule, sp: Session, request: pytest.FixtureRequest) -> None:
    changed, kept = (build(sp, *tables(sp)).plan for build in PAIRS[rule])
    text = (
        f"given:\n{explain(changed)}\n\nexpected:\n{explain(optimize(changed, (rule,)))}\n\n"
        f"left alone:\n{explain(kept)}\n"
    )
    golden = HERE / f"{rule.__name__}.plan"
    if request.config.getoption("--update"):
        golden.write_text(text)

    assert text == golden.read_text()
    assert optimize(changed, (rule,)) != changed
    assert optimize(kept, (rule,)) == kept


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_rows_stay(rule: Rule, sp: Session) -> None:
    for build in PAIRS[rule]:
        frame = build(sp, *tables(sp))
        if "random" in explain(frame.plan):
            continue
        before, after = (sp._runner.table(optimize(frame.plan, rules)) for rules in ((), RULES))
        assert before.schema == after.schema
        key = [(name, "ascending") for name in before.column_names if name != "x"]
        assert sorted(map(repr, before.to_pylist())) == sorted(map(repr, after.to_pylist())), key


def test_a_node_that_two_read_stays_one(sp: Session) -> None:
    t, u = tables(sp)
    joined = t.join(u, "k")
    both = joined.map("a").union(joined.map("w AS a"))

    text = explain(optimize(both.plan))

    assert text.count("Join") == 1
    assert "the same as line" in text


def test_every_rule_has_a_file_and_every_file_a_rule() -> None:
    assert {path.stem for path in HERE.glob("*.plan")} == {rule.__name__ for rule in RULES}


def test_rules_end_on_a_deep_plan(sp: Session) -> None:
    t, _ = tables(sp)
    for i in range(25):
        t = t.filter(f"a <> {i}").repartition(2 + i % 3, hash_by="k").sort("a").select("k", "a")

    assert explain(optimize(t.plan)).count("Sort") <= 25


def test_a_limit_above_a_smaller_one_adds_no_rows() -> None:
    with Session(options(progress=False)) as sp:
        assert sp.from_items(list(range(9))).limit(3).limit(7).count() == 3


def test_a_condition_that_varies_stays_above_the_group_it_asks() -> None:
    """Below it, each row of a group would be asked, and a part of them counted."""
    with Session(options(progress=False)) as sp:
        counts = sp.from_items([1, 1, 2]).group_by("item").agg("count(*) AS n")
        assert counts.filter("item > random()").explain().startswith("Filter")
        assert not counts.filter("item > 1").explain().startswith("Filter")
