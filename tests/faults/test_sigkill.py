"""SIGKILL of the whole process after the k-th event of a kind, then the same script again."""

import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import psutil
import pytest

from millpond.errors import PathNotFound
from millpond.options import options
from millpond.session import Session
from tests.support.sessions import oracle, tuples

SCRIPT = """
import os, signal, sys
import millpond
from millpond import events
from millpond.options import options
from millpond.session import Session

path, root, target, kind, k = sys.argv[1:6]
seen = finished = reused = 0
def count(event):
    global seen, finished, reused
    reused += event.reused if isinstance(event, events.StagePlanned) else 0
    if kind and type(event).__name__ == kind:
        seen += 1
        if seen == int(k):
            os.kill(os.getpid(), signal.SIGKILL)
    finished += isinstance(event, events.TaskFinished)

with Session(options(split_bytes=8192, threads=2, shape="staged", data_root=root)) as sp:
    sp.listen(count)
    spread = sp.read_parquet(path).filter("price > 100").repartition(3, hash_by="user_id")
    summed = sp.partial_sql(
        "SELECT user_id, count(*) AS n, sum(price)::BIGINT AS s FROM {0} GROUP BY user_id", spread)
    summed.sort("n desc, user_id").write_parquet(target)
print(finished, reused)
"""
EXPECTED = """
SELECT user_id, count(*) AS n, sum(price)::BIGINT AS s FROM events WHERE price > 100
GROUP BY user_id ORDER BY n DESC, user_id
"""


# Dies after the k-th file of those that are published has its name.
PUBLISHING = SCRIPT.replace(
    "with Session(",
    """
from millpond.storage import LocalStorage
whole = LocalStorage.publish
def a_few(storage, staged):
    if kind == "publishing" and len(staged) > int(k):
        whole(storage, staged[:int(k)])
        os.kill(os.getpid(), signal.SIGKILL)
    whole(storage, staged)
LocalStorage.publish = a_few

with Session(""",
)


def run(script: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "k", "found"),
    [
        ("RunStarted", 1, False),
        ("StagePlanned", 1, False),
        ("StagePlanned", 3, True),
        ("TaskStarted", 1, False),
        ("TaskFinished", 1, False),
        ("StageFinished", 1, True),
        ("StageFinished", 4, True),
        ("StageFinished", 5, True),
        ("Published", 1, True),
        ("RunFinished", 1, True),
    ],
)
def test_a_rerun_gives_the_oracles_rows_and_reuses_what_was_done(
    events_path: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    k: int,
    found: bool,
) -> None:
    script, temporary, target = tmp_path / "job.py", tmp_path / "temporary", tmp_path / "out"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    script.write_text(SCRIPT)
    arguments = [events_path, tmp_path / "root", target]

    killed = run(script, *arguments, kind, k)
    assert killed.returncode == -signal.SIGKILL, killed.stderr

    ended = run(script, *arguments, "", 0)
    assert ended.returncode == 0, ended.stderr
    finished, reused = map(int, ended.stdout.split())
    assert (reused > 0 or finished == 0) == found
    files = sorted(target.glob("*.parquet"))
    rows = [row for file in files for row in oracle("FROM f", f=str(file))]
    assert rows == oracle(EXPECTED, events=events_path)
    # The rerun has cleared what the killed run left, and left nothing itself.
    assert not list(target.glob(".millpond-*"))
    assert [path for path in temporary.rglob("*") if path.is_file()] == []
    every = psutil.process_iter(["cmdline"])
    assert [each for each in every if str(tmp_path) in " ".join(each.info["cmdline"] or ())] == []


@pytest.mark.slow
@pytest.mark.parametrize("k", [0, 1, 2])
def test_killed_while_files_get_their_names(events_path: str, tmp_path: Path, k: int) -> None:
    """Nobody reads some of the files; the rows come whole, and once."""
    script, target = tmp_path / "job.py", tmp_path / "out"
    script.write_text(PUBLISHING)
    arguments = [events_path, tmp_path / "root", target]
    killed = run(script, *arguments, "publishing", k)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(list(target.glob("*.parquet"))) == k
    told = pytest.warns(UserWarning, match=f"{k} files of a write") if k else nullcontext()
    with Session(options(progress=False)) as sp, told, pytest.raises(PathNotFound):
        sp.read_parquet(str(target)).count()

    ended = run(script, *arguments, "", 0)
    assert ended.returncode == 0, ended.stderr
    finished, reused = map(int, ended.stdout.split())
    assert reused > 0
    assert k > 0 or finished == 0
    with Session(options(progress=False)) as sp:
        assert tuples(sp.read_parquet(str(target))) == oracle(EXPECTED, events=events_path)
    files = {str(path) for path in target.rglob("*.parquet")}
    assert sorted(rows_of(files)) == sorted(oracle(EXPECTED, events=events_path)), "beside them"


def rows_of(files: set[str]) -> list[Any]:
    return [row for file in files for row in oracle("FROM f", f=file)]


@pytest.mark.slow
def test_killed_between_the_receipt_of_one_file_and_its_name(
    events_path: str, tmp_path: Path
) -> None:
    """The rerun finds the receipt, and gives the file the name that it waits for."""
    script, target = tmp_path / "job.py", tmp_path / "out.parquet"
    rows = 'sp.read_parquet(path).filter("price > 100").sort("id")'
    script.write_text(PUBLISHING.replace('summed.sort("n desc, user_id")', rows))
    arguments = [events_path, tmp_path / "root", target]
    killed = run(script, *arguments, "publishing", 0)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert list(tmp_path.glob("root/published/*/*.json"))
    assert not target.exists()

    ended = run(script, *arguments, "", 0)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split() == ["0", "0"], "more ran than the file's name needs"
    expected = "FROM events WHERE price > 100 ORDER BY id"
    assert oracle("FROM f", f=str(target)) == oracle(expected, events=events_path)
    assert not list(tmp_path.glob(".millpond-*"))
