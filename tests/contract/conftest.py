"""The stores that the contract suite runs against, each in an empty place of its own."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import ceph
import clouds
import pytest
import servers
from hf3fs import Cluster
from places import Place, remote

from millpond.storage import LocalStorage, ThreeFsStorage, open_storage


@pytest.fixture(scope="session")
def juicefs_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Server]:
    with servers.juicefs(tmp_path_factory.mktemp("juicefs")) as server:
        yield server


@pytest.fixture(scope="session")
def moto_server() -> Iterator[servers.Server]:
    with servers.moto() as server:
        yield server


@pytest.fixture(scope="session")
def ceph_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Server]:
    if "MILLPOND_TEST_CEPH" not in os.environ:
        pytest.skip("Ceph takes long to start: `make test-ceph`")
    assert not ceph.missing(), f"Ceph's programs are not installed: {ceph.missing()}"
    with ceph.ceph(tmp_path_factory.mktemp("ceph")) as server:
        yield server


@pytest.fixture(scope="session")
def gs_cloud() -> Iterator[clouds.Clouds]:
    with clouds.clouds("gs") as server:
        yield server


@pytest.fixture(scope="session")
def az_cloud() -> Iterator[clouds.Clouds]:
    with clouds.clouds("az") as server:
        yield server


@pytest.fixture(scope="session")
def shared_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("this platform has no FUSE, so no shared file system can be mounted")
    with servers.juicefs_mounts(tmp_path_factory.mktemp("shared")) as nodes:
        yield nodes


@pytest.fixture
def local_place(tmp_path: Path) -> Place:
    return Place(LocalStorage, str(tmp_path / "data"))


@pytest.fixture(
    params=[
        "local",
        "shared-mount",
        "3fs-fake",
        "3fs-without-client",
        "juicefs-s3",
        "moto-s3",
        "ceph-s3",
        "gs-fake",
        "az-fake",
    ]
)
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    match request.param:
        case "shared-mount":
            node: Path = request.getfixturevalue("shared_nodes")[0]
            return Place(LocalStorage, str(node / uuid.uuid4().hex))
        case "3fs-fake":
            io = Cluster(tmp_path).install(monkeypatch)
            return Place(lambda: ThreeFsStorage(io), str(tmp_path / "data"))
        case "3fs-without-client":
            return Place(
                lambda: ThreeFsStorage(None, mount_of=lambda _: str(tmp_path)),
                str(tmp_path / "data"),
            )
        case "juicefs-s3":
            return remote(request.getfixturevalue("juicefs_server"))
        case "ceph-s3":
            return remote(request.getfixturevalue("ceph_server"))
        case "gs-fake" | "az-fake" as name:
            kind = name.removesuffix("-fake")
            cloud: clouds.Clouds = request.getfixturevalue(f"{kind}_cloud")
            root = f"{kind}://{clouds.BUCKET}/{uuid.uuid4().hex}"
            return Place(lambda: open_storage(root, cloud.options()), root)
        case "moto-s3":
            return remote(request.getfixturevalue("moto_server"))
    return Place(LocalStorage, str(tmp_path / "data"))
