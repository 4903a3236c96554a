"""What a session leaves when it ends, however it ends."""

import os
import signal
import subprocess
import sys

import pytest

HOLD = """
import os, signal, millpond
sp = millpond.init(progress=False)
print(os.path.dirname(sp.parts_folder), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
TWO = """
import millpond
first, second = millpond.init(progress=False), millpond.init(progress=False)
assert second.from_items([1]).map(lambda row: row, schema={"item": "BIGINT"}).count() == 1
first.close()
print(second.parts_folder)
"""


def run(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_the_next_session_sweeps_the_scratch_of_one_that_was_killed() -> None:
    killed = run(HOLD)
    assert killed.returncode == -signal.SIGKILL
    scratch = killed.stdout.strip()
    assert os.path.isdir(scratch)
    assert run(TWO).returncode == 0
    assert not os.path.exists(scratch)


@pytest.mark.slow
def test_closing_one_session_leaves_another_to_be_closed_at_exit() -> None:
    ended = run(TWO)
    assert ended.returncode == 0, ended.stderr
    assert not os.path.exists(ended.stdout.strip())
    assert ended.stderr == ""
