"""A write of a training set that is killed, or meets a full disk: none, or a whole one."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import millpond
from millpond.errors import DiskFull
from tests.support.sessions import Counted

SCRIPT = """
import os, signal, sys
import millpond
from millpond import events
from millpond.options import options
from millpond.session import Session
from millpond.storage import LocalStorage

target, root, fatal, k = sys.argv[1:]
reused = seen = 0
def count(event):
    global reused, seen
    reused += event.reused if isinstance(event, events.StagePlanned) else 0
    if type(event).__name__ == fatal:
        seen += 1
        if seen == int(k):
            os.kill(os.getpid(), signal.SIGKILL)
def dies(name):
    method = getattr(LocalStorage, name)
    def call(self, *given):
        if fatal == name and (name == "publish" or given[0].endswith("dataset.json")):
            if name == "publish":
                method(self, given[0][:2])
            os.kill(os.getpid(), signal.SIGKILL)
        return method(self, *given)
    setattr(LocalStorage, name, call)
dies("publish"), dies("put_if_absent")

with Session(options(threads=2, shape="staged", data_root=root or None)) as sp:
    sp.listen(count)
    rows = sp.from_items(list(range(1000))).repartition(3, by_rows=True)
    rows.write_dataset(target, rows_per_shard=90)
print(reused)
"""


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", SCRIPT, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("resumes", [True, False], ids=["data_root", "none"])
@pytest.mark.parametrize(
    ("fatal", "k"),
    [("TaskStarted", 6), ("TaskFinished", 12), ("publish", 1), ("put_if_absent", 1)],
)
def test_a_killed_write_is_no_training_set_and_the_next_one_is_whole(
    tmp_path: Path, fatal: str, k: int, resumes: bool
) -> None:
    target, root = tmp_path / "set", tmp_path / "root" if resumes else ""
    killed = run(target, root, fatal, k)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (target / "dataset.json").exists()

    ended = run(target, root, "", 0)
    assert ended.returncode == 0, ended.stderr
    assert (int(ended.stdout) > 0) == resumes
    ds = millpond.open_dataset(target)
    assert ds[list(range(len(ds)))].column("item").to_pylist() == list(range(1000))
    # The shards of the write that was killed are gone with the next one.
    assert len([name for name in os.listdir(target) if name.endswith(".arrow")]) == 12


@pytest.mark.slow
def test_a_target_that_fills_holds_nothing(small_disk: Path) -> None:
    with Counted(shape="auto") as counted:
        many = counted.session.from_items(list(range(10))).flat_map("unnest(range(60000)) AS i")
        wide = many.map("i, hash(i) AS h, 'x' || hash(i, 1) AS s")
        with pytest.raises(DiskFull, match=r"(?i)no space"):
            wide.write_dataset(small_disk / "set", rows_per_shard=30_000)
    assert [file for file in small_disk.rglob("*") if file.is_file()] == []
