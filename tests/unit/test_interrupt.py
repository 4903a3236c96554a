"""Ctrl-C in a script, as a terminal sends it: to the whole process group."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import millpond
from millpond.events import TaskStarted

def stuck(row):
    while True:
        pass

def say(event):
    if isinstance(event, TaskStarted):
        print("started", flush=True)

sp = millpond.init(progress=False, threads=2)
print(sp._work.scratch, flush=True)
sp.listen(say)
"""
WORK = {
    "one statement": 'sp.sql("SELECT sum(a.range * b.range) FROM range(9000000) a, '
    'range(9000000) b").take_all()',
    "a Python function": "sp.from_items([1, 2]).map(stuck, schema={'item': 'BIGINT'}).count()",
}


@pytest.mark.slow
@pytest.mark.parametrize("work", WORK.values(), ids=WORK.keys())
def test_ctrl_c_ends_a_script_with_one_line_and_leaves_nothing(work: str) -> None:
    script = subprocess.Popen(
        [sys.executable, "-c", SCRIPT + work],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert script.stdout is not None
    scratch = Path(script.stdout.readline().strip())
    assert scratch.is_dir()
    assert script.stdout.readline() == "started\n"

    os.killpg(script.pid, signal.SIGINT)
    _, said = script.communicate(timeout=20)

    assert said == "millpond: interrupted\n"
    assert script.returncode == -signal.SIGINT
    assert not scratch.exists()
    with pytest.raises(ProcessLookupError):
        os.killpg(script.pid, 0)
