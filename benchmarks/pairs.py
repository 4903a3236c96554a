"""Two ways to do the same, measured in alternating pairs; a table, and JSON for later.

Other work on the machine disturbs both sides of a pair alike, so what is reported is the
median of the differences and of the ratios, pair by pair, and each side's own median.
"""

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Compared:
    """Medians of one comparison: seconds of both sides, and pair by pair."""

    name: str
    theirs_s: float
    ours_s: float
    ratio: float
    more_s: float
    pairs: int


def compare(
    name: str, theirs: Callable[[], float], ours: Callable[[], float], pairs: int
) -> Compared:
    """Run both `pairs` times in turn; each gives the seconds that it took."""
    times = []
    for i in range(pairs):
        # Who goes second finds warmer caches: they take turns.
        if i % 2:
            mine = ours()
            times.append((theirs(), mine))
        else:
            times.append((theirs(), ours()))
    return compared(name, times)


def compared(name: str, times: Sequence[tuple[float, float]]) -> Compared:
    """From pairs of (their seconds, our seconds)."""
    return Compared(
        name,
        statistics.median(t for t, _ in times),
        statistics.median(o for _, o in times),
        statistics.median(o / t for t, o in times),
        statistics.median(o - t for t, o in times),
        len(times),
    )


def table(rows: Sequence[Compared], theirs: str) -> None:
    """Print the comparisons."""
    width = max(len(row.name) for row in rows)
    print(f"{'':{width}}  {theirs:>10}  {'millpond':>10}  {'ratio':>6}  {'more':>9}")
    for row in rows:
        print(
            f"{row.name:{width}}  {_s(row.theirs_s):>10}  {_s(row.ours_s):>10}"
            f"  {row.ratio:6.2f}  {_s(row.more_s):>9}"
        )


def _s(seconds: float) -> str:
    return f"{seconds:.2f} s" if abs(seconds) >= 1 else f"{seconds * 1000:.1f} ms"


def save(name: str, rows: Sequence[Compared], **more: object) -> None:
    """Write `results/NAME.json`."""
    RESULTS.mkdir(exist_ok=True)
    found = {"rows": [asdict(row) for row in rows], **more}
    (RESULTS / f"{name}.json").write_text(json.dumps(found, indent=1))
