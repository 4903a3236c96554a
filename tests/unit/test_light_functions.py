"""Functions of batches that cost less than to move their rows are called in this process."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from millpond.errors import TaskError
from millpond.options import options
from millpond.session import Session

Batch = dict[str, Any]


@pytest.fixture
def sp(monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    monkeypatch.setattr("millpond.physical.measured.MANY_ROWS", 1_000)
    monkeypatch.setattr("millpond.runner.TRAVEL_NS", 1e9)  # All are light, on any machine.
    with Session(options(threads=2)) as session:
        yield session


def numbers(sp: Session) -> Any:
    return sp.from_arrow(pa.table({"x": range(10_000)}))


def where(batch: Batch) -> Batch:
    return {"x": batch["x"], "pid": np.full(len(batch["x"]), os.getpid())}


def doubled(batch: Batch) -> Batch:
    return {"x": batch["x"] * 2}


class Stateful:
    def __call__(self, batch: Batch) -> Batch:
        return where(batch)


def pids(frame: Any) -> set[int]:
    return set(frame.to_arrow().column("pid").to_pylist())


SCHEMA = {"x": "BIGINT", "pid": "BIGINT"}


def test_a_light_function_is_called_here_and_explain_says_so(sp: Session) -> None:
    frame = numbers(sp).map_batches(where, schema=SCHEMA, format="numpy")

    assert "staged" in frame.explain(physical=True)  # Nobody has measured it.
    assert pids(frame) == {os.getpid()}
    assert "python where per batch, in this process" in frame.explain(physical=True)


@pytest.mark.slow
def test_a_heavy_function_is_called_elsewhere(sp: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millpond.runner.TRAVEL_NS", 0.0)

    frame = numbers(sp).map_batches(where, schema=SCHEMA, format="numpy")

    assert os.getpid() not in pids(frame)


@pytest.mark.slow
@pytest.mark.parametrize(
    "ways", ["class", "partitions", "few rows", "cpus"], ids=lambda way: way.replace(" ", "-")
)
def test_some_functions_are_never_called_here(sp: Session, ways: str) -> None:
    frame = numbers(sp)
    match ways:
        case "class":
            made = frame.map_batches(Stateful, schema=SCHEMA, format="numpy")
        case "partitions":
            made = frame.repartition(2).map_batches(where, schema=SCHEMA, format="numpy")
        case "few rows":
            few = sp.from_arrow(pa.table({"x": range(10)}))
            made = few.map_batches(where, schema=SCHEMA, format="numpy")
        case _:
            made = frame.map_batches(where, schema=SCHEMA, format="numpy", cpus=2)

    assert os.getpid() not in pids(made)


@pytest.mark.slow
def test_light_functions_in_line_give_what_stages_give(sp: Session, tmp_path: Path) -> None:
    def pipeline(session: Session) -> Any:
        frame = numbers(session).filter("x % 3 > 0")
        frame = frame.map_batches(doubled, schema={"x": "BIGINT"}, format="numpy", batch_size=999)
        frame = frame.map("x, x % 7 AS k").filter("k <> 2").map("x")
        return frame.map_batches(doubled, schema={"x": "BIGINT"}, format="numpy")

    with Session(options(threads=2, shape="staged")) as staged:
        expected = pipeline(staged).to_arrow()
    here = pipeline(sp)

    assert here.to_arrow() == expected  # In order, too.
    assert here.count() == len(expected)
    total = here.group_by().agg("sum(x)::BIGINT AS s").take_all()
    assert total == [{"s": sum(expected.column("x").to_pylist())}]
    assert here.write_parquet(tmp_path / "out").rows == len(expected)
    assert here.compute().sort("x desc").limit(1).take_all() == [
        {"x": max(expected.column("x").to_pylist())}
    ]
    assert "in this process" in pipeline(sp).explain(physical=True)


@pytest.mark.slow
def test_a_light_function_that_raises_says_where(sp: Session) -> None:
    def late(batch: Batch) -> Batch:
        if batch["x"][0] > 5_000:
            raise ValueError("too large")
        return batch

    frame = numbers(sp).map_batches(late, schema={"x": "BIGINT"}, format="numpy", batch_size=1_000)

    with pytest.raises(TaskError, match=r"late raised ValueError: too large") as raised:
        frame.to_arrow()
    assert isinstance(raised.value.__cause__, ValueError)
    assert numbers(sp).count() == 10_000  # The session goes on.


@pytest.mark.slow
def test_frames_that_join_after_functions_are_staged(sp: Session) -> None:
    one = numbers(sp).map_batches(doubled, schema={"x": "BIGINT"}, format="numpy")

    assert one.join(numbers(sp), "x").count() == 5_000
    assert one.union(one).count() == 20_000
    twice = sp.sql("SELECT a.x FROM t AS a JOIN t AS b USING (x)", t=one)
    assert twice.count() == 10_000
