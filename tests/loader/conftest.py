"""Small datasets and the engine's part of a filter, for all loader tests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import settings

from millpond.loader.reader import Dataset, open_dataset
from millpond.loader.selection import Predicate
from millpond.loader.write import write_dataset

# The machine may be busy: a slow example is no failure of the order.
settings.register_profile("loader", deadline=None)
settings.load_profile("loader")


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


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """`make(n)`: a dataset of n rows, in shards of 40 and record batches of 16."""
    made = 0

    def write(n: int, first: int = 0, **options: Any) -> Dataset:
        nonlocal made
        made += 1
        path = str(tmp_path / f"set{made}")
        options = {"rows_per_shard": 40, "batch_rows": 16, **options}
        write_dataset(rows(n, first), path, **options)
        return open_dataset(path, select=select)

    return write


def ids(batches: Any) -> list[int]:
    """The ids of all batches, in order."""
    return [int(i) for batch in batches for i in batch["id"]]
