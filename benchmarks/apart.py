"""A command in a process of its own: seconds, processor seconds, memory and bytes of its tree.

The tree is the process and all that it started, however far down, such as the workers of a
cluster of its own. It is looked at every 20 ms: of a process that ended, what was seen last
counts, or what it handed to the one that waited for it, if that is more. Peak memory is
anonymous memory summed over the tree, which is what `memory_limit` bounds, without pages of
files. Bytes are those read and written by any call, from cache or disk or another process.
"""

import os
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def spent(command: Sequence[str]) -> dict[str, float]:
    """Run `command` to its end; `SystemExit` if it fails."""
    return told(command)[0]


def told(command: Sequence[str]) -> tuple[dict[str, float], str]:
    """The same, and what it printed."""
    start = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    tree, ended = _Tree(child.pid), threading.Event()
    watch = threading.Thread(target=tree.watch, args=(ended,))
    watch.start()
    assert child.stdout is not None
    printed = child.stdout.read()
    # Its own counters last until it is waited for.
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    ended.set()
    watch.join()
    tree.look()
    _, status, used = os.wait4(child.pid, 0)
    wall = time.perf_counter() - start
    child.returncode = status
    if status:
        raise SystemExit(f"failed: {' '.join(command)}")
    seen_s = sum(cpu for cpu, _, _ in tree.seen.values())
    return {
        "wall_s": wall,
        "cpu_s": max(used.ru_utime + used.ru_stime, seen_s),
        "peak_gb": tree.peak_bytes / 1e9,
        "read_gb": sum(read for _, read, _ in tree.seen.values()) / 1e9,
        "written_gb": sum(written for _, _, written in tree.seen.values()) / 1e9,
    }, printed


@dataclass
class _Tree:
    """Processor seconds, bytes read and bytes written of each process, as seen last."""

    root: int
    seen: dict[int, tuple[float, int, int]] = field(default_factory=dict)
    peak_bytes: int = 0

    def watch(self, ended: threading.Event) -> None:
        while not ended.wait(0.02):
            self.look()

    def look(self) -> None:
        held = 0
        for pid in _tree(self.root):
            with suppress(OSError, IndexError, KeyError, ValueError):
                held += _status(pid, "status").get("RssAnon", 0) * 1024
                moved = _status(pid, "io")
                with open(f"/proc/{pid}/stat") as file:
                    ticks = file.read().rpartition(")")[2].split()[11:13]
                now = (sum(map(int, ticks)) * _TICK_S, moved["rchar"], moved["wchar"])
                # Of a process that has ended but was not waited for, bytes read as nothing.
                before = self.seen.get(pid, (0.0, 0, 0))
                self.seen[pid] = tuple(map(max, now, before))
        self.peak_bytes = max(self.peak_bytes, held)


def _tree(pid: int) -> Iterator[int]:
    yield pid
    with suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with suppress(OSError), open(f"/proc/{pid}/task/{thread}/children") as file:
                for child in file.read().split():
                    yield from _tree(int(child))


def _status(pid: int, name: str) -> dict[str, int]:
    with open(f"/proc/{pid}/{name}") as file:
        lines = (line.split() for line in file if line)
        return {words[0][:-1]: int(words[1]) for words in lines if words[1:] and words[1].isdigit()}
