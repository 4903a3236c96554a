"""Nodes that are not like the session's machine: found, named and refused, on a real cluster."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from ray_cluster import STORE_BYTES, add_node, cluster, lose_node

import millpond
from millpond.errors import OptionError
from tests.support.sessions import Counted, oracle, tuples

pytestmark = pytest.mark.slow

# What a node's processes run as they start: there, the library has another version.
OTHER = {
    "Python 0.0": "import platform; platform.python_version_tuple = lambda: ('0', '0', '0')",
    "Millpond 0.0.0": "import millpond.version as v; v.VERSION = '0.0.0'",
    "DuckDB 0.0.0": "import duckdb; duckdb.__version__ = '0.0.0'",
    "pyarrow 0.0.0": "import pyarrow; pyarrow.__version__ = '0.0.0'",
}


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    pytest.importorskip("ray")
    with cluster(1) as found:
        yield found


@contextmanager
def unlike(nodes: Any, folder: Path, *versions: str) -> Iterator[Any]:
    """A node where these are the versions."""
    (folder / "sitecustomize.py").write_text("\n".join(OTHER[version] for version in versions))
    paths = [str(folder), *(path for path in sys.path if path)]
    node = add_node(nodes, env_vars={"PYTHONPATH": os.pathsep.join(paths)})
    try:
        yield node
    finally:
        lose_node(nodes, node)


def session(nodes: Any, **given: Any) -> millpond.Session:
    return millpond.init(runtime="ray", address=nodes.address, allow_insecure=True, **given)


def test_a_node_with_other_versions_is_refused_by_name(nodes: Any, tmp_path: Path) -> None:
    with unlike(nodes, tmp_path, *OTHER) as node:
        with pytest.raises(OptionError, match="install the same on all nodes") as refused:
            session(nodes)
        theirs, _, ours = str(refused.value).partition("but this session has")
        assert f"node {node.node_id} has" in theirs
        assert [v for v in OTHER if v in theirs and v not in ours] == [*OTHER]


def test_a_node_with_another_version_that_joins_later_computes_nothing(
    nodes: Any, tmp_path: Path, events_path: str
) -> None:
    with Counted(runtime="ray", address=nodes.address, allow_insecure=True) as run:
        assert run.session.read_parquet(events_path).count() == 24_000
        with unlike(nodes, tmp_path, "DuckDB 0.0.0") as node:
            place = run.session._work.place()
            while node.node_id not in place._nodes.services:
                place.capacity()  # It asks the cluster once a second.
                time.sleep(0.1)
            frame = run.session.read_parquet(events_path).map_batches(
                waits, schema={"id": "BIGINT"}
            )
            with pytest.raises(OptionError, match=rf"node {node.node_id} has .*DuckDB 0\.0\.0"):
                frame.to_arrow()


def waits(batch: Any) -> Any:
    """For ever: on the node that is like the session's, which has one CPU."""
    import threading

    threading.Event().wait()


@pytest.fixture
def apart(nodes: Any, tmp_path: Path) -> Iterator[Path]:
    """A folder that a second node of the cluster has not: another lies in its place there."""
    folder = tmp_path / "here"
    folder.mkdir()
    start = f"{sys.executable} -m ray.scripts.scripts start --block --num-cpus 1 --address"
    command = f"mount -t tmpfs none {folder} && exec {start} {nodes.address}"
    command += f""" --object-store-memory {STORE_BYTES} --resources '{{"apart": 1}}'"""
    try:
        subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "none", str(folder)], check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a node that sees other files needs root")
    import ray

    node = subprocess.Popen(["unshare", "-m", "sh", "-c", command], stdout=subprocess.DEVNULL)
    ray.init(address=nodes.address, log_to_driver=False, ignore_reinit_error=True)
    while not any(each["Alive"] and "apart" in each["Resources"] for each in ray.nodes()):
        assert node.poll() is None
        time.sleep(0.1)
    ray.shutdown()
    try:
        yield folder
    finally:
        node.terminate()
        node.wait(60)


def test_a_folder_that_one_node_cannot_see_is_refused(
    nodes: Any, apart: Path, tmp_path: Path, events_path: str
) -> None:
    """A data root, a target; after that, with paths that all see, the same session works."""
    with pytest.raises(OptionError, match=r"data_root.* 1 of 2 nodes have another folder"):
        session(nodes, data_root=str(apart / "root"))
    with session(nodes) as sp:
        frame = sp.read_parquet(events_path).filter("id < 7")
        with pytest.raises(OptionError, match=r"the target .*1 of 2 nodes have another folder"):
            frame.write_parquet(str(apart / "out"))
        assert frame.write_parquet(str(tmp_path / "out")).rows == 7
    assert not [file for file in apart.rglob("*") if file.is_file()]


def test_an_input_that_one_node_cannot_see_is_refused(
    nodes: Any, apart: Path, events_path: str
) -> None:
    only = apart / "events.parquet"
    only.write_bytes(Path(events_path).read_bytes())
    with Counted(runtime="ray", address=nodes.address, allow_insecure=True) as run:
        with pytest.raises(OptionError, match=r"the input .*1 of 2 nodes have another file"):
            run.session.read_parquet(str(only)).filter("id < 7").to_arrow()
        assert run.tasks == 0
        frame = run.session.read_parquet(events_path).filter("id < 7")
        assert tuples(frame) == oracle("FROM e WHERE id < 7", e=events_path)
