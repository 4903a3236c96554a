"""Programs as users write them: how they end, with and without `close`, and what they say."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray_cluster import cluster

pytestmark = pytest.mark.slow

BEGIN = """
import sys
import millpond
sp = millpond.init(runtime="ray", address=sys.argv[1], allow_insecure=True)
df = sp.from_items(list(range(100))).repartition(4, by_rows=True)
"""
SUM = "print(df.group_by().agg('sum(item)::BIGINT AS s').take_all())\n"


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    pytest.importorskip("ray")
    with cluster(1) as found:
        yield found


def run(nodes: Any, folder: Path, text: str) -> "subprocess.CompletedProcess[str]":
    program = folder / "program.py"
    program.write_text(text)
    command = [sys.executable, str(program), nodes.address]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize(
    "text",
    [BEGIN + SUM, "import ray\n" + BEGIN + SUM, BEGIN + SUM + "sp.close()\n"],
    ids=["not closed", "ray imported first", "closed"],
)
def test_it_ends_without_a_word_more(nodes: Any, tmp_path: Path, text: str) -> None:
    done = run(nodes, tmp_path, text)
    assert (done.stdout, done.stderr, done.returncode) == ("[{'s': 4950}]\n", "", 0)


def test_a_cluster_that_the_program_left_is_no_reason_to_start_one(
    nodes: Any, tmp_path: Path
) -> None:
    """Ray makes a new cluster of its own, whatever is asked of it after `shutdown`."""
    left = "import ray\nray.shutdown()\n"
    ask = f"try:\n    {SUM}except millpond.MillpondError as e:\n    print(e)\n"
    done = run(nodes, tmp_path, BEGIN + SUM + left + ask + "print(ray.is_initialized())\n")
    rows, error, again = done.stdout.splitlines()
    assert rows == "[{'s': 4950}]"
    assert "this process has left the cluster" in error
    assert (again, done.returncode) == ("False", 0)
