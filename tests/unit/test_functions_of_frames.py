"""Python functions: rows, batches, partitions, groups and SQL functions; kept results."""

import threading
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from millpond.errors import MillpondError, OptionError, TaskError
from millpond.events import StagePlanned
from millpond.options import options
from millpond.session import Session

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def sp() -> Iterator[Session]:
    with Session(options(split_bytes=400, threads=2)) as session:
        yield session


def frame(sp: Session, n: int = 200) -> Any:
    return sp.from_arrow(
        pa.table({"x": list(range(n)), "k": [i % 3 for i in range(n)], "s": ["é"] * n})
    )


# ---- SQL functions -------------------------------------------------------------------


def double(x: int) -> int:
    return pc.multiply(x, 2)


def shout(s: str, times: int) -> str | None:
    return None if times == 0 else s.upper() * times


def parts(x: int) -> list[int]:
    return [x, x + 1]


def test_a_function_of_arrays_and_one_of_single_values(sp: Session) -> None:
    out = frame(sp).map(
        "x, double(x) AS d, shout(s, k) AS t, parts(x) AS p", udfs=[double, shout, parts]
    )

    assert str(out.schema) == "x BIGINT, d BIGINT, t VARCHAR, p BIGINT[]"
    rows = out.filter("x IN (3, 5)").sort("x").take_all()
    assert rows == [
        {"x": 3, "d": 6, "t": None, "p": [3, 4]},
        {"x": 5, "d": 10, "t": "ÉÉ", "p": [5, 6]},
    ]


def test_types_in_duckdbs_words(sp: Session) -> None:
    def half(x: "BIGINT") -> "DECIMAL(10, 1)":  # type: ignore[name-defined]  # noqa: F821
        from decimal import Decimal

        return Decimal(x) / 2

    assert frame(sp).map("half(x) AS h", udfs=[half]).schema.types == ("DECIMAL(10,1)",)
    assert str(frame(sp, 4).map("half(x) AS h", udfs=[half]).take_all()[3]["h"]) == "1.5"


def test_a_function_in_a_filter_and_a_flat_map(sp: Session) -> None:
    odd = frame(sp).filter("double(x) % 4 = 2", udfs=[double])

    assert odd.count() == 100
    assert odd.limit(2).flat_map("unnest(parts(x)) AS y", udfs=[parts]).take_all() == [
        {"y": y} for y in (1, 2, 3, 4)
    ]


def test_a_function_may_have_the_name_of_one_of_duckdbs(sp: Session) -> None:
    def gcd(a: int, b: int) -> int:
        return 1_000 * a + b

    assert sp.from_items([{"a": 4, "b": 6}]).map("gcd(a, b) AS g", udfs=[gcd]).take_all() == [
        {"g": 4_006}
    ]


def test_two_functions_of_one_name_in_a_row(sp: Session) -> None:
    def step(x: int) -> int:
        return x + 1

    first = step

    def step(x: int) -> int:  # type: ignore[no-redef]
        return x * 100

    out = frame(sp, 3).map("step(x) AS x", udfs=[first]).map("step(x) AS x", udfs=[step])

    assert [row["x"] for row in out.take_all()] == [100, 200, 300]


def test_what_a_function_raises_is_the_cause(sp: Session) -> None:
    def broken(x: int) -> int:
        return 1 // (x - 150)

    with pytest.raises(TaskError, match="ZeroDivisionError") as error:
        frame(sp).map("broken(x) AS y", udfs=[broken]).take_all()
    assert isinstance(error.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda x: x, "no name"),
        (eval("lambda: 0", {}), "no name"),
    ],
)
def test_a_lambda_has_no_name_to_call(sp: Session, function: Any, said: str) -> None:
    with pytest.raises(OptionError, match=said):
        frame(sp).map("x", udfs=[function])


def test_missing_annotations_are_named(sp: Session) -> None:
    def f(x: int, y) -> int:  # type: ignore[no-untyped-def]
        return x

    with pytest.raises(OptionError, match="parameter 'y'"):
        frame(sp).map("f(x, k)", udfs=[f])
    with pytest.raises(MillpondError, match="double"):
        frame(sp).map("double(x, k) AS d", udfs=[double])
    with pytest.raises(MillpondError, match="double"):
        frame(sp).map("double(x) AS d")


# ---- batches, partitions, groups -----------------------------------------------------


@pytest.mark.parametrize("format", ["arrow", "pandas", "numpy"])
def test_batches_in_three_formats(sp: Session, format: str) -> None:
    sizes = []

    def twice(batch: Any) -> Any:
        x = batch["x"]
        total = pc.multiply(x, 2) if format == "arrow" else x * 2
        return {"y": total, "n": [len(x)] * len(x)}

    out = frame(sp, 100).repartition(1).map_batches(twice, batch_size=30, format=format)
    rows = out.take_all()

    sizes = [row["n"] for row in rows]
    assert [row["y"] for row in rows] == [2 * i for i in range(100)]
    assert sizes == [30] * 90 + [10] * 10


@pytest.mark.parametrize("format", ["arrow", "pandas", "numpy"])
def test_nested_values_and_nulls_come_back_as_they_went(sp: Session, format: str) -> None:
    maps = pa.array([[("k", 1)], None, []], pa.map_(pa.string(), pa.int64()))
    given = {
        "list": [[1, 2], None, []],
        "struct": [{"a": 1, "b": "x"}, None, {"a": None, "b": None}],
        "map": maps,
        "number": pa.array([7, None, -1], pa.int32()),
        "none": pa.array([None, None, None], pa.int16()),
    }
    nested = sp.from_arrow(pa.table(given))

    same = nested.map_batches(lambda batch: batch, format=format, schema=nested.schema)

    assert same.take_all() == nested.take_all()


class Counter:
    def __init__(self) -> None:
        self.made = id(self)

    def __call__(self, batch: pa.Table) -> pa.Table:
        return pa.table({"made": [self.made] * batch.num_rows})


def test_a_class_is_built_once_per_worker(sp: Session) -> None:
    made = frame(sp).map_batches(Counter, batch_size=5).group_by("made").agg("count(*) AS n")

    assert 1 <= made.count() <= 2


def test_a_class_of_partitions_and_one_of_groups_are_built_once_per_worker(sp: Session) -> None:
    spread = frame(sp).repartition(7, by_rows=True).map_partitions(Counter, cpus=2)
    groups = frame(sp).map_groups("k", Counter, cpus=0.5)

    for made in (spread, groups):
        found = made.to_arrow()["made"]
        assert len(found) == 200
        assert 1 <= len(found.unique()) <= 2


def test_partitions_and_groups(sp: Session) -> None:
    def total(rows: pa.Table) -> dict[str, Any]:
        return {"k": [rows["k"][0].as_py()], "n": [rows.num_rows], "s": [pc.sum(rows["x"]).as_py()]}

    spread = frame(sp).repartition(3, by="k")

    by_partition = spread.map_partitions(total).sort("k").take_all()
    by_group = frame(sp).map_groups("k", total).sort("k").take_all()
    want = frame(sp).group_by("k").agg("count(*) AS n", "sum(x)::BIGINT AS s").sort("k").take_all()
    assert by_partition == by_group == want


def test_groups_of_null_and_two_keys(sp: Session) -> None:
    rows = [{"a": None, "b": 1.5}, {"a": None, "b": 1.5}, {"a": 1, "b": float("nan")}] * 2
    given = sp.from_items(rows).repartition(3, by_rows=True)

    def size(group: pa.Table) -> dict[str, Any]:
        return {"n": [group.num_rows]}

    assert sorted(r["n"] for r in given.map_groups(["a", "b"], size).take_all()) == [2, 4]


@pytest.mark.parametrize("shape", ["auto", "staged"])
def test_a_function_of_two_cpus_is_called_once_a_row_before_an_aggregate(shape: str) -> None:
    """What it gave is handed over to a stage of one CPU, which does not call it again."""

    def twice(batch: pa.Table) -> pa.Table:
        return batch.set_column(0, "x", pc.multiply(batch["x"], 2))

    with Session(options(split_bytes=400, threads=2, shape=shape)) as sp:
        doubled = frame(sp).map_batches(twice, cpus=2)
        assert doubled.group_by().agg("sum(x) AS s").take_all() == [{"s": 2 * sum(range(200))}]
        assert doubled.count() == 200
        assert doubled.limit(3).take_all()[-1]["x"] == 4
        assert sp.sql("SELECT max(x) AS m FROM d", d=doubled).take_all() == [{"m": 398}]


def test_functions_of_much_memory_are_called_one_at_a_time(sp: Session, tmp_path: Path) -> None:
    busy = str(tmp_path / "busy")

    def alone(batch: pa.Table) -> pa.Table:
        import os

        os.mkdir(busy)  # An error if another has it.
        os.rmdir(busy)
        return batch

    more_than_half = sp.options.memory_limit_bytes * 2 // 3
    spread = frame(sp).repartition(7, by_rows=True)
    called = spread.map_batches(alone, memory=more_than_half)
    assert called.count() == frame(sp).count()
    assert called.schema == frame(sp).schema


class NoException(BaseException):
    """As `asyncio.CancelledError` is."""


@pytest.mark.parametrize("error", [NoException("odd"), SystemExit(3)], ids=["odd", "exit"])
def test_whatever_a_function_raises_is_an_error_of_the_task(
    sp: Session, error: BaseException
) -> None:
    def fails(*given: Any) -> Any:
        raise error

    spread = frame(sp).repartition(2, by_rows=True)
    for made in (
        lambda: spread.map(fails, schema={"x": "BIGINT"}),
        lambda: spread.map_batches(fails, schema={"x": "BIGINT"}),
        lambda: spread.map(fails),  # Tried in this process, for its columns.
    ):
        with pytest.raises(TaskError, match=f"fails raised {type(error).__name__}"):
            made().take_all()


def test_more_than_the_machine_has_is_an_error_at_once(sp: Session) -> None:
    with pytest.raises(OptionError, match=r"map_batches\(\): memory=99,000,000,000,000 bytes, and"):
        frame(sp).map_batches(lambda b: b, memory="99TB")
    with pytest.raises(OptionError, match=r"map_groups\(\): memory: 'much' is no size"):
        frame(sp).map_groups("k", lambda b: b, memory="much")
    with pytest.raises(OptionError, match="cpus=99"):
        frame(sp).map_batches(lambda b: b, cpus=99)
    with pytest.raises(OptionError, match=r"map_partitions\(\): cpus=99"):
        frame(sp).map_partitions(lambda b: b, cpus=99)
    with pytest.raises(OptionError, match=r"map_groups\(\): gpus=1, and this machine has no GPU"):
        frame(sp).map_groups("k", lambda b: b, gpus=1)


def test_what_cannot_travel_is_named(sp: Session) -> None:
    lock = threading.Lock()

    def locked(row: dict[str, Any]) -> dict[str, Any]:
        with lock:
            return row

    with pytest.raises(MillpondError, match=r"'lock', a lock"):
        frame(sp).map(locked)


def test_a_row_that_does_not_fit_names_field_and_row(sp: Session) -> None:
    def late(row: dict[str, Any]) -> dict[str, Any]:
        return {"y": "text" if row["x"] == 150 else row["x"]}

    with pytest.raises(TaskError, match=r"'text' in the field 'y' of row"):
        frame(sp).map(late).take_all()


def test_booleans_are_plain_for_functions(sp: Session) -> None:
    def negated(batch: pa.Table) -> dict[str, Any]:
        return {"no": pc.invert(batch["yes"])}

    flags = frame(sp, 10).map("x % 2 = 0 AS yes").map_batches(negated)

    assert flags.filter("no").count() == 5
    assert flags.to_arrow().schema.field("no").type == pa.bool_()


# ---- kept results --------------------------------------------------------------------


def test_frames_derived_from_a_computed_one_reuse_its_rows(sp: Session) -> None:
    computed = frame(sp).map("x, random() AS r").compute()
    planned: list[StagePlanned] = []
    sp.listen(lambda e: planned.append(e) if isinstance(e, StagePlanned) else None)

    first = [row["r"] for row in computed.take_all()]
    again = [row["r"] for row in computed.filter("x >= 0").sort("x").take_all()]

    assert computed.is_computed()
    assert first == again
    assert [row["r"] for row in computed.recompute().take_all()] != first


def test_a_computed_frame_keeps_partitions_keys_and_types(sp: Session) -> None:
    spread = frame(sp).map("x, k, x::HUGEINT AS h, true AS b").repartition(4, hash_by="k").compute()

    assert spread.num_partitions == 4
    assert spread.schema.types == ("BIGINT", "BIGINT", "HUGEINT", "BOOLEAN")
    groups = sp.partial_sql("SELECT k, sum(h) AS s FROM {0} GROUP BY k", spread)
    assert groups.sort("k").take_all() == [{"k": k, "s": sum(range(k, 200, 3))} for k in range(3)]
    assert sp.partial_sql("SELECT count(*) AS n FROM {0}", spread).count() == 4


def test_large_results_are_kept_in_files(sp: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millpond.runner.KEPT_IN_MEMORY_BYTES", 1_000)

    spread = frame(sp).map("*, x % 2 = 0 AS even").repartition(4, by_rows=True).compute()

    assert "arrow" in spread.map("x").explain(physical=True)
    assert [row["x"] for row in spread.take_all()] == list(range(200))
    assert spread.filter("even").count() == 100
    assert spread.num_partitions == 4


def test_columns_may_be_declared_in_arrows_words(sp: Session) -> None:
    columns = pa.schema([("half", pa.int16()), ("names", pa.list_(pa.string()))])
    frame = sp.from_items([4, 6]).map(
        lambda row: {"half": row["item"] // 2, "names": [str(row["item"])]}, schema=columns
    )
    assert str(frame.schema) == "half SMALLINT, names VARCHAR[]"
    assert frame.take_all() == [{"half": 2, "names": ["4"]}, {"half": 3, "names": ["6"]}]
    with pytest.raises(MillpondError, match=r"schema is a dict .* not list"):
        sp.from_items([1]).map(lambda row: row, schema=["a"])


def test_types_learnt_from_the_first_rows_have_room_for_the_others(sp: Session) -> None:
    """A decimal shows the digits that it has, and a NULL no type at all."""
    frame = sp.sql(
        """SELECT (i * 1.5)::DECIMAL(12, 1) AS x, CASE WHEN i > 200 THEN 'late' END AS late
           FROM range(2000) AS t(i)"""
    )
    same = frame.map(lambda row: {"x": row["x"], "twice": row["x"] * 2, "late": row["late"]})
    assert str(same.schema) == "x DECIMAL(12,1), twice DECIMAL(38,1), late VARCHAR"
    assert same.sort("x desc").take(1) == [
        {"x": Decimal("2998.5"), "twice": Decimal("5997.0"), "late": "late"}
    ]
    pandas = frame.map_batches(lambda batch: batch.assign(y=batch.x), format="pandas")
    assert pandas.sort("x desc").take(1)[0]["y"] == Decimal("2998.5")


@pytest.mark.slow
def test_a_worker_knows_pandas_once_the_function_has_imported_it() -> None:
    def plain(row: dict[str, Any]) -> dict[str, Any]:
        import sys

        return {"x": row["x"], "loaded": "pandas" in sys.modules}

    def late(batch: pa.Table) -> dict[str, Any]:
        import pandas as pd

        return {"x": pd.Series([1.5, None, 2.5])}

    with Session(options(threads=1)) as sp:
        few = frame(sp).limit(1)
        found = few.map(plain, schema={"x": "BIGINT", "loaded": "BOOLEAN"}).take_all()
        assert found == [{"x": 0, "loaded": False}]
        made = few.map_batches(late, schema={"x": "DOUBLE"}).take_all()
        assert made == [{"x": 1.5}, {"x": None}, {"x": 2.5}]
