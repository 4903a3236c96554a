"""Small training sets and the engine's part of a filter, for the loader's tests."""

from collections.abc import Callable
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from millpond.loader.reader import Dataset
from millpond.loader.selection import Predicate


def select(words: str, schema: pa.Schema) -> Predicate:
    """A filter by bare DuckDB: what a session hands in."""

    def mask(batch: pa.RecordBatch) -> Any:
        rows = pa.Table.from_batches([batch])
        with duckdb.connect() as connection:
            connection.register("rows", rows)
            kept = connection.sql(f"SELECT coalesce(({words}), false) AS k FROM rows")
            return kept.fetchnumpy()["k"]

    return Predicate(tuple(name for name in schema.names if name in words), mask)


def rows(n: int, first: int = 0) -> pa.Table:
    """Rows that tell their own number in columns of several kinds."""
    ids = np.arange(first, first + n)
    return pa.table(
        {
            "id": ids,
            "name": pa.array([f"row {i}" for i in ids], pa.string()),
            "tokens": pa.array([[int(i)] * (int(i) * 7 % 23) for i in ids], pa.list_(pa.int32())),
            "vector": pa.array([[float(i)] * 80 for i in ids], pa.list_(pa.float32(), 80)),
        }
    )


Make = Callable[..., Dataset]


def ids(batches: Any) -> list[int]:
    """The ids of all batches, in order."""
    return [int(i) for batch in batches for i in batch["id"]]
