"""Recorded runs: what is kept, that it can be read again, and that a page escapes it."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

import millpond
from millpond.cli import main
from millpond.events import (
    Event,
    PartsMissing,
    RunFinished,
    RunStarted,
    StageFinished,
    StagePlanned,
    TaskFinished,
    TaskRetried,
    TaskStarted,
)
from millpond.report import record
from millpond.report.page import page
from millpond.report.record import Recorder, Recording, from_json, to_json

RUN: tuple[Event, ...] = (
    RunStarted("staged", 1),
    StagePlanned(0, "map <script>", 3, reused=1),
    TaskFinished(0, 1, 0, rows=10, size_bytes=80, wall_s=1.0, cpu_s=0.5),
    TaskRetried(0, 2, 1, "the worker <b>died</b>"),
    PartsMissing(((0, 1),), "gone & lost"),
    TaskFinished(0, 2, 1, rows=20, size_bytes=160, wall_s=3.0, cpu_s=0.5),
    StageFinished(0, rows_in=40, rows=30, size_bytes=240),
    RunFinished(4.0, "Bad<Error>"),
)
BEGAN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
TOLD = Recording(BEGAN, tuple((float(i) / 2, event) for i, event in enumerate(RUN)))


def test_a_recording_is_read_as_it_was_written() -> None:
    assert from_json(to_json(TOLD)) == TOLD


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"millpond_events": 2}', to_json(TOLD).replace("RunStarted", "Other")],
)
def test_what_is_no_recording_is_none(text: str) -> None:
    assert from_json(text) is None


def test_a_recorder_writes_each_run_once_and_bounds_its_tasks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(record, "MOST_TASKS", 1)
    written: dict[str, str] = {}
    recorder = Recorder("me", written.__setitem__)

    for event in (*RUN, TaskStarted(0, 0, 0), *RUN):
        recorder(event)

    first, second = (from_json(text) for text in written.values())
    assert [name.split("-", 1)[1] for name in written] == ["me-000001.json", "me-000002.json"]
    assert first is not None
    assert second is not None
    kept = tuple(event for event in RUN if event != RUN[5])
    assert tuple(event for _, event in first.events) == kept
    assert (first.dropped, second.dropped) == (1, 1)


def test_a_page_tells_stages_tasks_and_troubles_and_escapes_all_of_it() -> None:
    drawn = page([TOLD], "runs of <root>")

    for text in (
        "2026-01-02 03:04:05 UTC", "staged", "stopped: Bad&lt;Error&gt;", "map &lt;script&gt;",
        "<td>3</td><td>1</td><td>40</td><td>30</td><td>240 B</td><td>2.0 s</td><td>3.0 s</td>",
        "task 2 again: the worker &lt;b&gt;died&lt;/b&gt;", "1 part lost: gone &amp; lost",
        "runs of &lt;root&gt;", "font: 15px",
    ):  # fmt: skip
        assert text in drawn
    assert "<script" not in drawn
    assert "http" not in drawn


def test_the_latest_run_comes_first() -> None:
    later = Recording(BEGAN.replace(year=2027), TOLD.events)
    drawn = page([TOLD, later], "runs")

    assert drawn.index("2027-") < drawn.index("2026-")


def test_a_session_with_a_data_root_records_and_the_command_draws(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with millpond.init(data_root="root", progress=False) as sp:
        sp.from_items([1, 2]).count()
    (Path("root") / "events" / "other.json").write_text("not ours")

    assert main(["report", "root"]) == 0
    assert capsys.readouterr().out == "1 run in millpond-report.html\n"
    assert "fused" in Path("millpond-report.html").read_text()
    assert main(["report", "root", "--to", "millpond-report.html"]) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert main(["report", "nowhere"]) == 1
