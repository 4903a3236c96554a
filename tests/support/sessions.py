"""Sessions that count what ran, and a table of events for every test to share."""

from collections import Counter
from pathlib import Path
from typing import Any

import duckdb

import millpond
from millpond import events
from millpond.options import options
from millpond.session import Session

# Twelve row groups of 2,000 rows; with splits of 8 KB every source has several tasks.
ROWS, ROW_GROUP, SPLIT_BYTES = 24_000, 2_048, 8_192

EVENTS_SQL = f"""
SELECT i AS id, (i * 7919) % 1000 AS user_id, ['view', 'click', 'buy'][i % 3 + 1] AS kind,
       CASE WHEN i % 11 = 0 THEN NULL ELSE (i * 31) % 500 END AS price,
       'naïve "q" ''' || (i % 97) AS note
FROM range({ROWS}) AS t(i)
"""


class Counted:
    """A session and how many tasks it ran, retried and reused."""

    def __init__(self, **given: Any) -> None:
        self.session = Session(options(split_bytes=SPLIT_BYTES, threads=2, **given))
        self.seen: list[events.Event] = []
        self.session.listen(self.seen.append)

    def __enter__(self) -> "Counted":
        return self

    def __exit__(self, *_: object) -> None:
        self.session.close()

    @property
    def finished(self) -> Counter[int]:
        """Tasks that finished, by stage."""
        done = (e.stage for e in self.seen if isinstance(e, events.TaskFinished))
        return Counter(done)

    @property
    def tasks(self) -> int:
        return self.finished.total()

    @property
    def reused(self) -> int:
        return sum(e.reused for e in self.seen if isinstance(e, events.StagePlanned))

    @property
    def retried(self) -> int:
        return sum(isinstance(e, events.TaskRetried) for e in self.seen)

    def forget(self) -> None:
        self.seen.clear()


def write_events(folder: Path) -> str:
    """The table of events as one Parquet file of twelve row groups."""
    path = folder / "events.parquet"
    target = f"'{path}' (FORMAT parquet, ROW_GROUP_SIZE {ROW_GROUP})"
    duckdb.execute(f"COPY ({EVENTS_SQL}) TO {target}")
    return str(path)


def oracle(sql: str, **paths: str) -> list[tuple[Any, ...]]:
    """What plain DuckDB gives for `sql` over whole files, in its order."""
    with duckdb.connect() as con:
        for name, path in paths.items():
            con.execute(f"CREATE VIEW {name} AS FROM read_parquet('{path}')")
        rows: list[tuple[Any, ...]] = con.execute(sql).fetchall()
        return rows


def tuples(frame: millpond.DataFrame) -> list[tuple[Any, ...]]:
    """A frame's rows, in order."""
    return [tuple(row.values()) for row in frame.take_all()]
