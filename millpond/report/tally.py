"""Events → what a person wants to know while they wait, in one line of text. No clock, no terminal.

A run of many tasks tells how many are done; a fused run is one task, so its share comes
from the engine, as a number that the caller hands in.
"""

from dataclasses import dataclass

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


@dataclass(slots=True)
class _Stage:
    title: str
    begin_s: float
    tasks: int
    reused: int
    done: int = 0


class Tally:
    """Adds events up. One thread adds; another may read a line at any moment."""

    def __init__(self) -> None:
        self._clear(RunStarted("", 0), 0.0)

    def _clear(self, event: RunStarted, now_s: float) -> None:
        self.shape, self.n_stages, self.begin_s = event.shape, event.stages, now_s
        self.rows = self.size_bytes = self.tasks = self.again = 0
        self._open: dict[int, _Stage] = {}
        self._finished: set[int] = set()
        self._reused: dict[int, int] = {}

    def add(self, event: Event, now_s: float) -> None:
        match event:
            case RunStarted():
                self._clear(event, now_s)
            case StagePlanned(stage, title, tasks, reused):
                # The stages before are counted whole, so a finished one needs no record. One
                # that is planned again is as if it had not been planned before.
                self._open[stage] = _Stage(title, now_s, tasks, reused, reused)
                self._finished.discard(stage)
                self._reused[stage] = reused
            case TaskFinished(stage=stage, rows=rows, size_bytes=size_bytes):
                self.rows += rows
                self.size_bytes += size_bytes
                self.tasks += 1
                if stage in self._open:
                    self._open[stage].done += 1
            case TaskRetried():
                self.again += 1
            case PartsMissing(parts):
                self.again += len(parts)
            case StageFinished(stage=stage):
                if self._open.pop(stage, None):
                    self._finished.add(stage)

    @property
    def reused(self) -> int:
        """Tasks whose results an earlier run left."""
        return sum(self._reused.values())

    def line(self, now_s: float, fraction: float | None = None) -> str:
        """The run as it is now. `fraction` is the engine's word on a statement that runs."""
        if self.shape == "fused" or not self._open:
            begin_s, words = self.begin_s, [self.shape]
            if fraction:
                words.append(f"{fraction:.0%}")
        else:
            stage = next(reversed(self._open.values()))
            begin_s, fraction = stage.begin_s, _share(stage)
            words = [
                f"stage {len(self._finished) + 1}/{self.n_stages}: {_cut(stage.title)}",
                f"{stage.done:,}/{stage.tasks:,} tasks",
            ]
        passed_s = now_s - begin_s
        clock = duration(now_s - self.begin_s)
        # Less than a twentieth says too little about the rest.
        if fraction and 0.05 <= fraction < 1 and passed_s >= 1:
            clock += f", about {duration(passed_s * (1 - fraction) / fraction)} left"
        # The least needed comes last, where a narrow terminal cuts.
        return " · ".join(["millpond", *words, clock, *self._counts(now_s)])

    def summary(self, event: RunFinished) -> str:
        """The run when it is over."""
        head = f"stopped ({event.error})" if event.error else "done"
        tasks = f"{self.tasks:,} task{'' if self.tasks == 1 else 's'}"
        if self.reused:
            tasks += f" and {self.reused:,} from an earlier run"
        counts = self._counts(self.begin_s + event.wall_s)
        words = [head, duration(event.wall_s), tasks, *counts]
        return " · ".join(["millpond", *words])

    def _counts(self, now_s: float) -> list[str]:
        words = []
        if self.rows:
            words.append(f"{count(self.rows)} row{'' if self.rows == 1 else 's'}")
        if self.size_bytes:
            words.append(size(self.size_bytes))
        passed_s = now_s - self.begin_s
        if passed_s >= 1 and self.rows >= passed_s:
            words.append(f"{count(self.rows / passed_s)} rows/s")
        if self.again:
            words.append(f"{self.again} again")
        return words


def _share(stage: _Stage) -> float | None:
    """How much of this run's own work on a stage is done."""
    own = stage.tasks - stage.reused
    return (stage.done - stage.reused) / own if own else None


def _cut(title: str) -> str:
    return title if len(title) <= 36 else title[:35] + "…"


def count(number: float) -> str:
    """
    >>> count(950), count(12_345), count(3_200_000)
    ('950', '12.3k', '3.2M')
    """
    for unit in ("", "k", "M", "G"):
        if number < 1000:
            return f"{number:.1f}{unit}" if unit else f"{number:.0f}"
        number /= 1000
    return f"{number:.1f}T"


def size(n_bytes: float) -> str:
    """
    >>> size(512), size(1_500_000)
    ('512 B', '1.5 MB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} B" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} TB"


def duration(seconds: float) -> str:
    """
    >>> duration(0.25), duration(75), duration(3700)
    ('0.2 s', '1:15', '1:01:40')
    """
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
