"""What a session leaves when it ends, however it ends."""

import gc
import os
import signal
import subprocess
import sys

import pytest

import millpond
from millpond.engine.duckdb import Engine

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


FAILS = """
import millpond
with millpond.init(progress=False, shape="staged", threads=1) as sp:
    try:
        sp.from_items([1, 2]).map(lambda row: {"a": 1 / 0}, schema={"a": "BIGINT"}).count()
    except millpond.TaskError:
        print("failed")
"""


@pytest.mark.slow
def test_a_function_that_failed_leaves_no_noise_at_the_end() -> None:
    ended = run(FAILS)
    assert ended.stdout == "failed\n"
    assert ended.stderr == ""


def test_a_closed_session_lets_go_of_its_engine() -> None:
    gc.collect()
    before = sum(isinstance(thing, Engine) for thing in gc.get_objects())
    for _ in range(3):
        with millpond.init(progress=False) as sp:
            assert sp.from_items([1, 2]).sort("item").count() == 2
            assert len(sp.from_items([1, 2]).sort("item").to_arrow()) == 2
    del sp
    gc.collect()
    assert sum(isinstance(thing, Engine) for thing in gc.get_objects()) <= before
