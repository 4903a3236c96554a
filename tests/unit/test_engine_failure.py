"""DuckDB fails inside: it refuses all later statements, so another instance takes over."""

from typing import Any

import duckdb
import pytest

from millpond.engine.duckdb import Engine
from millpond.errors import WorkerLost
from millpond.options import options
from millpond.session import Session


class Broken:
    """DuckDB's connection after a failure inside, as it is for one kind of call."""

    def __init__(self, real: Any, call: str, error: type[duckdb.Error]) -> None:
        self._real, self._call, self._error = real, call, error

    def __getattr__(self, name: str) -> Any:
        if name == self._call:
            return self._fail
        return getattr(self._real, name)

    def cursor(self) -> "Broken":
        return Broken(self._real.cursor(), self._call, self._error)

    def _fail(self, *args: Any) -> Any:
        raise self._error("FATAL Error: the database has been invalidated")


def broken(engine: Engine, call: str, error: type[duckdb.Error]) -> None:
    engine._root = Broken(engine._root, call, error)  # type: ignore[assignment]
    engine._watched = Broken(engine._watched, call, error)  # type: ignore[assignment]


@pytest.mark.parametrize("error", [duckdb.FatalException, duckdb.InternalException])
@pytest.mark.parametrize("shape", ["fused", "staged"])
def test_a_run_goes_on_in_another_instance(shape: str, error: type[duckdb.Error]) -> None:
    with Session(options(threads=2, shape=shape)) as sp:
        frame = sp.from_items([1, 2, 3]).repartition(2, by_rows=True).filter("item > 1")
        wanted = frame.take_all()
        broken(sp._work.worker.engine, "sql", error)  # What rows are asked with.

        assert frame.take_all() == wanted == [{"item": 2}, {"item": 3}]
        assert not isinstance(sp._work.worker.engine._root, Broken)
        assert frame.count() == 2
        # What was locked is locked again.
        with pytest.raises(Exception, match="configuration has been locked"):
            sp._work.worker.engine._root.execute("SET threads = 1")


def test_words_fail_once_and_clearly() -> None:
    with Session(options(threads=2)) as sp:
        frame = sp.from_items([1, 2, 3])
        broken(sp._work.worker.engine, "execute", duckdb.FatalException)

        with pytest.raises(WorkerLost, match="DuckDB failed inside, and was opened anew"):
            frame.filter("item > 1")
        assert frame.filter("item > 1").count() == 2


def test_a_cursor_of_the_old_instance_does_not_end_the_new_one() -> None:
    with Session(options(threads=2)) as sp:
        engine = sp._work.worker.engine
        broken(engine, "execute", duckdb.FatalException)
        with engine.cursor() as first, engine.cursor() as second:
            with pytest.raises(WorkerLost):
                first.rows("SELECT 1")
            opened = engine._root
            with pytest.raises(WorkerLost):
                second.rows("SELECT 1")

        assert engine._root is opened
