"""What a function of one row gives, as a batch; and how finely its source is cut."""

from pathlib import Path

import pyarrow as pa
import pytest

import millpond
from millpond.engine.python import apply
from millpond.engine.rows import as_rows, from_rows
from millpond.engine.values import FunctionError
from millpond.physical.planner import ROWS_EACH
from millpond.plan.functions import python_call

WANTED = pa.schema([("a", pa.int64()), ("b", pa.int64())])


def test_a_missing_key_is_null() -> None:
    assert from_rows([{"b": 1}], WANTED, "f").to_pylist() == [{"a": None, "b": 1}]


@pytest.mark.parametrize("row", [{"a": 1, "c": 2}, {"a": 1, "b": 2, "c": 3}, {"c": 1}])
def test_a_key_without_a_column_is_an_error_however_many_keys_there_are(row: dict) -> None:
    with pytest.raises(FunctionError, match="f gave the field 'c' for row 7"):
        from_rows([row], WANTED, "f", first=7)


def test_a_source_below_a_function_is_cut_for_all_processors(tmp_path: Path) -> None:
    with millpond.init(progress=False) as sp:
        rows = sp.sql(f"SELECT range AS id FROM range({5 * ROWS_EACH})")
        (path,) = rows.write_parquet(str(tmp_path)).files
        source = sp.read_parquet(path)
        function = source.filter("id > 0").map(lambda row: row, schema={"id": "BIGINT"})

        assert source.num_partitions == 1
        assert function.num_partitions == 5
        # A few rows need one task; what the user asked for stays.
        assert "5 tasks" not in function.limit(3).explain(physical=True)
        assert source.repartition(2).map(len, schema={"id": "BIGINT"}).num_partitions == 2
        assert source.map_partitions(len, schema={"id": "BIGINT"}).num_partitions == 1
        batches = source.map_batches(len, schema={"id": "BIGINT"}, batch_size=2 * ROWS_EACH)
        assert batches.num_partitions == 2


def test_rows_are_those_of_arrow_whatever_a_column_is_called() -> None:
    names = ["a", "it's", 'a "b"', "{x}", "\\", "); import os; (", "é\n"]
    batch = pa.record_batch({name: [i, None] for i, name in enumerate(names)})

    assert as_rows(batch) == batch.to_pylist()
    assert as_rows(batch.slice(1)) == batch.slice(1).to_pylist()
    assert as_rows(pa.record_batch({"only": [[1, 2]]})) == [{"only": [1, 2]}]


@pytest.mark.parametrize("kind", ["row", "flat", "filter"])
def test_all_rows_of_a_large_batch_come_in_order(kind: str) -> None:
    batch = pa.record_batch({"a": list(range(5000))})
    function = {
        "row": lambda row: row,
        "flat": lambda row: [row] * (row["a"] % 2),
        "filter": lambda row: row["a"] % 2,
    }[kind]
    call = python_call(function, kind, "f()")

    made = list(apply(call, [batch], batch.schema, batch.schema))

    wanted = range(5000) if kind == "row" else range(1, 5000, 2)
    assert [a for piece in made for a in piece.column(0).to_pylist()] == list(wanted)


def test_an_error_names_the_row_of_the_partition() -> None:
    batch = pa.record_batch({"a": list(range(3000))})
    call = python_call(lambda row: {"a": 1 // (2500 - row["a"])}, "row", "f()")

    with pytest.raises(FunctionError, match=r"ZeroDivisionError.* on row 5500 of the partition"):
        list(apply(call, [batch.slice(0, 2000), batch.slice(0, 1000), batch], WANTED, WANTED))
