"""A batch of a function is the same, whether its rows come in one piece or in several."""

import datetime as dt
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from millpond.engine.pieces import filled
from millpond.engine.python import apply
from millpond.engine.values import as_format
from millpond.plan.nodes import PythonCall

KINDS: dict[str, tuple[pa.DataType, list[Any]]] = {
    "whole": (pa.int32(), [1, 2, 3, 4]),
    "whole with NULL": (pa.int64(), [1, None, 3, 4]),
    "unsigned": (pa.uint64(), [2**64 - 1, 0, 1, 2]),
    "float": (pa.float64(), [1.5, float("nan"), None, -0.0]),
    "flag": (pa.bool_(), [True, False, True, False]),
    "flag with NULL": (pa.bool_(), [True, None, False, True]),
    "text": (pa.string(), ["a", None, "日本", ""]),
    "bytes": (pa.binary(), [b"\x00", None, b"", b"x"]),
    "date": (pa.date32(), [dt.date(2020, 1, 1), None, dt.date(1969, 1, 1), dt.date(1, 1, 1)]),
    "time": (pa.time64("us"), [dt.time(1, 2, 3), None, dt.time(0), dt.time(23)]),
    "moment": (pa.timestamp("us"), [dt.datetime(2020, 1, 1), None, dt.datetime(1970, 1, 1), None]),
    "zoned": (pa.timestamp("us", "UTC"), [0, 1, None, 3]),
    "money": (pa.decimal128(9, 2), [Decimal("1.25"), None, Decimal("-1.00"), Decimal("0.00")]),
    "list": (pa.list_(pa.int64()), [[1], None, [], [2, 3]]),
    "array": (pa.list_(pa.float32(), 2), [[1, 2], [3, 4], [5, 6], [7, 8]]),
    "struct": (pa.struct([("a", pa.int64())]), [{"a": 1}, None, {"a": None}, {"a": 2}]),
    "map": (pa.map_(pa.string(), pa.int64()), [[("k", 1)], None, [], [("l", None)]]),
}


@pytest.mark.parametrize("format", ["numpy", "pandas"])
@pytest.mark.parametrize("kind", KINDS)
def test_pieces_look_like_one(kind: str, format: str) -> None:
    type_, values = KINDS[kind]
    schema = pa.schema([("x", type_)])
    whole = pa.record_batch([pa.array(values, type_)], schema=schema)
    pieces = pa.Table.from_batches([whole.slice(0, 1), whole.slice(1)], schema)

    one, many = as_format(whole, format), as_format(pieces, format)

    if format == "pandas":
        pd.testing.assert_frame_equal(one, many)
        assert repr(one["x"].tolist()) == repr(many["x"].tolist())
    else:
        assert one["x"].dtype == many["x"].dtype
        assert repr(one["x"].tolist()) == repr(many["x"].tolist())


@pytest.mark.parametrize("first", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_numpy_s_arrays_are_filled_piece_by_piece(kind: str, first: int) -> None:
    type_, values = KINDS[kind]
    schema = pa.schema([("x", type_)])
    whole = pa.record_batch([pa.array(values, type_)], schema=schema)

    (found,) = filled([whole.slice(0, first), whole.slice(first)], schema, 4)

    one, many = as_format(whole, "numpy")["x"], as_format(found, "numpy")["x"]
    assert one.dtype == many.dtype
    assert repr(one.tolist()) == repr(many.tolist())


def test_a_batch_of_any_size_takes_no_more_room_than_its_rows() -> None:
    whole = pa.record_batch({"x": [1, 2, 3]})

    (found,) = filled([whole.slice(0, 1), whole.slice(1)], whole.schema, 1 << 60)

    assert as_format(found, "numpy")["x"].tolist() == [1, 2, 3]


@pytest.mark.parametrize("format", ["arrow", "numpy", "pandas"])
def test_a_function_gets_batches_of_its_size_however_they_come(format: str) -> None:
    import cloudpickle

    def sizes(batch: Any) -> dict[str, Any]:
        x = np.asarray(batch["x"])
        return {"first": [int(x[0])], "n": [len(x)]}

    given = pa.schema([("x", pa.int64())])
    wanted = pa.schema([("first", pa.int64()), ("n", pa.int64())])
    batches = [pa.record_batch([pa.array(range(a, b))], schema=given)
               for a, b in ((0, 3), (3, 4), (4, 11), (11, 12))]  # fmt: skip
    call = PythonCall(cloudpickle.dumps(sizes), "batch", "sizes", "", batch_size=5, format=format)

    rows = pa.Table.from_batches(apply(call, batches, given, wanted)).to_pylist()

    assert rows == [{"first": 0, "n": 5}, {"first": 5, "n": 5}, {"first": 10, "n": 2}]
