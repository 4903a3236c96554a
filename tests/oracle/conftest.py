"""One set of tables and one session per shape for all oracle tests."""

from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import pytest

from millpond.session import Session
from tests.oracle.harness import Frames, Shape, open_session
from tests.oracle.tables import make_tables


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("oracle")


@pytest.fixture(scope="session")
def oracle(folder: Path) -> duckdb.DuckDBPyConnection:
    return make_tables(folder)


@pytest.fixture(scope="session")
def opened() -> Iterator[Callable[[Shape], Session]]:
    sessions: dict[Shape, Session] = {}

    def session(shape: Shape) -> Session:
        if shape not in sessions:
            sessions[shape] = open_session(shape)
        return sessions[shape]

    yield session
    for sp in sessions.values():
        sp.close()


@pytest.fixture(scope="session")
def tables(folder: Path, oracle: duckdb.DuckDBPyConnection) -> Callable[[Session], Frames]:
    def frames(sp: Session) -> Frames:
        return {name: sp.read_parquet(str(folder / name)) for name in ("t", "u", "v", "e")}

    return frames
