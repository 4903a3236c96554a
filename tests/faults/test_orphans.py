"""The whole program is killed: its worker processes, and theirs, go with it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SCRIPT = """
import subprocess, sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from runtimes import local
from small_pipelines import one_task, python

flag = sys.argv[1]

def waits(row):
    import os, subprocess, threading
    child = subprocess.Popen(["sleep", "600"])
    with open(flag + ".new", "w") as file:
        file.write(f"{os.getpid()} {child.pid}")
    os.rename(flag + ".new", flag)
    threading.Event().wait()
    return row

with local(Path(flag).parent) as runtime:
    runtime.submit([one_task(python(waits))])[0].result()
"""


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks processes up in /proc")
def test_no_worker_and_none_of_its_children_outlives_the_program(tmp_path: Path) -> None:
    flag = tmp_path / "pids"
    paths = [path for path in sys.path if path]
    program = subprocess.Popen([sys.executable, "-c", SCRIPT, str(flag), *paths])
    while not flag.exists():
        assert program.poll() is None
        time.sleep(0.01)  # Until the function runs, in a process of a process.
    pids = [int(pid) for pid in flag.read_text().split()]
    assert all(map(is_alive, pids))

    os.kill(program.pid, signal.SIGKILL)
    program.wait()

    until_s = time.monotonic() + 20
    while any(map(is_alive, pids)) and time.monotonic() < until_s:
        time.sleep(0.01)
    assert not any(map(is_alive, pids))
