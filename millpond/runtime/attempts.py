"""Which attempts run, and since when; what those before them met. Time is an argument."""

from collections.abc import Iterator

from millpond.physical.stages import TaskId


class Attempts:
    """The attempts that were submitted, and neither ended nor were cancelled."""

    def __init__(self) -> None:
        self._running: dict[tuple[int, int], dict[int, float]] = {}  # Attempt: start in s.
        self._stories: dict[tuple[int, int], list[str]] = {}  # Of tasks that have failed.

    def __iter__(self) -> Iterator[TaskId]:
        for (stage, partition), attempts in self._running.items():
            for attempt in attempts:
                yield TaskId(stage, partition, attempt)

    def __bool__(self) -> bool:
        return bool(self._running)

    def begin(self, task: TaskId, now_s: float) -> None:
        self._running.setdefault(task[:2], {})[task.attempt] = now_s

    def runs(self, task: TaskId) -> bool:
        return task.attempt in self._running.get(task[:2], ())

    def any_of(self, stage: int, partition: int) -> bool:
        """Does an attempt of this task run?"""
        return (stage, partition) in self._running

    def end(self, task: TaskId) -> float | None:
        """Strike an attempt off: since when it ran. None if nobody waits for it any more."""
        attempts = self._running.get(task[:2], {})
        since_s = attempts.pop(task.attempt, None)
        if since_s is not None and not attempts:
            del self._running[task[:2]]
        return since_s

    def end_all(self, stage: int, partition: int) -> list[TaskId]:
        """Strike off those of one task: what ran."""
        attempts = self._running.pop((stage, partition), {})
        return [TaskId(stage, partition, attempt) for attempt in attempts]

    def late(self, now_s: float, limit_s: float) -> list[TaskId]:
        """Those that have run for as long as they may."""
        return [
            TaskId(stage, partition, attempt)
            for (stage, partition), attempts in self._running.items()
            for attempt, since_s in attempts.items()
            if now_s - since_s >= limit_s
        ]

    def single(self) -> list[tuple[int, int, float]]:
        """Tasks of which one attempt runs: stage, partition, since when."""
        return [
            (stage, partition, since_s)
            for (stage, partition), attempts in self._running.items()
            if len(attempts) == 1
            for since_s in attempts.values()
        ]

    def count(self) -> dict[int, int]:
        """How many run of each stage."""
        counted: dict[int, int] = {}
        for (stage, _), attempts in self._running.items():
            counted[stage] = counted.get(stage, 0) + len(attempts)
        return counted

    def tell(self, task: TaskId, line: str) -> list[str]:
        """Add to a task's story, and all of it so far."""
        story = self._stories.setdefault(task[:2], [])
        story.append(line)
        return story

    def forget_story(self, stage: int, partition: int) -> None:
        self._stories.pop((stage, partition), None)
