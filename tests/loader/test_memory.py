"""Output memory: used again when nobody looks at it, by one taker at a time."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from millpond.loader import open_dataset, write_dataset
from millpond.loader.memory import Memory, Pool

SIZE = 1 << 20


def start(block: np.ndarray) -> int:
    return block.__array_interface__["data"][0]


def test_a_block_is_used_again_when_no_view_of_it_is_left() -> None:
    pool = Pool()
    first = pool.take(SIZE)
    at = start(first)
    view = first.reshape(-1, 1024)[3:5]
    del first
    assert start(pool.take(SIZE)) != at
    del view
    assert at in {start(pool.take(SIZE)) for _ in range(2)}


def test_a_large_block_is_not_kept_for_small_ones() -> None:
    pool = Pool()
    pool.take(8 * SIZE)
    small = pool.take(SIZE)
    assert small.base.size == SIZE
    assert [block.size for block in pool._blocks] == [SIZE]


def test_two_sizes_in_turns_keep_a_block_each() -> None:
    pool = Pool()
    found = set()
    for _ in range(4):
        large, small = pool.take(8 * SIZE), pool.take(SIZE)
        found |= {start(large), start(small)}
        del large, small
    assert len(found) == 2


def test_threads_never_share_a_block() -> None:
    pool = Pool()

    def fill(number: int) -> bool:
        right = True
        for i in range(300):
            block = pool.take(64 << 10)
            block[:] = (number + i) % 251
            right &= bool((block == (number + i) % 251).all())
        return right

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(fill, range(4)))


@pytest.mark.parametrize("width", [511, 512, 520, 4096, 4104, 8192, 10_000])
def test_rows_to_the_very_end_of_the_range_are_gathered(width: int, tmp_path: Path) -> None:
    n = 40
    values = np.random.default_rng(width).integers(0, 256, (n, width), np.uint8)
    kind = pa.binary(width)
    table = pa.table(
        {"fixed": pa.array([row.tobytes() for row in values], kind),
         "ragged": pa.array([row[: i * width // n].tobytes() for i, row in enumerate(values)])}
    )  # fmt: skip
    write_dataset(table, str(tmp_path / "set"))
    rows = [*range(n), *reversed(range(n)), n - 1]
    assert open_dataset(str(tmp_path / "set"))[rows].equals(table.take(rows))


def test_an_empty_value_at_the_end_of_a_range_is_not_looked_at() -> None:
    memory = Memory(8192)
    assert memory.ragged(np.array([0, 8192]), np.array([8192, 8192])).size == 8192
