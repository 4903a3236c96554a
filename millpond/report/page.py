"""Recorded runs → one HTML page: self-contained, no script, everything from outside escaped."""

from __future__ import annotations

import html
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files

from millpond.events import (
    PartsMissing,
    RunFinished,
    RunStarted,
    StageFinished,
    StagePlanned,
    TaskFinished,
    TaskRetried,
)
from millpond.report.record import Recording
from millpond.report.tally import duration, size

_HEAD = (
    "Stage", "Tasks", "Reused", "Rows in", "Rows", "Written", "Task: median", "slowest",
    "Processor", "Again", "When",
)  # fmt: skip


@dataclass(slots=True)
class _Stage:
    plan: StagePlanned
    begin_s: float
    end_s: float
    tasks: list[TaskFinished] = field(default_factory=list)
    again: int = 0
    end: StageFinished | None = None


def page(told: Sequence[Recording], title: str) -> str:
    """The runs, the latest first."""
    style = files("millpond.report").joinpath("page.css").read_text()
    runs = "\n".join(_run(recording) for recording in reversed(told))
    name = html.escape(title)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{name}</title>'
        f"<style>\n{style}</style></head><body>\n<h1>{name}</h1>\n"
        f"<p>{len(told):,} run{'' if len(told) == 1 else 's'}.</p>\n{runs}\n</body></html>\n"
    )


def _run(told: Recording) -> str:
    stages, troubles = _stages(told)
    begun = next((e for _, e in told.events if isinstance(e, RunStarted)), RunStarted("", 0))
    ended = next((e for _, e in told.events if isinstance(e, RunFinished)), RunFinished(0.0))
    wall_s = max(ended.wall_s, 1e-3)
    error = f' <b class="bad">stopped: {html.escape(ended.error)}</b>' if ended.error else ""
    head = "".join(f"<th>{name}</th>" for name in _HEAD)
    rows = "\n".join(_row(stage, wall_s) for stage in stages)
    notes = "".join(f"<li>{html.escape(text)}</li>" for text in troubles)
    if told.dropped:
        notes += f"<li>{told.dropped:,} more tasks are not counted one by one.</li>"
    return (
        f"<section><h2>{told.began:%Y-%m-%d %H:%M:%S} UTC · {html.escape(begun.shape)} · "
        f"{duration(ended.wall_s)}{error}</h2>\n<table><thead><tr>{head}</tr></thead>\n"
        f"<tbody>{rows}</tbody></table>{f'<ul>{notes}</ul>' if notes else ''}</section>"
    )


def _stages(told: Recording) -> tuple[list[_Stage], list[str]]:
    """The stages in the order in which they began, and what went wrong, in words."""
    stages: dict[int, _Stage] = {}
    troubles: list[str] = []
    for at_s, event in told.events:
        match event:
            case StagePlanned(stage=number):
                stages[number] = _Stage(event, at_s, at_s)
            case TaskFinished(stage=number) if number in stages:
                stages[number].tasks.append(event)
                stages[number].end_s = at_s
            case StageFinished(stage=number) if number in stages:
                stages[number].end, stages[number].end_s = event, at_s
            case TaskRetried(stage=number, partition=partition, reason=reason):
                if number in stages:
                    stages[number].again += 1
                troubles.append(
                    f"{duration(at_s)}: stage {number}, task {partition} again: {reason}"
                )
            case PartsMissing(parts=parts, reason=reason):
                lost = f"{len(parts)} part{'' if len(parts) == 1 else 's'} lost"
                troubles.append(f"{duration(at_s)}: {lost}: {reason}")
    return list(stages.values()), troubles


def _row(stage: _Stage, wall_s: float) -> str:
    walls = [task.wall_s for task in stage.tasks] or [0.0]
    end, plan = stage.end, stage.plan
    rows = end.rows if end else sum(task.rows for task in stage.tasks)
    written = end.size_bytes if end else sum(task.size_bytes for task in stage.tasks)
    cells = (
        f"{plan.tasks:,}",
        f"{plan.reused:,}" if plan.reused else "",
        f"{end.rows_in:,}" if end and end.rows_in else "",
        f"{rows:,}",
        size(written),
        duration(statistics.median(walls)),
        duration(max(walls)),
        duration(sum(task.cpu_s for task in stage.tasks)),
        f"{stage.again:,}" if stage.again else "",
    )
    left = min(100 * stage.begin_s / wall_s, 99.0)
    width = max(min(100 * (stage.end_s - stage.begin_s) / wall_s, 100 - left), 0.5)
    bar = f'<i style="margin-left:{left:.1f}%;width:{width:.1f}%"></i>'
    words = f"<td>{html.escape(f'{plan.stage}: {plan.title}')}</td>"
    return f'<tr>{words}{"".join(f"<td>{c}</td>" for c in cells)}<td class="when">{bar}</td></tr>'
