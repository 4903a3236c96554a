"""Run a pipeline in a shape, and compare its rows with plain DuckDB's."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import duckdb

from millpond.dataframe import DataFrame
from millpond.events import Event, StagePlanned, TaskFinished
from millpond.options import options
from millpond.session import Session

Frames = dict[str, DataFrame]


@dataclass(frozen=True, slots=True)
class Shape:
    """How to run: which shape, with the optimiser or not, sources in `n` partitions (0: own)."""

    shape: str
    optimize: bool
    n: int

    def __str__(self) -> str:
        return f"{self.shape}-{'optimised' if self.optimize else 'written'}-{self.n}"


SHAPES = (
    *(Shape("staged", optimize, n) for optimize in (True, False) for n in (0, 1, 2, 7)),
    Shape("fused", True, 0),
    Shape("fused", False, 0),
    Shape("auto", True, 7),
)
FEW = (Shape("staged", True, 0), Shape("staged", False, 7), Shape("fused", True, 0))


@dataclass(frozen=True, slots=True)
class Case:
    """A pipeline in Millpond's words, and the same in plain SQL over the tables."""

    name: str
    build: Callable[[Session, Frames], DataFrame]
    sql: str
    ordered: bool = False
    cut: bool = True  # Whether some stage must have several tasks where sources have several.

    def __str__(self) -> str:
        return self.name


@dataclass(slots=True)
class Ran:
    """What happened in a run: tasks by stage."""

    planned: list[int] = field(default_factory=list)
    tasks: int = 0

    def __call__(self, event: Event) -> None:
        match event:
            case StagePlanned(tasks=tasks):
                self.planned.append(tasks)
            case TaskFinished():
                self.tasks += 1


def open_session(shape: Shape) -> Session:
    """One byte a split: every row group is a task of its own."""
    return Session(
        options(
            shape=shape.shape, optimize=shape.optimize, split_bytes=1, threads=2, verify="rows",
            memory_limit="1GB", progress=False,
        )
    )  # fmt: skip


def check(case: Case, sp: Session, shape: Shape, frames: Frames, oracle: Any) -> None:
    """The rows, names and types of the case are plain DuckDB's, and its tasks ran."""
    if shape.n:
        frames = {name: frame.repartition(shape.n) for name, frame in frames.items()}
    frame = case.build(sp, frames)
    ran = Ran()
    sp.listen(ran)

    rows = frame.take_all()

    assert [(f.name, f.type) for f in frame.schema] == described(case.sql, oracle)
    expected = oracle_rows(case.sql, frame.columns, oracle)
    assert_same(rows, expected, ordered=case.ordered)
    assert ran.tasks == sum(ran.planned)
    if shape.shape == "fused" and frame.num_partitions == 1:
        assert ran.planned == [1]
    if shape.shape == "staged" and case.cut and shape.n != 1:
        assert max(ran.planned) >= (shape.n or 3)


def described(sql: str, oracle: duckdb.DuckDBPyConnection) -> list[tuple[str, str]]:
    return [(row[0], row[1]) for row in oracle.execute(f"DESCRIBE {sql}").fetchall()]


def oracle_rows(sql: str, names: Sequence[str], oracle: Any) -> list[dict[str, Any]]:
    cursor = oracle.execute(sql)
    return [dict(zip(names, map(_seen, row), strict=True)) for row in cursor.fetchall()]


def _seen(item: Any) -> Any:
    """A value of DuckDB's Python interface, as Arrow gives it."""
    match item:
        case UUID():
            return str(item)
        case dict():
            return {name: _seen(part) for name, part in item.items()}
    return item


def assert_same(
    rows: list[dict[str, Any]], expected: list[dict[str, Any]], *, ordered: bool
) -> None:
    """Equal as multisets, or in order; floats agree to 1e-9 relative."""
    assert len(rows) == len(expected)
    if not ordered:
        rows, expected = sorted(rows, key=_key), sorted(expected, key=_key)
    for i, (mine, other) in enumerate(zip(rows, expected, strict=True)):
        assert list(mine) == list(other)
        for name in mine:
            assert _close(mine[name], other[name]), (
                f"row {i}, {name}: {mine[name]!r}, plain DuckDB: {other[name]!r}"
            )


def _key(item: Any) -> str:
    if isinstance(item, dict):
        return repr([_key(part) for part in item.values()])
    if isinstance(item, list | tuple):
        return repr([_key(part) for part in item])
    if isinstance(item, float):
        return f"{item + 0.0:.6g}"  # Adding zero makes one zero of two.
    return repr(item)


def _close(mine: Any, other: Any) -> bool:
    if isinstance(mine, float) and isinstance(other, float):
        if math.isnan(mine) or math.isnan(other):
            return math.isnan(mine) and math.isnan(other)
        return math.isclose(mine, other, rel_tol=1e-9)
    if isinstance(mine, list) and isinstance(other, list | tuple):
        return len(mine) == len(other) and all(map(_close, mine, other))
    if isinstance(mine, list) and isinstance(other, dict):  # A map.
        return bool(dict(mine) == other)
    if isinstance(mine, dict) and isinstance(other, dict):
        return list(mine) == list(other) and all(map(_close, mine.values(), other.values()))
    return bool(mine == other)
