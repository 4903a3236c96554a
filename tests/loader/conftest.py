"""`make`, for all loader tests."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from millpond.loader.reader import Dataset, open_dataset
from millpond.loader.write import write_dataset
from tests.support.loader_sets import Make, rows, select

# The machine may be busy: a slow example is no failure of the order.
settings.register_profile("loader", deadline=None)
settings.load_profile("loader")


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
