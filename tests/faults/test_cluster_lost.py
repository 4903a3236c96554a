"""Ray goes: all of it after the k-th event, or its head alone. Then the same script again."""

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.faults.test_sigkill import EXPECTED, SCRIPT
from tests.support.sessions import oracle

pytestmark = pytest.mark.slow

# The processes of a cluster that `init` has started are children of the program.
ON_RAY = SCRIPT.replace(
    "            os.kill(os.getpid(), signal.SIGKILL)\n",
    """\
            import psutil
            below = psutil.Process().children(recursive=True)
            for process in below:
                if who == "all" or process.name() in ("gcs_server", "raylet"):
                    process.kill()
            if who == "all":
                os.kill(os.getpid(), signal.SIGKILL)
""",
).replace('shape="staged", data_root=root', 'runtime="ray", allow_insecure=True, data_root=root')
ON_RAY = ON_RAY.replace("kind, k = sys.argv[1:6]", "kind, k, who = sys.argv[1:7]")


def run(script: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)


@pytest.mark.parametrize(
    ("kind", "k", "who"),
    [
        ("StageFinished", 1, "all"),
        pytest.param("TaskStarted", 9, "all", marks=pytest.mark.full),
        pytest.param("Published", 1, "all", marks=pytest.mark.full),
        pytest.param("StageFinished", 1, "head", marks=pytest.mark.full),
    ],
)
def test_a_new_cluster_goes_on_where_the_lost_one_was(
    events_path: str, tmp_path: Path, kind: str, k: int, who: str
) -> None:
    pytest.importorskip("ray")
    script = tmp_path / "program.py"
    script.write_text(ON_RAY)
    arguments = [events_path, tmp_path / "root", tmp_path / "out"]

    killed = run(script, *arguments, kind, k, who)
    assert killed.returncode == -signal.SIGKILL if who == "all" else killed.returncode != 0
    assert not leftovers(tmp_path), "a process outlives the cluster that it was of"

    ended = run(script, *arguments, "", 0, who)
    assert ended.returncode == 0, ended.stderr
    finished, reused = map(int, ended.stdout.split())
    # Records are written once a second, or when a stage is done.
    assert (reused > 0 or finished == 0) == (kind != "TaskStarted")
    files = sorted((tmp_path / "out").glob("*.parquet"))
    assert [f for file in files for f in oracle("FROM f", f=str(file))] == oracle(
        EXPECTED, events=events_path
    )
    assert not list((tmp_path / "out").glob(".millpond-*"))
    assert not leftovers(tmp_path)


def leftovers(folder: Path) -> list[psutil.Process]:
    """Processes that work below `folder`; workers of a dead raylet take a moment to notice."""
    found = [p for p in psutil.process_iter(["cmdline"]) if _is_of(p, str(folder))]
    _, alive = psutil.wait_procs(found, timeout=30)
    return alive


def _is_of(process: psutil.Process, folder: str) -> bool:
    try:
        return any(folder in file.path for file in process.open_files()) or folder in " ".join(
            process.info["cmdline"] or ()
        )
    except psutil.Error:
        return False
