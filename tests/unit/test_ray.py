"""What the Ray runtime refuses, without a cluster."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from millpond.errors import OptionError, OutOfMemory, StorageError, WorkerLost
from millpond.runtime.node import Versions

ray = pytest.importorskip("ray")
place = pytest.importorskip("millpond.runtime.ray.cluster")
nodes = pytest.importorskip("millpond.runtime.ray.nodes")
workers = pytest.importorskip("millpond.runtime.ray.workers")

pytestmark = pytest.mark.slow  # Importing ray takes a second.
OURS = Versions("3.12", "1.0", "1.4.0", "20.0")


def test_a_node_with_another_version_is_refused_by_name() -> None:
    theirs = Versions("3.11", "1.0", "1.4.0", "20.0")
    with pytest.raises(OptionError, match=r"node n7 has Python 3\.11.*has Python 3\.12"):
        place.check_same(OURS, theirs, "n7")
    place.check_same(OURS, OURS, "n7")


@pytest.mark.parametrize(
    "theirs",
    [
        replace(OURS, python="3.13"),
        replace(OURS, millpond="1.1"),
        replace(OURS, duckdb="1.5.0"),
        replace(OURS, pyarrow="21.0"),
    ],
    ids=["python", "millpond", "duckdb", "pyarrow"],
)
def test_a_session_asks_all_nodes_for_their_versions_and_refuses_those_that_differ(
    monkeypatch: pytest.MonkeyPatch, theirs: Versions
) -> None:
    monkeypatch.setattr(place.ray, "get", lambda reply, timeout: reply)
    monkeypatch.setattr(nodes, "versions", lambda: OURS)
    found = object.__new__(nodes.Nodes)
    found.services = {"n1": Told(OURS), "n2": Told(OURS)}
    found.check_versions()
    found.services = {"n1": Told(OURS), "n2": Told(theirs)}
    with pytest.raises(OptionError, match=f"node n2 has {theirs}, but this session has {OURS}"):
        found.check_versions()


def test_a_worker_process_with_another_version_refuses_its_first_task(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A node that joins later is not asked: its processes ask, before they read anything."""
    monkeypatch.setattr(workers, "_setup", lambda session, node: (None, OURS, ""))
    monkeypatch.setattr(place.ray, "get_runtime_context", lambda: Here())
    with pytest.raises(OptionError, match=r"node here has .* but this session has Python 3\.12"):
        workers._worker("a session", False)


class Told:
    """Stands for a node's service that has these versions."""

    def __init__(self, has: Versions) -> None:
        self.versions, self._has = self, has

    def remote(self) -> Versions:
        return self._has


class Here:
    def get_node_id(self) -> str:
        return "here"


def test_an_address_without_a_cluster_says_what_to_check() -> None:
    with pytest.raises(OptionError, match="ray status"):
        place.connect("bogus://address", None)


def test_a_cluster_that_does_not_come_up_is_an_error_that_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ray's error is of the class `Exception`; what it had started is ended."""
    ended = []

    def init(**how: Any) -> None:
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(place.ray, "init", init)
    monkeypatch.setattr(place.ray, "shutdown", lambda: ended.append(True))
    with pytest.raises(OptionError, match=r"at 'this machine'.* timed out during startup"):
        place.connect(None, 2)
    assert ended


@pytest.mark.parametrize(
    ("error", "ours"),
    [
        (ray.exceptions.WorkerCrashedError(), WorkerLost),
        (ray.exceptions.NodeDiedError("node n1 died"), WorkerLost),
        (ray.exceptions.TaskCancelledError(), WorkerLost),
        (ray.exceptions.OutOfMemoryError("killed by the monitor"), OutOfMemory),
        (KeyError("a bug"), KeyError),
    ],
)
def test_errors_of_ray_become_ours(error: BaseException, ours: type[BaseException]) -> None:
    assert type(place.translated(error)) is ours


class Node:
    """Stands for a node's service: does it see the files?"""

    def __init__(self, sees: bool) -> None:
        self.sizes = self
        self._sees = sees

    def remote(self, paths: list[str]) -> list[int | None]:
        return [os.stat(path).st_size if self._sees else None for path in paths]


def cluster(monkeypatch: pytest.MonkeyPatch, **sees: bool) -> Any:
    monkeypatch.setattr(place.ray, "get", lambda reply, timeout: reply)
    found = object.__new__(nodes.Nodes)
    found.services = {name: Node(answer) for name, answer in sees.items()}
    found.working = list(sees)
    return found


def test_a_folder_that_one_node_does_not_see_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = str(tmp_path / "new" / "out")
    with pytest.raises(OptionError, match=r"1 of 2 nodes have another folder there.*\(n2\)"):
        cluster(monkeypatch, n1=True, n2=False).check_shared(target, "the target")
    cluster(monkeypatch, n1=True, n2=True).check_shared(target, "the target")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="Linux's own folder of processes")
def test_a_folder_that_takes_no_file_is_an_error_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StorageError, match="choose another place"):
        cluster(monkeypatch, n1=True).check_shared("/proc/out", "the target")
