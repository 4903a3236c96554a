"""One statement that needs too much memory is run again as stages; the rows are the same."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path

import pytest

from millpond.errors import GaveUp, OutOfMemory
from millpond.options import options
from millpond.physical.stages import Task
from millpond.runtime import Ended
from millpond.runtime.local import LocalRuntime
from millpond.session import DataFrame, Session

Full = Callable[[int], list[str]]


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Full:
    """Let the first `n` tasks end out of memory. Gives the titles of all that were tried."""

    def first(n: int) -> list[str]:
        tried: list[str] = []
        submit = LocalRuntime.submit

        def limited(runtime: LocalRuntime, tasks: Sequence[Task]) -> Sequence[Future[Ended]]:
            futures: list[Future[Ended]] = []
            for task in tasks:
                tried.append(type(task.output).__name__)
                if len(tried) > n:
                    futures += submit(runtime, [task])
                    continue
                futures.append(Future())
                futures[-1].set_exception(OutOfMemory("1 GB was not enough"))
            return futures

        monkeypatch.setattr(LocalRuntime, "submit", limited)
        return tried

    return first


def numbers(sp: Session) -> DataFrame:
    return sp.sql("SELECT i, i % 7 AS k FROM range(1000) t(i)").sort("k, i desc")


WANT = sorted(((i, i % 7) for i in range(1000)), key=lambda row: (row[1], -row[0]))
ATTEMPTS = 2  # Beside others, then alone on one thread: a statement is not cut into pieces.


def test_rows_that_are_collected(full: Full) -> None:
    with Session(options(threads=2)) as sp:
        frame = numbers(sp)
        tried = full(ATTEMPTS)
        assert [(row["i"], row["k"]) for row in frame.take_all()] == WANT
        assert tried[:ATTEMPTS] == ["ToMemory"] * ATTEMPTS
        assert "ToPart" in tried[ATTEMPTS:]


def test_rows_that_are_kept(full: Full) -> None:
    with Session(options(threads=2)) as sp:
        frame = numbers(sp)
        full(ATTEMPTS)
        kept = frame.compute()
        assert [(row["i"], row["k"]) for row in kept.take_all()] == WANT


@pytest.mark.parametrize("name", ["one.parquet", "folder"])
def test_files(full: Full, tmp_path: Path, name: str) -> None:
    with Session(options(threads=2)) as sp:
        frame = numbers(sp)
        full(ATTEMPTS)
        assert frame.write_parquet(tmp_path / name).rows == 1000
        found = sp.read_parquet(tmp_path / name).take_all()
        assert [(row["i"], row["k"]) for row in found] == WANT
    left = [p.name for p in tmp_path.rglob("*") if p.is_file() and p.suffix != ".parquet"]
    assert all(left_name.endswith(".json") for left_name in left)


def test_a_shape_that_was_asked_for_is_kept(full: Full) -> None:
    with Session(options(threads=2, shape="fused")) as sp:
        frame = numbers(sp)
        tried = full(ATTEMPTS)
        with pytest.raises(GaveUp, match="Raise memory_limit"):
            frame.take_all()
        assert len(tried) == ATTEMPTS
