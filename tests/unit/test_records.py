"""Record files come out sorted, stable, each record once, whichever way they take."""

from collections.abc import Callable
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from millpond.errors import FileUnreadable, WorkerLost
from millpond.formats.fixed import Layout
from millpond.shuffle import records
from millpond.shuffle.records import RecordSort, SortedFiles, sort_files
from millpond.storage import LocalStorage

LAYOUT = Layout.of({"key": 4, "value": 8}, "read_fixed")


def run(
    tmp_path: Path,
    inputs: list[bytes],
    memory_bytes: int,
    check: Callable[[], None] = lambda: None,
) -> SortedFiles:
    for folder in ("in", "out", "scratch"):
        (tmp_path / folder).mkdir()
    for i, data in enumerate(inputs):
        (tmp_path / "in" / f"{i}.dat").write_bytes(data)
    files = list(LocalStorage().list(str(tmp_path / "in")))
    how = RecordSort(LAYOUT, slice(0, 4), memory_bytes, 2, check)
    try:
        return sort_files(
            files, lambda i: str(tmp_path / "out" / f"{i}"), str(tmp_path / "scratch"), how
        )
    finally:
        assert not list((tmp_path / "scratch").iterdir())


def made(n: int, letters: int) -> list[bytes]:
    """`n` records in three files; the value is the place in the input."""
    rows = np.random.default_rng(5).integers(0, letters, (n, 12), np.uint8)
    rows[:, 4:] = np.arange(n, dtype=">u8").view(np.uint8).reshape(n, 8)
    return [rows[: n // 2].tobytes(), b"", rows[n // 2 :].tobytes()]


def content(done: SortedFiles) -> bytes:
    return b"".join(Path(path).read_bytes() for path in done.paths)


def in_order(data: bytes) -> bytes:
    return b"".join(sorted(data[i : i + 12] for i in range(0, len(data), 12)))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "_READ_BYTES", 1000)
    monkeypatch.setattr(records, "_LEAST_RANGE_BYTES", 12_000)


@pytest.mark.parametrize("letters", [1, 2, 256])
@pytest.mark.parametrize("memory_bytes", [1000, 1 << 30])
def test_records_come_out_in_order(tmp_path: Path, letters: int, memory_bytes: int) -> None:
    inputs = made(10_000, letters)

    done = run(tmp_path, inputs, memory_bytes)

    assert done.rows == 10_000
    assert (done.read_bytes > 120_000) == (memory_bytes == 1000)
    assert content(done) == in_order(b"".join(inputs))


def test_a_heavy_key_does_not_make_a_heavy_range(tmp_path: Path) -> None:
    done = run(tmp_path, made(5000, 1), 1000)

    sizes = [Path(path).stat().st_size for path in done.paths]
    assert len(sizes) == 5
    assert max(sizes) < 1.2 * sum(sizes) / 5


@pytest.mark.parametrize("memory_bytes", [1000, 1 << 30])
@pytest.mark.parametrize("calls", [1, 20, 60])
def test_it_can_be_ended_and_leaves_no_part(tmp_path: Path, memory_bytes: int, calls: int) -> None:
    ticks = count()

    def check() -> None:
        if next(ticks) >= calls:
            raise WorkerLost("the task was cancelled")

    with pytest.raises(WorkerLost):
        run(tmp_path, made(10_000, 256), memory_bytes, check)


def test_nothing_is_sorted_too(tmp_path: Path) -> None:
    assert content(run(tmp_path, [b""], 1 << 30)) == b""


def test_a_file_of_broken_records_is_named_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(FileUnreadable, match=r"0\.dat: 13 bytes are 1 records of 12 bytes and 1"):
        run(tmp_path, [bytes(13)], 1 << 30)
    assert not list((tmp_path / "out").iterdir())
