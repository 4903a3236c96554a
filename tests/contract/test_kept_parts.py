"""A data root in a store: parts lie on the machines' own disks, and outlive who wrote them.

Everything is killed after some stage, the cluster too where there is one. The next program
finds the parts on the machine again, whichever runtime it has, or computes what is damaged.
"""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import servers
from places import remote

from tests.faults.test_sigkill import EXPECTED, SCRIPT
from tests.support.sessions import oracle

pytestmark = pytest.mark.slow
PROGRAM = SCRIPT.replace(
    "            os.kill(os.getpid(), signal.SIGKILL)\n",
    """\
            import psutil
            for process in psutil.Process().children(recursive=True):
                process.kill()
            os.kill(os.getpid(), signal.SIGKILL)
""",
).replace('shape="staged", data_root=root', "data_root=root, storage_options=keys, **on[runtime]")
PROGRAM = PROGRAM.replace(
    "kind, k = sys.argv[1:6]",
    """kind, k, runtime, keys = sys.argv[1:8]
keys = __import__("json").loads(keys)
on = {"local": {"shape": "staged"}, "ray": {"runtime": "ray", "allow_insecure": True}}""",
)


class Job:
    """The same program, run twice: killed, then to its end."""

    def __init__(self, server: servers.Server, folder: Path, events_path: str) -> None:
        import json

        self.folder, self.out = folder, folder / "out"
        self._script = folder / "job.py"
        self._script.write_text(PROGRAM)
        root = remote(server).path("root")
        self._given = [events_path, root, str(self.out)], json.dumps(server.options())

    def run(self, kind: str, k: int, runtime: str) -> "subprocess.CompletedProcess[str]":
        paths, keys = self._given
        command = [sys.executable, str(self._script), *paths, kind, str(k), runtime, keys]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)

    def killed(self, k: int, runtime: str) -> None:
        ended = self.run("StageFinished", k, runtime)
        assert ended.returncode == -signal.SIGKILL, ended.stderr

    def finished(self, runtime: str) -> tuple[int, int]:
        """How many tasks were computed, and how many reused."""
        ended = self.run("", 0, runtime)
        assert ended.returncode == 0, ended.stderr
        finished, reused = map(int, ended.stdout.split())
        return finished, reused

    @property
    def rows(self) -> list[Any]:
        return [r for f in sorted(self.out.glob("*.parquet")) for r in oracle("FROM f", f=str(f))]


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[Path]]:
    """The folders for parts that there are on this machine; for this test, a new machine."""
    place = tmp_path.parent / "t"  # A short name: Ray makes sockets below it.
    place.mkdir(exist_ok=True)
    monkeypatch.setenv("TMPDIR", str(place))
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    return lambda: [p for p in place.glob("millpond-*/*parts*") if p.is_dir()]


@pytest.fixture
def job(moto_server: servers.Server, tmp_path: Path, events_path: str) -> Job:
    return Job(moto_server, tmp_path, events_path)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("local", "local"),
        ("ray", "ray"),
        pytest.param("ray", "local", marks=pytest.mark.full),
    ],
)
def test_parts_on_the_disks_of_lost_nodes_are_found_again(
    job: Job, events_path: str, folders: Callable[[], list[Path]], first: str, second: str
) -> None:
    if "ray" in (first, second):
        pytest.importorskip("ray")
    job.killed(2, first)
    assert folders()
    _, reused = job.finished(second)
    assert reused > 0
    assert job.rows == oracle(EXPECTED, events=events_path)
    # The work is done: nothing is kept any longer.
    assert folders() == []


@pytest.mark.parametrize("damage", ["deleted", "torn", "every byte flipped"])
def test_parts_that_went_bad_meanwhile_are_computed_again(
    job: Job, events_path: str, folders: Callable[[], list[Path]], damage: str
) -> None:
    job.killed(1, "local")
    parts = [p for folder in folders() for p in folder.rglob("*") if p.is_file()]
    assert parts
    for path in parts:
        data = path.read_bytes()
        if damage == "deleted":
            path.unlink()
        else:
            path.write_bytes(
                data[: len(data) // 2] if damage == "torn" else bytes(255 - b for b in data)
            )
    _, reused = job.finished("local")
    assert reused == 0
    assert job.rows == oracle(EXPECTED, events=events_path)
    assert folders() == []
