"""Fixtures that several folders share."""

from pathlib import Path

import pytest

from tests.support.sessions import write_events


@pytest.fixture(scope="session")
def events_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_events(tmp_path_factory.mktemp("events"))


@pytest.fixture
def data_root(tmp_path: Path) -> str:
    return str(tmp_path / "root")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update", action="store_true", help="rewrite the golden files")
