"""A cluster that anyone could use is refused; one with tokens is not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("ray")
pytestmark = pytest.mark.slow

# In processes of their own: Ray reads its mode once.
SCRIPT = """
import sys
from millpond.errors import OptionError
from millpond.runtime.ray import RayRuntime
from millpond.worker import WorkerOptions
folder, insecure = sys.argv[1], sys.argv[2] == "allow"
options = WorkerOptions(scratch=folder + "/s", parts=folder + "/p")
try:
    runtime = RayRuntime(options, cpus=1, allow_insecure=insecure)
except OptionError as error:
    print("refused:", error)
else:
    print("slots:", runtime.capacity().slots)
    runtime.close()
"""


def start(tmp_path: Path, mode: str, allow: str = "no") -> str:
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": mode,
        "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token"),
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    (tmp_path / "token").write_text("5d0c2f3b6a7e4f8c9d0e1f2a3b4c5d6e")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), allow],
        env=environment, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout + done.stderr


def test_a_cluster_without_tokens_is_refused_and_the_text_says_what_to_do(tmp_path: Path) -> None:
    said = start(tmp_path, "disabled")
    assert "refused:" in said
    assert "RAY_AUTH_MODE=token" in said
    assert "allow_insecure=True" in said


# One for its CPU, and one that waits to be next.
def test_a_cluster_without_tokens_is_used_if_the_user_says_so(tmp_path: Path) -> None:
    assert "slots: 2" in start(tmp_path, "disabled", "allow")


def test_a_cluster_with_tokens_is_used(tmp_path: Path) -> None:
    assert "slots: 2" in start(tmp_path, "token")
