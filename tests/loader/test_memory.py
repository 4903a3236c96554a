"""Output memory: used again when nobody looks at it, by one taker at a time."""

import mmap
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest

from millpond.loader import open_dataset, write_dataset
from millpond.loader.batches import Share
from millpond.loader.flat import LocalShards
from millpond.loader.memory import Memory, Pool, map_file, will_need
from millpond.loader.reader import Dataset
from millpond.loader.shard_rows import ShardRows
from tests.support.loader_sets import Make, ids

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


@pytest.mark.parametrize("many", [True, False])
def test_pages_are_asked_for_with_and_without_a_call_for_many_ranges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, many: bool
) -> None:
    if not many:
        monkeypatch.setattr("millpond.loader.memory._own_process", lambda pid: -1)
    size = 4 << 20
    path = tmp_path / "file"
    path.write_bytes(bytes(size))
    with path.open("r+b") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        memory = Memory(size)
        map_file(memory.base, size, file.fileno())
        begins = memory.base + np.arange(0, size, mmap.PAGESIZE)
        will_need(begins[::-1], np.full(begins.size, 100))
    # Whoever reads them finds the file's bytes; asking for nothing at all is no error.
    assert not memory.bytes[:size].any()
    will_need(np.empty(0, np.int64), np.empty(0, np.int64))


class Recorded(ShardRows):
    """Rows that note what was asked for, and what was read before that."""

    asked: set[int]
    early: list[int]

    def prepare(self, whole: bool) -> bool:
        return True  # As if memory held none of it: what is there need not be asked for.

    def advise(self, rows: np.ndarray, columns: Any, count: int = 1) -> None:
        self.asked |= {row + i for row in rows.tolist() for i in range(count)}
        super().advise(rows, columns, count)

    def take(self, rows: np.ndarray, columns: Any, in_place: bool = False) -> Any:
        self.early += [row for row in rows.tolist() if row not in self.asked]
        return super().take(rows, columns, in_place)


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("shuffle", [False, "global", "block"])
def test_every_row_is_asked_for_before_it_is_read(make: Make, prefetch: int, shuffle: Any) -> None:
    ds = make(3000, rows_per_shard=1000)
    ds.rows.__class__ = Recorded
    rows = cast(Recorded, ds.rows)
    rows.asked, rows.early = set(), []
    blocks = {"block_rows": 10, "window_blocks": 20} if shuffle == "block" else {}
    loader = ds.loader(7, shuffle=shuffle, prefetch=prefetch, epochs=2, **blocks)
    assert sorted(ids(loader)) == sorted([*range(3000)] * 2)
    assert not rows.early


def test_groups_are_small_while_random_rows_come_from_the_disk(make: Make) -> None:
    ds = make(3000)
    shards = cast(LocalShards, cast(ShardRows, ds.rows).shards)
    steps = {
        (shuffle, resident): group_steps(ds, shards, shuffle, resident)
        for shuffle in ("global", "block")
        for resident in (False, True)
    }
    assert steps == {
        ("global", False): 4, ("global", True): 64, ("block", False): 64, ("block", True): 64,
    }  # fmt: skip


def group_steps(ds: Dataset, shards: LocalShards, shuffle: Any, resident: bool) -> int:
    shards.resident = resident
    return ds.loader(128, shuffle=shuffle)._maker(Share()).steps_per_group()


@pytest.mark.parametrize(("takes_s", "waits_s"), [(0.25, 0.25), (2.0, 1.0)])
def test_a_set_is_read_ahead_after_as_long_as_that_will_take(
    make: Make, monkeypatch: pytest.MonkeyPatch, takes_s: float, waits_s: float
) -> None:
    shards = cast(LocalShards, cast(ShardRows, make(400).rows).shards)
    monkeypatch.setattr("millpond.loader.flat._DISK_BYTES", shards.memory.size / takes_s)
    waited: list[float] = []
    monkeypatch.setattr(shards._stop, "wait", waited.append)
    shards._read_all()
    assert shards.resident
    assert waited == [waits_s]
