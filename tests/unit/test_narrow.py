"""Decimals in 64 bits on their way to a file."""

from decimal import Decimal

import pyarrow as pa
import pytest

from millpond.engine.narrow import narrow_schema, narrowed

LARGEST = Decimal("9999999999999999.99")
VALUES = [Decimal("0.00"), None, Decimal("-0.01"), LARGEST, -LARGEST, None, Decimal("12.30")]


@pytest.mark.parametrize("first", range(len(VALUES) + 1))
def test_the_values_and_nulls_are_the_same(first: int) -> None:
    columns = [pa.array(VALUES, pa.decimal128(18, 2)), pa.array(range(len(VALUES)))]
    batch = pa.record_batch(columns, names=["d", "i"]).slice(first)
    found = narrowed(batch)
    assert found.column("d").type == pa.decimal64(18, 2)
    assert found.to_pylist() == batch.to_pylist()
    assert found.schema == narrow_schema(batch.schema)
    found.validate(full=True)


def test_wider_ones_and_other_types_stay_as_they_are() -> None:
    values = [pa.array([Decimal(1)], pa.decimal128(19, 0)), pa.array(["a"])]
    batch = pa.record_batch(values, names=["d", "s"])
    assert narrowed(batch) is batch


def test_an_arrow_that_writes_no_such_decimals_gets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millpond.engine.narrow._TO_PARQUET", False)
    batch = pa.record_batch([pa.array(VALUES, pa.decimal128(18, 2))], names=["d"])
    assert narrowed(batch) is batch
