"""Functions of rows in a line give what they give one by one, whatever they hand on."""

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import millpond
from millpond.engine.python import apply
from millpond.engine.values import FunctionError
from millpond.options import options
from millpond.plan.functions import python_call
from millpond.session import Session

NAMED = pa.schema([("a", pa.int64()), ("s", pa.string())])
GIVEN = pa.record_batch({"a": list(range(5000)), "s": [f"n{i}" for i in range(5000)]})
Step = tuple[str, Callable[..., Any], pa.Schema]


def of(kind: pa.DataType) -> pa.Schema:
    return pa.schema([("v", kind)])


def said(row: dict[str, Any]) -> dict[str, Any]:
    return {"a": 0, "s": f"{list(row)} {[type(v).__name__ for v in row.values()]} {row!r}"}


def hands_on(value: Any, kind: pa.DataType) -> list[Step]:
    """A value that Arrow would change, or not, and a function that tells what it got."""
    return [("row", lambda row: {"v": value}, of(kind)), ("row", said, NAMED)]


SHARED = {"a": 1, "s": "held by the script"}
KEPT: list[dict[str, Any]] = []


def changes(row: dict[str, Any]) -> dict[str, Any]:
    row["a"] += 1
    row["s"] += "!"
    return row


def keeps(row: dict[str, Any]) -> dict[str, Any]:
    KEPT.append(row)
    if len(KEPT) > 1:
        KEPT[-2]["s"] = "changed later"
    return row


def empties(row: dict[str, Any]) -> bool:
    return bool(row.pop("a") % 3) and not row.clear()


LINES: dict[str, list[Step]] = {
    "a float for a whole number": hands_on(3.0, pa.int64()),
    "a whole number for a float": hands_on(3, pa.float64()),
    "a float of half the width": hands_on(0.1, pa.float32()),
    "true for a number": hands_on(True, pa.int64()),
    "numpy's number": hands_on(np.int32(7), pa.int64()),
    "numpy's float": hands_on(np.float64(7), pa.float64()),
    "too large a number": hands_on(2**63, pa.int64()),
    "too large for four bytes": hands_on(2**31, pa.int32()),
    "a negative one": hands_on(-1, pa.uint8()),
    "not a number": hands_on(float("nan"), pa.float64()),
    "no value": hands_on(None, pa.int64()),
    "text for a number": hands_on("7", pa.int64()),
    "half a letter": hands_on("\ud800", pa.string()),
    "other letters": hands_on("é 漢", pa.string()),
    "bytes for text": hands_on(b"x", pa.string()),
    "a moment for a day": hands_on(datetime(2020, 1, 2, 3), pa.date32()),
    "a day": hands_on(date(2020, 1, 2), pa.date32()),
    "a moment with a zone": hands_on(datetime(2020, 1, 2, tzinfo=UTC), pa.timestamp("us", "UTC")),
    "a decimal": hands_on(Decimal("1.5"), pa.decimal128(10, 3)),
    "a tuple for a list": hands_on((1, 2), pa.list_(pa.int64())),
    "a list that is changed": [
        ("row", lambda row: {"v": [row["a"]]}, of(pa.list_(pa.int64()))),
        ("filter", lambda row: row["v"].append(1) or True, of(pa.list_(pa.int64()))),
        ("row", said, NAMED),
    ],
    "a dict that the script holds": [
        ("row", lambda row: SHARED, NAMED), ("row", changes, NAMED), ("row", changes, NAMED)],
    "what it got": [("row", lambda row: row, NAMED), ("row", changes, NAMED)],
    "what it keeps and changes later": [
        ("row", changes, NAMED), ("row", keeps, NAMED), ("row", lambda row: row, NAMED)],
    "one row twice": [
        ("flat", lambda row: [row, row], NAMED), ("row", changes, NAMED),
        ("flat", lambda row: iter([row]), NAMED)],
    "a condition that empties its row": [
        ("filter", empties, NAMED), ("filter", empties, NAMED), ("row", changes, NAMED)],
    "conditions alone": [
        ("filter", lambda row: row["a"] % 2, NAMED), ("filter", lambda row: row["a"] % 3, NAMED)],
    "nothing left": [("filter", lambda row: None, NAMED), ("row", changes, NAMED)],
    "keys in another order": [
        ("row", lambda row: {"s": "x", "a": row["a"]}, NAMED), ("row", said, NAMED)],
    "a key that is missing": [
        ("row", lambda row: {"s": "x"} if row["a"] % 2 else row, NAMED), ("row", said, NAMED)],
    "a key too many": [("row", lambda row: {**row, "b": 1}, NAMED), ("row", said, NAMED)],
    "no row at all": [("row", lambda row: 7, NAMED), ("row", said, NAMED)],
    "the second one raises": [
        ("filter", lambda row: row["a"] > 9, NAMED), ("row", lambda row: 1 / 0, NAMED)],
}  # fmt: skip


def made(steps: Sequence[Step], *, together: bool) -> tuple[pa.Table | None, str]:
    """The rows, or what the error says."""
    calls = [(python_call(function, kind, "f()"), gives) for kind, function, gives in steps]
    rows: Iterator[pa.RecordBatch] = iter([GIVEN.slice(0, 3000), GIVEN.slice(3000)])
    try:
        if together:
            *earlier, (last, gives) = calls
            rows = apply(last, rows, NAMED, gives, earlier=earlier)
        else:
            before = NAMED
            for call, gives in calls:
                rows, before = apply(call, rows, before, gives), gives
        return pa.Table.from_batches(list(rows), calls[-1][1]), ""
    except FunctionError as error:
        return None, str(error)


@pytest.mark.parametrize("name", LINES)
def test_a_line_gives_what_its_functions_give_one_by_one(name: str) -> None:
    wanted = made(LINES[name], together=False)

    assert made(LINES[name], together=True) == wanted


def test_a_line_runs_without_arrow_between(monkeypatch: pytest.MonkeyPatch) -> None:
    from millpond.engine import rows

    called: list[int] = []
    column = rows._column
    monkeypatch.setattr(rows, "_column", lambda *args: called.append(1) or column(*args))
    steps: list[Step] = [("row", changes, NAMED)] * 3

    made(steps, together=True)

    # Columns × pieces of at most 2,048 rows: for the last function alone.
    assert len(called) == 2 * 3


@pytest.mark.parametrize("shape", ["auto", "staged"])
def test_types_learnt_from_rows_are_those_of_functions_one_by_one(shape: str) -> None:
    with Session(options(threads=2, shape=shape, split_bytes=1000)) as sp:
        items = sp.from_items([{"a": i, "d": Decimal(i) / 4} for i in range(500)])
        frame = (
            items.map(lambda row: {**row, "half": row["a"] / 2})
            .filter(lambda row: row["a"] % 2 == 0)
            .flat_map(lambda row: [{**row, "k": k} for k in range(row["a"] % 3)])
            .map(lambda row: {"d": row["d"] * 2, "h": row["half"], "k": row["k"]})
        )

        assert frame.explain().count("PythonBatches") == 1
        assert [f.type for f in frame.schema] == ["DECIMAL(5,2)", "DOUBLE", "BIGINT"]
        assert frame.take_all() == [
            {"d": Decimal(a) / 2, "h": a / 2, "k": k}
            for a in range(0, 500, 2)
            for k in range(a % 3)
        ]


def test_an_edit_of_any_of_them_is_another_stage(tmp_path: Any) -> None:
    with millpond.init(data_root=str(tmp_path), progress=False) as sp:
        items = sp.from_items([1, 2])

        def prints(add: int) -> str:
            frame = items.map(lambda row: {"item": row["item"] + add}).filter(lambda row: True)
            return sp._work.stages(frame.plan).stages[0].fingerprint

        assert prints(1) == prints(1) != prints(2)
