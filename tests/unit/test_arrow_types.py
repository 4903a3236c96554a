"""Plain Arrow types and the engine's: there and back without a loss, also of slices."""

import duckdb
import pyarrow as pa
import pytest

from millpond.engine.arrow_types import given as as_given
from millpond.engine.arrow_types import plain, plain_schema

ROWS = """
SELECT if(i = 1, NULL, i % 2 = 0) AS even, [i % 2 = 0, NULL] AS evens,
       {'a': i % 2 = 0, 'h': i} AS pair, if(i = 2, NULL, [{'a': i % 2 = 0}]) AS pairs,
       MAP {i: i % 2 = 0} AS mapped, '{"a":1}'::JSON AS js, uuid() AS id, {'l': [i > 2]} AS deep,
       [i % 2 = 0, true]::BOOLEAN[2] AS fixed
FROM range(7) t(i)
"""


@pytest.fixture(scope="module")
def rows() -> pa.RecordBatch:
    connection = duckdb.connect(config={"arrow_lossless_conversion": True})
    return _batch(connection)


def _batch(connection: duckdb.DuckDBPyConnection) -> pa.RecordBatch:
    relation = connection.sql(ROWS)
    make = getattr(relation, "to_arrow_table", None) or relation.fetch_arrow_table
    return make().to_batches()[0]


@pytest.mark.parametrize(("first", "count"), [(0, 7), (2, 3), (0, 0), (5, 2), (0, 4)])
def test_plain_and_back_is_the_same(rows: pa.RecordBatch, first: int, count: int) -> None:
    given = rows.slice(first, count)

    seen = plain(given, plain_schema(given.schema))
    back = as_given(seen, given.schema)

    seen.validate(full=True)
    back.validate(full=True)
    assert back.to_pylist() == given.to_pylist()


def test_users_see_types_that_libraries_know(rows: pa.RecordBatch) -> None:
    seen = plain(rows, plain_schema(rows.schema))

    assert seen.schema.field("even").type == pa.bool_()
    assert seen.column("even").to_pylist()[:3] == [True, None, True]
    assert seen.schema.field("js").type == pa.string()
    assert seen.column("pairs").to_pylist()[1:3] == [[{"a": False}], None]
