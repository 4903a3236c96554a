"""The stores that the contract suite runs against, each in an empty place of its own."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import servers
from places import Place

from millpond.storage import LocalStorage, open_storage


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


def remote(server: servers.Server, *, atomic: bool) -> Place:
    root = f"s3://{server.bucket}/{uuid.uuid4().hex}"
    return Place(lambda: open_storage(root, server.options()), root, atomic=atomic)
