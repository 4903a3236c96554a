"""An Arrow table as a plan's value."""

import pickle
import tracemalloc

import numpy as np
import pyarrow as pa

from millpond.formats.memory import ArrowRows


def test_rows_are_told_apart_without_a_copy_of_them() -> None:
    numbers = np.arange(8_000_000)  # 64 MB.
    rows, same = (ArrowRows(pa.table({"a": numbers})) for _ in range(2))
    other = ArrowRows(pa.table({"a": np.concatenate([numbers[:-1], [0]])}))
    allocated = pa.default_memory_pool().max_memory()
    tracemalloc.start()

    assert rows == same
    assert rows != other

    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000
    assert pa.default_memory_pool().max_memory() - allocated < 1_000_000


def test_the_digest_is_one_of_content() -> None:
    table = pa.table({"a": [1, None], "s": ["x", "y"]})
    assert pickle.loads(pickle.dumps(ArrowRows(table))).digest == ArrowRows(table).digest
    assert ArrowRows(table.rename_columns(["b", "s"])).digest != ArrowRows(table).digest
    assert ArrowRows(table.slice(0, 1)).digest != ArrowRows(table).digest
