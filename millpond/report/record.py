"""Events of a run ⇄ one JSON text, for a page that is drawn later.

A run is one small file, written when it ends, whatever its end. Memory is bounded: of a
run of more tasks only the first are kept one by one, the stages' sums are always whole.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from millpond import events
from millpond.events import Event, RunFinished, RunStarted, TaskFinished, TaskStarted

_VERSION = 1
MOST_TASKS = 20_000
_KINDS = {
    kind.__name__: kind
    for kind in (
        events.RunStarted, events.RunFinished, events.StagePlanned, events.TaskFinished,
        events.TaskRetried, events.PartsMissing, events.StageFinished,
    )
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Recording:
    """One run: when it began, and its events with the seconds that had passed."""

    began: datetime
    events: tuple[tuple[float, Event], ...]
    dropped: int = 0  # Tasks that were not kept one by one.


class Recorder:
    """Listens to events, and hands (name, text) of each finished run to `write`."""

    def __init__(self, session: str, write: Callable[[str, str], object]) -> None:
        self._session, self._write = session, write
        self._runs = 0
        self._clear()

    def _clear(self) -> None:
        self._began, self._begin_s = datetime.now(UTC), time.monotonic()
        self._events: list[tuple[float, Event]] = []
        self._tasks = self._dropped = 0

    def __call__(self, event: Event) -> None:
        match event:
            case RunStarted():
                self._clear()
            case TaskStarted():
                return  # Its end tells how long it took.
            case TaskFinished():
                self._tasks += 1
                if self._tasks > MOST_TASKS:
                    self._dropped += 1
                    return
        self._events.append((time.monotonic() - self._begin_s, event))
        if isinstance(event, RunFinished):
            self._runs += 1
            told = Recording(self._began, tuple(self._events), self._dropped)
            # By time first, so that a listing is in the order of the runs.
            name = f"{self._began:%Y%m%dT%H%M%S}-{self._session}-{self._runs:06d}.json"
            self._write(name, to_json(told))


def to_json(told: Recording) -> str:
    return json.dumps(
        {
            "millpond_events": _VERSION,
            "began": told.began.isoformat(),
            "dropped": told.dropped,
            "events": [
                [round(at_s, 4), type(event).__name__, dataclasses.asdict(event)]
                for at_s, event in told.events
            ],
        }
    )


def from_json(text: str | bytes) -> Recording | None:
    """The recording, or None: another version, or no recording at all."""
    try:
        found = json.loads(text)
        if found["millpond_events"] != _VERSION:
            return None
        told = tuple((float(at_s), _event(kind, item)) for at_s, kind, item in found["events"])
        return Recording(datetime.fromisoformat(found["began"]), told, int(found["dropped"]))
    except (ValueError, KeyError, TypeError):
        return None


def _event(kind: str, item: dict[str, Any]) -> Event:
    if kind == "PartsMissing":  # JSON has no tuples.
        item = {**item, "parts": tuple((int(a), int(b)) for a, b in item["parts"])}
    made: Event = _KINDS[kind](**item)
    return made
