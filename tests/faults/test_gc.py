"""Clearing a data root: a run that was killed still resumes, one that lives notices nothing."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import millpond
from millpond import events
from millpond.runtime.gc import Freed, gc
from millpond.runtime.presence import DEAD_S, Presence, clock_s, sessions
from millpond.storage import LocalStorage
from tests.faults.test_sigkill import EXPECTED, SCRIPT
from tests.support.sessions import Counted, oracle, tuples

pytestmark = pytest.mark.slow


@pytest.fixture
def killed(events_path: str, tmp_path: Path) -> Path:
    """A data root whose session was killed when its last stage had finished."""
    script = tmp_path / "program.py"
    script.write_text(SCRIPT)
    command = [sys.executable, script, events_path, tmp_path / "root", tmp_path / "out"]
    ended = subprocess.run([*map(str, command), "StageFinished", "5"], check=False)
    assert ended.returncode == -signal.SIGKILL
    return tmp_path


def again(root: Path, events_path: str, listen: Any = None) -> Counted:
    """The same program again, in this process."""
    with Counted(shape="staged", data_root=str(root / "root")) as run:
        if listen is not None:
            run.session.listen(listen)
        sp = run.session
        spread = sp.read_parquet(events_path).filter("price > 100")
        spread = spread.repartition(3, hash_by="user_id")
        summed = sp.partial_sql(
            "SELECT user_id, count(*) AS n, sum(price)::BIGINT AS s FROM {0} GROUP BY user_id",
            spread,
        )
        assert tuples(summed.sort("n desc, user_id")) == oracle(EXPECTED, events=events_path)
    return run


def files(root: Path) -> set[str]:
    return {str(path) for path in root.rglob("*") if path.is_file()}


def test_what_a_killed_run_can_resume_from_stays(killed: Path, events_path: str) -> None:
    freed = gc(str(killed / "root"))
    assert "journal segments" not in freed.kinds
    run = again(killed, events_path)
    assert run.reused > 0
    assert not any(isinstance(event, events.PartsMissing) for event in run.seen)


def test_what_nothing_names_goes_and_a_dry_run_says_how_much(
    killed: Path, events_path: str
) -> None:
    root, out = killed / "root", killed / "out"
    gc(str(root))  # The scratch of other tests, and what the killed run left unnamed.
    orphan = next(root.glob("parts/*/0000")) / "00000.a7.part"
    orphan.write_bytes(b"x" * 1_000)
    half = root / "journal" / f".millpond-staged-{os.geteuid()}" / "put-1"
    half.parent.mkdir()
    half.write_bytes(b"y" * 10)
    os.utime(half, (1, 1))
    before = files(root)
    told = gc(str(root), dry_run=True)
    assert files(root) == before
    assert gc(str(root)) == told
    assert told == Freed(2, 1_010, {"parts": (1, 1_000), "half-written files": (1, 10)})
    assert before - files(root) == {str(orphan), str(half)}
    # Its staged files wait in the journal for the rerun, until they are too old.
    assert list(out.glob(".millpond-staged-*/*"))


def test_with_older_than_finished_work_goes_too(killed: Path, events_path: str) -> None:
    gc(str(killed / "root"), older_than=3_600)
    assert list((killed / "root").rglob("*.part"))
    freed = gc(str(killed / "root"), older_than=0)
    assert {"parts", "journal segments"} <= set(freed.kinds)
    assert not [p for p in files(killed / "root") if "/published/" not in p]
    assert not list((killed / "root" / "parts").iterdir())
    assert again(killed, events_path).reused == 0


def test_staged_files_go_with_their_journal(killed: Path) -> None:
    staged = list((killed / "out").glob(".millpond-staged-*/*"))
    assert staged
    freed = gc(str(killed / "root"), older_than=0)
    assert freed.kinds["staged files"][0] == len(staged)
    assert not list((killed / "out").glob(".millpond-staged-*/*"))


def test_a_run_that_lives_notices_nothing_not_even_what_it_reuses(
    killed: Path, events_path: str
) -> None:
    def clear(event: events.Event) -> None:
        if isinstance(event, events.StagePlanned | events.TaskFinished | events.StageFinished):
            gc(str(killed / "root"), older_than=-60)

    # A forgotten last stage: the rest is reused, and read while the root is cleared.
    for part in (killed / "root" / "parts").glob("*/0003/*.part"):
        part.unlink()
    run = again(killed, events_path, clear)
    assert run.reused > 0
    assert not any(isinstance(event, events.PartsMissing) for event in run.seen)


def test_two_clearings_at_once_are_one(killed: Path) -> None:
    root, freed, errors = str(killed / "root"), [], []

    def clear() -> None:
        try:
            freed.append(gc(root, older_than=0))
        except millpond.MillpondError as error:
            errors.append(error)

    threads = [threading.Thread(target=clear) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # One that came late found nothing at all, which is said as an error.
    assert all("no file at" in str(error) for error in errors)
    assert freed
    assert not list(Path(root).rglob("*.part"))


def test_a_session_is_dead_when_its_file_is_old_by_the_stores_clock(tmp_path: Path) -> None:
    storage, root = LocalStorage(), str(tmp_path)
    presence = Presence(storage, root, "0123456789ab")
    presence.begin()
    assert presence.announce(uses=["aa"], targets=["/out"])
    assert not presence.announce(uses=["aa"])
    (seen,) = sessions(storage, root, clock_s(storage, root)).values()
    assert (seen.alive, seen.uses, seen.targets) == (True, {"aa"}, {"/out"})
    long_ago_s = time.time() - DEAD_S - 5
    os.utime(seen.path, (long_ago_s, long_ago_s))
    (seen,) = sessions(storage, root, clock_s(storage, root)).values()
    assert not seen.alive
    presence.end()
    assert sessions(storage, root, clock_s(storage, root)) == {}


def test_the_command_says_what_it_freed(killed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from millpond.cli import main

    root = str(killed / "root")
    assert main(["gc", root, "--older-than", "7d"]) == 0
    assert main(["gc", root, "--older-than", "0s", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "would be freed" in said
    assert "parts: " in said
    assert main(["gc", root, "--older-than", "soon"]) == 2
    assert main(["gc", str(killed / "nothing")]) == 1
