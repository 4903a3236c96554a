"""Somebody kills at random: the program, its worker processes, nodes. Then nothing is lost.

The moments are drawn, so a failure may not come back; its seed says which pipeline it was.
`tests/support/hostile_rounds.py` runs as many rounds as it is told, and sums them up.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from hostile_program import oracle_sql

from tests.support.sessions import oracle

pytestmark = [pytest.mark.slow, pytest.mark.full]
PROGRAM = Path(__file__).parent.parent / "support" / "hostile_program.py"
KILLS = 3  # Of a pipeline; then it is left alone.


class Hostile:
    """Runs the program until it ends well, and kills something on the way."""

    def __init__(self, path: str, folder: Path, seed: int, address: str = "") -> None:
        self.target = folder / "out"
        self._command = [sys.executable, str(PROGRAM), path, str(folder / "root")]
        self._command += [str(self.target), str(seed), *([address] if address else [])]
        self._drawn = random.Random(seed)
        self.kills: list[str] = []
        self.runs = 0
        # The program and its children, as far as they were seen, and the ports they listened on.
        self.processes: set[psutil.Process] = set()
        self.ports: set[int] = set()

    def run(self, more: Any = None) -> None:
        """`more` is another thing to kill, beside the program and its children."""
        for _ in range(KILLS + 1):
            self.runs += 1
            program = subprocess.Popen(self._command, stderr=subprocess.PIPE, text=True)
            if len(self.kills) < KILLS:
                self._strike(program, more)
            said = program.communicate(timeout=200)[1]
            if program.returncode == 0:
                return
            assert program.returncode == -signal.SIGKILL, said
        raise AssertionError("it was left alone, and did not end")

    def _strike(self, program: "subprocess.Popen[str]", more: Any) -> None:
        """Soon after the work began, or never if that is over by then."""
        root = Path(self._command[3])
        while program.poll() is None and not (root / "parts").exists():
            self._look(program)
            time.sleep(0.01)
        time.sleep(self._drawn.uniform(0, 1.5))
        self._look(program)
        if program.poll() is not None:
            return
        kinds = ["program", "child"] + (["more"] if more else [])
        kind = self._drawn.choice(kinds)
        children = psutil.Process(program.pid).children()
        if kind == "more":
            more(self._drawn)
        elif kind == "child" and children:
            with_luck = self._drawn.choice(children)
            with_luck.kill()
        else:
            os.kill(program.pid, signal.SIGKILL)
        self.kills.append(kind)

    def _look(self, program: "subprocess.Popen[str]") -> None:
        with suppress(psutil.NoSuchProcess):
            top = psutil.Process(program.pid)
            self.processes.update([top, *top.children(recursive=True)])
        for process in self.processes:
            self.ports |= listening(process)

    def check(self, path: str, seed: int) -> int:
        """How many rows there are, all as they should be."""
        files = sorted(self.target.glob("*.parquet"))
        rows = [row for file in files for row in oracle("FROM f", f=str(file))]
        assert rows == oracle(oracle_sql(seed), events=path), self.kills
        others = (p for p in self.target.rglob("*") if p.suffix != ".parquet")
        left = [p for p in others if p.relative_to(self.target).parts[0] != "_manifest"]
        assert not left
        names = [p.info["cmdline"] or [] for p in psutil.process_iter(["cmdline"])]
        assert not [name for name in names if str(self.target) in " ".join(name)]
        _, alive = psutil.wait_procs(self.processes, timeout=30)
        assert not alive
        everyone = {port for each in psutil.process_iter() for port in listening(each)}
        assert not self.ports & everyone
        return len(rows)


def listening(process: psutil.Process) -> set[int]:
    """The ports on which a process waits for others."""
    try:
        found = process.net_connections("inet")
    except psutil.Error:
        return set()
    return {each.laddr.port for each in found if each.status == psutil.CONN_LISTEN}


@pytest.mark.parametrize("seed", range(20))
def test_on_this_machine(events_path: str, tmp_path: Path, seed: int) -> None:
    hostile = Hostile(events_path, tmp_path, seed)
    hostile.run()
    hostile.check(events_path, seed)
    assert not hostile.ports, "no port is needed on one machine"


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    pytest.importorskip("ray")
    from ray_cluster import cluster

    with cluster(2) as found:
        yield found


@pytest.mark.parametrize("seed", range(100, 106))
def test_on_a_cluster(nodes: Any, events_path: str, tmp_path: Path, seed: int) -> None:
    hostile = Hostile(events_path, tmp_path, seed, nodes.address)
    hostile.run(node_or_worker(nodes))
    hostile.check(events_path, seed)


def node_or_worker(nodes: Any) -> Callable[[random.Random], None]:
    """Kills one of the nodes, which another takes the place of, or a process of one."""
    from ray_cluster import add_node

    def kill(drawn: random.Random) -> None:
        if drawn.random() < 0.5:
            victim = drawn.choice(list(nodes.worker_nodes))
            nodes.remove_node(victim, allow_graceful=False)
            add_node(nodes)
        else:
            every = psutil.process_iter(["name"])
            workers = [p for p in every if p.info["name"] == "ray::run_call"]
            if workers:
                drawn.choice(workers).kill()

    return kill
