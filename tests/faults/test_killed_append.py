"""SIGKILL of an append between the names of its files and its manifest; then again."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

import millpond

SCRIPT = """
import os, signal, sys
import millpond
from millpond.storage import LocalStorage

target, root, fatal, shape, *parts = sys.argv[1:]
put = LocalStorage.put_if_absent
def put_or_die(self, path, data):
    if fatal and path.endswith(fatal):
        os.kill(os.getpid(), signal.SIGKILL)
    return put(self, path, data)
LocalStorage.put_if_absent = put_or_die

with millpond.init(data_root=root or None, shape=shape) as sp:
    for part in parts:
        rows = sp.from_items([{"part": part, "i": i} for i in range(10)])
        rows.repartition(2, by_rows=True).write_parquet(target, mode="append")
"""


def append(tmp_path: Path, *, fatal: str, shape: str, root: bool, parts: str) -> int:
    data_root = tmp_path / "root" if root else ""
    given = [tmp_path / "out", data_root, fatal, shape, *parts]
    command = [sys.executable, "-c", SCRIPT, *map(str, given)]
    return subprocess.run(command, check=False).returncode


def rows(tmp_path: Path) -> list[tuple[str, int]]:
    with millpond.init(progress=False) as sp:
        found = sp.read_parquet(tmp_path / "out").take_all()
    return sorted((row["part"], row["i"]) for row in found)


def expected(parts: str) -> list[tuple[str, int]]:
    return sorted((part, i) for part in parts for i in range(10))


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["auto", "staged"])
@pytest.mark.filterwarnings("ignore:.*beside those that were committed")
def test_a_killed_append_is_not_seen_and_adds_its_rows_once(tmp_path: Path, shape: str) -> None:
    killed = append(tmp_path, fatal="00000002.json", shape=shape, root=True, parts="ab")
    assert killed == -signal.SIGKILL
    assert rows(tmp_path) == expected("a")
    for _ in range(2):  # What is complete already is not added again.
        assert append(tmp_path, fatal="", shape=shape, root=True, parts="ab") == 0
        assert rows(tmp_path) == expected("ab")
    assert sum(1 for _ in (tmp_path / "out").glob("*.parquet")) == 4
    # The second of two equal writes of one script is one of its own.
    assert append(tmp_path, fatal="", shape=shape, root=True, parts="abb") == 0
    assert rows(tmp_path) == expected("abb")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*beside those that were committed")
def test_without_a_data_root_a_killed_append_is_not_seen_and_each_run_appends(
    tmp_path: Path,
) -> None:
    assert append(tmp_path, fatal="", shape="auto", root=False, parts="a") == 0
    killed = append(tmp_path, fatal="00000002.json", shape="auto", root=False, parts="a")
    assert killed == -signal.SIGKILL
    assert rows(tmp_path) == expected("a")
    assert append(tmp_path, fatal="", shape="auto", root=False, parts="a") == 0
    assert rows(tmp_path) == expected("aa")
    assert millpond.gc(str(tmp_path / "out"), older_than=-60).files == 2
    assert rows(tmp_path) == expected("aa")
