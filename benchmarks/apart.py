"""A command in a process of its own: its seconds, processor seconds and peak memory.

Processor seconds are those of the process and of all children that it waited for. Peak
memory is anonymous memory summed over the tree, which is what `memory_limit` bounds:
looked at every 20 ms, without pages of files.
"""

import os
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

import psutil


def spent(command: Sequence[str]) -> dict[str, float]:
    """Run `command` to its end; `SystemExit` if it fails."""
    start = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    ended = threading.Event()
    peak = [0]
    watch = threading.Thread(target=_watch, args=(child.pid, ended, peak))
    watch.start()
    _, status, used = os.wait4(child.pid, 0)
    wall = time.perf_counter() - start
    ended.set()
    watch.join()
    if status:
        raise SystemExit(f"failed: {' '.join(command)}")
    return {"wall_s": wall, "cpu_s": used.ru_utime + used.ru_stime, "peak_gb": peak[0] / 1e9}


def _watch(pid: int, ended: threading.Event, peak: list[int]) -> None:
    with suppress(psutil.Error):
        root = psutil.Process(pid)
        while not ended.wait(0.02):
            tree = [root, *root.children(recursive=True)]
            peak[0] = max(peak[0], sum(map(_anonymous, tree)))


def _anonymous(process: psutil.Process) -> int:
    with suppress(OSError, IndexError):
        with open(f"/proc/{process.pid}/status") as file:
            line = next((one for one in file if one.startswith("RssAnon:")), "")
        return int(line.split()[1]) * 1024
    return 0
