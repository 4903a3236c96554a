"""The stores that the contract suite runs against, each in an empty place of its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import servers
from places import Place, remote

from millpond.storage import LocalStorage


@pytest.fixture(scope="session")
def juicefs_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Server]:
    with servers.juicefs(tmp_path_factory.mktemp("juicefs")) as server:
        yield server


@pytest.fixture(scope="session")
def moto_server() -> Iterator[servers.Server]:
    with servers.moto() as server:
        yield server


@pytest.fixture(params=["local", "juicefs-s3", "moto-s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    match request.param:
        case "juicefs-s3":
            return remote(request.getfixturevalue("juicefs_server"), atomic=False)
        case "moto-s3":
            return remote(request.getfixturevalue("moto_server"), atomic=True)
    return Place(LocalStorage, str(tmp_path / "data"))
