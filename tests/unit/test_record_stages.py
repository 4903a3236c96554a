"""A sort of records as tasks gives the bytes of the sort in one task, and resumes."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import millpond
from millpond.errors import FileUnreadable, PathNotFound
from tests.support.sessions import Counted

FIELDS = {"key": 4, "value": 8}
WIDTH = 12


def made(folder: Path, n: int, letters: int, files: int = 3) -> list[bytes]:
    """`n` records; the value is the place in the input, so stable order is byte order."""
    rows = np.random.default_rng(3).integers(0, letters, (n, WIDTH), np.uint8)
    rows[:, 4:] = np.arange(n, dtype=">u8").view(np.uint8).reshape(n, 8)
    folder.mkdir()
    for i, some in enumerate(np.array_split(rows, files)):
        (folder / f"{i}.dat").write_bytes(some.tobytes())
    return [row.tobytes() for row in rows]


def content(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.glob("*.bin")))


@pytest.fixture(params=["parts", "rows"])
def staged(request: pytest.FixtureRequest) -> Iterator[Counted]:
    with Counted(shape="staged", verify=request.param) as run:
        yield run


@pytest.mark.parametrize("letters", [1, 2, 256], ids=["all equal", "heavy", "uniform"])
def test_records_sort_in_tasks(staged: Counted, tmp_path: Path, letters: int) -> None:
    rows = made(tmp_path / "in", 9000, letters)
    sorted_ = staged.session.read_fixed(str(tmp_path / "in"), FIELDS).sort("key")
    done = sorted_.write_fixed(str(tmp_path / "out"))

    assert done.rows == 9000
    assert content(tmp_path / "out") == b"".join(sorted(rows))
    sampled, splits, ranges = (staged.finished[stage] for stage in range(3))
    assert (sampled, splits, ranges) == (1, splits, len(done.files))
    assert splits >= 3
    assert ranges >= 6
    sizes = [path.stat().st_size for path in (tmp_path / "out").glob("*.bin")]
    assert max(sizes) < 2 * 9000 * WIDTH / ranges  # Also where one key has more than a range.


def test_as_many_files_as_were_asked_for(staged: Counted, tmp_path: Path) -> None:
    rows = made(tmp_path / "in", 2000, 256)
    frame = staged.session.read_fixed(str(tmp_path / "in"), FIELDS).repartition(5)
    done = frame.sort("key").write_fixed(str(tmp_path / "out"))
    assert len(done.files) == 5
    assert content(tmp_path / "out") == b"".join(sorted(rows))


@pytest.mark.parametrize("shape", ["auto", "staged"])
@pytest.mark.parametrize(("n", "files"), [(0, 1), (0, 3), (1, 1), (2, 3)])
def test_few_records_or_none(tmp_path: Path, shape: str, n: int, files: int) -> None:
    rows = made(tmp_path / "in", n, 256, files)
    with millpond.init(shape=shape) as sp:
        done = sp.read_fixed(str(tmp_path / "in"), FIELDS).sort("key").write_fixed(
            str(tmp_path / "out"))  # fmt: skip
    assert done.rows == n
    assert content(tmp_path / "out") == b"".join(sorted(rows))


@pytest.mark.parametrize("shape", ["auto", "staged"])
def test_a_file_that_is_cut_after_the_plan_is_named(tmp_path: Path, shape: str) -> None:
    made(tmp_path / "in", 5000, 256)
    with millpond.init(shape=shape) as sp:
        frame = sp.read_fixed(str(tmp_path / "in"), FIELDS).sort("key")
        (tmp_path / "in/1.dat").write_bytes(bytes(1001))
        with pytest.raises(FileUnreadable, match=r"1\.dat"):
            frame.write_fixed(str(tmp_path / "out"))
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_a_folder_without_files_is_an_error_at_the_call(tmp_path: Path) -> None:
    with millpond.init() as sp, pytest.raises(PathNotFound):
        sp.read_fixed(str(tmp_path), FIELDS)


def test_a_rerun_finds_the_parts(tmp_path: Path) -> None:
    rows = made(tmp_path / "in", 4000, 256)
    root = str(tmp_path / "root")
    for target in ("first", "second"):
        with Counted(shape="staged", data_root=root) as run:
            frame = run.session.read_fixed(str(tmp_path / "in"), FIELDS)
            frame.sort("key").write_fixed(str(tmp_path / target))
            again = run.finished
        assert content(tmp_path / target) == b"".join(sorted(rows))
    assert again[1] == 0  # The splits were not read again.
