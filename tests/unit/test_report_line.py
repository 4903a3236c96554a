"""The progress line: what it says, when it is silent, and that it stops nothing."""

import io
import threading
from pathlib import Path

import pytest

import millpond
from millpond.events import (
    Event,
    PartsMissing,
    RunFinished,
    RunStarted,
    StageFinished,
    StagePlanned,
    TaskFinished,
    TaskRetried,
)
from millpond.report.line import Line, live_line
from millpond.report.tally import Tally


class Terminal(io.StringIO):
    """A terminal that remembers; `drawn` is set at the first `needle`."""

    def __init__(self, needle: str) -> None:
        super().__init__()
        self.needle, self.drawn = needle, threading.Event()

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if self.needle in text:
            self.drawn.set()
        return super().write(text)


def finished(stage: int, partition: int, rows: int = 0, size_bytes: int = 0) -> TaskFinished:
    return TaskFinished(stage, partition, 0, rows, size_bytes, wall_s=1.0, cpu_s=1.0)


def tally_of(*events: Event, at_s: float = 0.0) -> Tally:
    tally = Tally()
    for event in events:
        tally.add(event, at_s)
    return tally


STAGED = RunStarted("staged", 3)


def test_a_line_tells_stage_tasks_time_left_rows_bytes_and_rate() -> None:
    tally = tally_of(
        STAGED, StagePlanned(0, "read parquet → hash by k", 4), finished(0, 0, 5_000, 40_000)
    )

    assert tally.line(now_s=10.0) == (
        "millpond · stage 1/3: read parquet → hash by k · 1/4 tasks · 10 s, about 30 s left"
        " · 5.0k rows · 40.0 kB · 500 rows/s"
    )


def test_tasks_of_an_earlier_run_count_as_done_but_not_for_the_time_left() -> None:
    tally = tally_of(STAGED, StagePlanned(0, "read", 10, reused=8), finished(0, 8))

    assert "9/10 tasks · 10 s, about 10 s left" in tally.line(now_s=10.0)


def test_the_next_stage_takes_the_line_when_one_is_finished() -> None:
    tally = tally_of(
        STAGED,
        StagePlanned(0, "read", 1),
        finished(0, 0),
        StageFinished(0, 1, 1, 1),
        StagePlanned(1, "sort", 2),
    )

    assert tally.line(now_s=0.1) == "millpond · stage 2/3: sort · 0/2 tasks · 0.1 s"


def test_a_fused_run_shows_the_share_that_the_engine_tells() -> None:
    tally = tally_of(RunStarted("fused", 1), StagePlanned(0, "fused", 1))

    assert tally.line(2.0, 0.25) == "millpond · fused · 25% · 2.0 s, about 6.0 s left"
    assert tally.line(2.0, None) == "millpond · fused · 2.0 s"


def test_what_runs_again_is_counted() -> None:
    tally = tally_of(STAGED, TaskRetried(0, 1, 1, "lost"), PartsMissing(((0, 1), (0, 2)), "gone"))

    assert tally.line(0.5).endswith("3 again")


def test_the_summary_names_what_stopped_a_run() -> None:
    tally = tally_of(STAGED, StagePlanned(0, "read", 3, reused=2), finished(0, 2, 10, 80))

    assert tally.summary(RunFinished(2.0)) == (
        "millpond · done · 2.0 s · 1 task and 2 from an earlier run · 10 rows · 80 B · 5 rows/s"
    )
    assert tally.summary(RunFinished(2.0, "KeyboardInterrupt")).startswith(
        "millpond · stopped (KeyboardInterrupt)"
    )


def test_the_line_is_drawn_over_itself_and_ends_with_the_summary() -> None:
    terminal = Terminal("1/2 tasks")
    line = Line(terminal, lambda: None, terminal=True, quiet_s=0.0)
    for event in (STAGED, StagePlanned(0, "read", 2), finished(0, 0)):
        line(event)
    assert terminal.drawn.wait(10)

    line(RunFinished(1.0))

    assert terminal.getvalue().startswith("\r\x1b[2K")
    assert terminal.getvalue().endswith("done · 1.0 s · 1 task\n")


def test_a_short_run_shows_nothing() -> None:
    terminal = Terminal("")
    line = Line(terminal, lambda: None, terminal=True)

    line(STAGED)
    line(RunFinished(0.1))

    assert terminal.getvalue() == ""


def test_a_terminal_that_fails_does_not_stop_the_run() -> None:
    broken = io.StringIO()
    line = Line(broken, lambda: None, terminal=False, quiet_s=0.0)
    broken.close()

    line(STAGED)
    line(RunFinished(0.1))
    assert live_line(None, lambda: None, broken) is None


@pytest.mark.parametrize(
    ("wanted", "terminal", "shown"),
    [(None, True, True), (None, False, False), (True, False, True), (False, True, False)],
)
def test_the_line_is_silent_without_a_terminal_unless_asked_for(
    wanted: bool | None, terminal: bool, shown: bool
) -> None:
    stream = Terminal("") if terminal else io.StringIO()

    assert (live_line(wanted, lambda: None, stream) is not None) == shown


def test_a_session_emits_the_beginning_and_the_end_of_a_run(tmp_path: Path) -> None:
    seen: list[Event] = []
    with millpond.init(progress=False) as sp:
        sp.listen(seen.append)
        sp.from_items([1, 2]).count()

    assert seen[0] == RunStarted("fused", 1)
    assert isinstance(seen[-1], RunFinished)
    assert seen[-1].error == ""


def test_a_listener_that_raises_is_left_out_and_the_run_goes_on() -> None:
    def broken(_event: Event) -> None:
        raise ValueError("no")

    with millpond.init(progress=False) as sp:
        sp.listen(broken)
        with pytest.warns(UserWarning, match="a listener raised ValueError"):
            assert sp.from_items([1, 2]).count() == 2


def test_a_watched_statement_tells_its_share_and_frees_the_cursor() -> None:
    with millpond.init(progress=False) as sp:
        engine = sp._work.worker.engine
        assert engine.fraction() is None
        with engine.watched_cursor() as first, engine.watched_cursor() as second:
            assert first.rows("SELECT 1") == second.rows("SELECT 1") == [(1,)]
        assert engine.fraction() is None


def test_a_stage_that_is_planned_again_is_not_counted_twice() -> None:
    """What it had read was lost, and its rows may be others now."""
    again = StagePlanned(1, "sort", 4, reused=0)
    tally = tally_of(
        STAGED,
        StagePlanned(0, "read", 10, reused=8),
        StageFinished(0, 0, 9, 9),
        StagePlanned(1, "sort", 4, reused=4),
        StageFinished(1, 9, 9, 9),
        again,
    )
    assert tally.reused == 8
    assert "stage 2/" in tally.line(5.0)
    assert "0/4 tasks" in tally.line(5.0)
