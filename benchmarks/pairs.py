"""Two ways to do the same, measured in alternating pairs; a table, and JSON for later.

Other work on the machine disturbs both sides of a pair alike, so what is reported is the
median of the differences and of the ratios, pair by pair, and each side's own median.
Processor seconds stand beside the wall clock: they say more on a machine that is not idle.
"""

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Compared:
    """Medians of one comparison, pair by pair: wall clock, and processor seconds."""

    name: str
    theirs_s: float
    ours_s: float
    ratio: float
    more_s: float
    theirs_cpu_s: float
    ours_cpu_s: float
    ratio_cpu: float
    more_cpu_s: float
    pairs: int


Spent = tuple[float, float]
"""Wall clock and processor seconds."""


def compare(name: str, theirs: Callable[[], Spent], ours: Callable[[], Spent], n: int) -> Compared:
    """Run both `n` times in turn."""
    pairs: list[tuple[Spent, Spent]] = []
    for i in range(n):
        # Who goes second finds warmer caches: they take turns.
        if i % 2:
            mine = ours()
            pairs.append((theirs(), mine))
        else:
            pairs.append((theirs(), ours()))
    return compared(name, pairs)


def compared(name: str, pairs: Sequence[tuple[Spent, Spent]]) -> Compared:
    """From pairs of what they and we spent."""

    def sides(kind: int) -> list[float]:
        theirs, ours = [t[kind] for t, _ in pairs], [o[kind] for _, o in pairs]
        both = list(zip(theirs, ours, strict=True))
        every = (theirs, ours, [o / t for t, o in both], [o - t for t, o in both])
        return [statistics.median(some) for some in every]

    return Compared(name, *sides(0), *sides(1), len(pairs))


def timed(work: Callable[[], object]) -> Callable[[], Spent]:
    """What `work` spends in this process and its children, on all their threads."""
    me = psutil.Process()

    def cpu_s() -> float:
        # Our own clock is finer than the one that tells of children.
        ours, gone = time.process_time(), me.cpu_times()
        live = [child.cpu_times() for child in me.children(recursive=True)]
        return (
            ours + gone.children_user + gone.children_system + sum(t.user + t.system for t in live)
        )

    def once() -> Spent:
        wall, cpu = time.perf_counter(), cpu_s()
        work()
        return time.perf_counter() - wall, cpu_s() - cpu

    return once


def table(rows: Sequence[Compared], theirs: str) -> None:
    """Print the comparisons."""
    width = max(len(row.name) for row in rows)
    head = f"{theirs:>10}  {'millpond':>10}  {'ratio':>6}  {'more':>9}"
    print(f"{'':{width}}  {'wall':<41}    processor\n{'':{width}}  {head}    {head}")
    for row in rows:
        print(
            f"{row.name:{width}}  {_s(row.theirs_s):>10}  {_s(row.ours_s):>10}"
            f"  {row.ratio:6.2f}  {_s(row.more_s):>9}"
            f"    {_s(row.theirs_cpu_s):>10}  {_s(row.ours_cpu_s):>10}"
            f"  {row.ratio_cpu:6.2f}  {_s(row.more_cpu_s):>9}"
        )


def _s(seconds: float) -> str:
    return f"{seconds:.2f} s" if abs(seconds) >= 1 else f"{seconds * 1000:.1f} ms"


def save(name: str, rows: Sequence[Compared], **more: object) -> None:
    """Write `results/NAME.json`."""
    RESULTS.mkdir(exist_ok=True)
    found = {"rows": [asdict(row) for row in rows], **more}
    (RESULTS / f"{name}.json").write_text(json.dumps(found, indent=1))


def in_words(found: dict[str, Any]) -> str:
    """A result on one line."""
    return ", ".join(f"{k} {v:,.4g}" if not isinstance(v, str) else v for k, v in found.items())


def keep(name: str, results: object) -> None:
    """Write results as JSON, for later."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
