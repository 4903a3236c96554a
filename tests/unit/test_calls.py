"""Whoever drops a call and whoever runs it agree on its end, however they race."""

import errno
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from millpond.errors import DiskFull, StorageError
from millpond.runtime.calls import Calls, Dropped

BEGAN, DROPPED, ENDED = b"b", b"d", b"e"
UNKNOWN, TAKEN, ANSWERED = Dropped((), ()), Dropped(("1",), ()), Dropped((), ("1",))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Who runs a call that was taken is not cancelled here, and ends itself at once."""
    monkeypatch.setattr("millpond.runtime.calls._CANCELLED_S", 0)
    (tmp_path / "calls").mkdir()
    return str(tmp_path / "calls")


def process(folder: str, works: Callable[[], None]) -> tuple[int, int]:
    """Start one that runs the call "1": its number, and a pipe on which it tells what it did."""
    told, tells = os.pipe()
    pid = os.fork()
    if pid:
        os.close(tells)
        return pid, told
    try:
        calls = Calls(folder)
        if not calls.begin("1"):
            os.write(tells, DROPPED)
        else:
            os.write(tells, BEGAN)
            works()
            calls.end("1")
            os.write(tells, ENDED)
    finally:
        os._exit(0)


def end_of(pid: int, told: int) -> tuple[bytes, int | None]:
    """What the process told, and the signal that ended it."""
    _, status = os.waitpid(pid, 0)
    with os.fdopen(told, "rb") as pipe:
        return pipe.read(), os.WTERMSIG(status) if os.WIFSIGNALED(status) else None


def test_a_call_that_was_taken_does_not_end(folder: str, tmp_path: Path) -> None:
    """However often it is dropped, it is named."""
    go = tmp_path / "go"

    def works() -> None:
        while not go.exists():
            time.sleep(0.001)

    pid, told = process(folder, works)
    assert os.read(told, 1) == BEGAN
    assert Calls(folder).drop(["0", "1", "2"]) == TAKEN
    assert Calls(folder).drop(["1"]) == TAKEN
    go.touch()
    assert end_of(pid, told) == (b"", signal.SIGKILL)


def test_a_call_that_was_dropped_does_not_begin(folder: str) -> None:
    assert Calls(folder).drop(["1"]) == UNKNOWN
    assert end_of(*process(folder, lambda: None)) == (DROPPED, None)


def test_the_answer_of_a_call_that_has_ended_counts(folder: str) -> None:
    calls = Calls(folder)
    assert calls.begin("1")
    calls.end("1")
    assert Calls(folder).drop(["1"]) == ANSWERED
    assert calls.begin("2")  # By then the answer of the one before has arrived.
    assert sorted(os.listdir(folder)) == ["1.dropped", f"2.{os.getpid()}"]


def test_what_is_dropped_while_it_begins_is_taken(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Word is left after the process has left its file, and before it has looked for word."""
    there = os.path.exists

    def drops_first(path: str) -> bool:
        assert Calls(folder).drop(["1"]) == TAKEN
        return there(path)

    monkeypatch.setattr("os.path.exists", drops_first)
    assert end_of(*process(folder, lambda: None)) == (b"", signal.SIGKILL)


def test_what_ends_while_it_is_dropped_is_answered(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends after its file was seen, and before that is taken."""
    calls = Calls(folder)
    assert calls.begin("1")
    listed = os.listdir

    def ends_after(path: str) -> list[str]:
        names = listed(path)
        calls.end("1")
        return names

    monkeypatch.setattr("os.listdir", ends_after)
    assert Calls(folder).drop(["1"]) == ANSWERED


def test_a_race_has_one_outcome(folder: str) -> None:
    """What was taken is not answered, all else that began is, and what is unknown never begins."""
    chance = random.Random(5)
    for _ in range(200):
        pid, told = process(folder, lambda: time.sleep(0.0005))
        time.sleep(chance.uniform(0, 0.004))
        found = Calls(folder).drop(["1"])
        tale, signal_no = end_of(pid, told)
        if found == TAKEN:
            assert signal_no == signal.SIGKILL
            assert tale in (b"", BEGAN)
        elif found == ANSWERED:
            assert (tale, signal_no) in ((BEGAN + ENDED, None), (DROPPED, None))
        else:
            assert (found, tale, signal_no) == (UNKNOWN, DROPPED, None)
        for name in os.listdir(folder):
            os.unlink(os.path.join(folder, name))


def test_on_a_full_disk_calls_can_be_taken_but_do_not_begin(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Calls(folder)
    assert calls.begin("1")

    def full(path: str, *_: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    monkeypatch.setattr("os.open", full)
    with pytest.raises(DiskFull):
        Calls(folder).begin("2")
    found = Calls(folder).drop(["1", "2"])
    assert found == Dropped(("1",), ("2",))  # The second may yet begin: nobody could be told.


def test_nothing_begins_after_the_end_of_a_session(folder: str) -> None:
    Calls(folder).close()
    with pytest.raises(StorageError, match="makes no folder or file there"):
        Calls(folder).begin("1")
