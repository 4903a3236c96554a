"""A sort of fixed-width records: killed at any point, a damaged part, a disk that fills."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from millpond import events
from millpond.errors import DiskFull
from millpond.options import options
from millpond.session import Session

pytestmark = pytest.mark.slow
FIELDS = {"key": 10, "value": 22}
ROWS = 60_000

SCRIPT = """
import os, signal, sys
from millpond import events
from millpond.options import options
from millpond.session import Session

source, root, target, kind, k = sys.argv[1:6]
seen = 0
def count(event):
    global seen
    if kind and isinstance(event, getattr(events, kind)):
        seen += 1
        if seen == int(k):
            os.kill(os.getpid(), signal.SIGKILL)

given = options(split_bytes=300_000, threads=2, shape="staged", data_root=root, progress=False)
with Session(given) as sp:
    sp.listen(count)
    sp.read_fixed(source, {"key": 10, "value": 22}).sort("key").write_fixed(target)
"""


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("records")
    rows = np.random.default_rng(5).integers(0, 256, (ROWS, 32), np.uint8)
    rows[::3, :10] = 9  # One heavy key.
    for i in range(3):
        (folder / f"{i}.bin").write_bytes(rows[i * ROWS // 3 : (i + 1) * ROWS // 3].tobytes())
    return folder


def expected(folder: Path) -> bytes:
    data = b"".join(file.read_bytes() for file in sorted(folder.iterdir()))
    rows = np.frombuffer(data, np.uint8).reshape(-1, 32)
    order = sorted(range(len(rows)), key=lambda i: rows[i, :10].tobytes())
    return rows[order].tobytes()


def found(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in sorted(folder.glob("part-*")))


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def run(script: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("kind", "k"),
    [
        ("TaskFinished", 4),
        ("StageFinished", 2),
        pytest.param("TaskStarted", 1, marks=pytest.mark.full),
        pytest.param("StageFinished", 1, marks=pytest.mark.full),
        pytest.param("StageFinished", 3, marks=pytest.mark.full),
        pytest.param("Published", 1, marks=pytest.mark.full),
    ],
)
def test_a_killed_sort_is_finished_by_the_next_run(
    records: Path, tmp_path: Path, kind: str, k: int
) -> None:
    before = {file: file.stat().st_mtime_ns for file in files_below(records)}
    script = tmp_path / "job.py"
    script.write_text(SCRIPT)
    arguments = [records, tmp_path / "root", tmp_path / "out"]

    killed = run(script, *arguments, kind, k)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    ended = run(script, *arguments, "", 0)
    assert ended.returncode == 0, ended.stderr

    assert found(tmp_path / "out") == expected(records)
    left = [file for file in files_below(tmp_path / "out") if ".millpond" in str(file)]
    assert left == []
    assert before == {file: file.stat().st_mtime_ns for file in files_below(records)}


@pytest.mark.parametrize("place", ["first", "middle", "index"])
def test_a_flipped_bit_in_a_part_is_found_and_mended(
    records: Path, tmp_path: Path, place: str
) -> None:
    root, damaged, retried = tmp_path / "root", list[Path](), list[events.Event]()

    def flip(event: events.Event) -> None:
        if isinstance(event, events.StageFinished) and event.stage == 1 and not damaged:
            part = max(root.rglob("*.part"), key=lambda path: path.stat().st_size)
            data = bytearray(part.read_bytes())
            at = {"first": 70, "middle": len(data) // 2, "index": len(data) - 9}[place]
            data[at] ^= 1
            part.write_bytes(data)
            damaged.append(part)
        if isinstance(event, events.PartsMissing):
            retried.append(event)

    given = options(
        split_bytes=300_000, threads=2, shape="staged", data_root=str(root), progress=False
    )
    with Session(given) as sp:
        sp.listen(flip)
        sp.read_fixed(str(records), FIELDS).sort("key").write_fixed(str(tmp_path / "out"))
    assert damaged
    assert retried
    assert found(tmp_path / "out") == expected(records)


@pytest.mark.parametrize("shape", ["auto", "staged"])
def test_a_target_of_sorted_records_that_fills(records: Path, small_disk: Path, shape: str) -> None:
    many = [records / f"{i}.bin" for i in range(3)]
    before = {file: file.stat().st_mtime_ns for file in many}
    filler = small_disk / "filler"
    size = 0
    with open(filler, "wb") as file:  # Leaves less than the records need.
        try:
            while True:
                size += file.write(bytes(1 << 16))
                file.flush()
        except OSError:
            pass
    with open(filler, "r+b") as file:
        file.truncate(max(0, size - (1 << 20)))
    given = options(split_bytes=300_000, threads=2, shape=shape, progress=False)
    with Session(given) as sp:
        with pytest.raises(DiskFull, match=r"(?i)no space"):
            sp.read_fixed(str(records), FIELDS).sort("key").write_fixed(str(small_disk / "out"))
        assert not list(Path(sp._work.scratch).rglob("records-a*/*"))
    assert files_below(small_disk) == [filler]
    assert before == {file: file.stat().st_mtime_ns for file in many}
