"""A training process that dies between any two lines of the loader, and goes on from its state.

The process says, on one line, which rows it trained on and the state after them. A
trace function counts the lines of Python that the loader's modules execute, in all
threads, and ends the process without warning (`os._exit`) at the k-th. What was said
before counts as done; the rest is the next process's, of another shape.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from millpond.loader.reader import open_dataset
from millpond.loader.write import write_dataset
from tests.support.loader_sets import rows

N = 53
EXIT = 17
SCRIPT = """
import json, os, sys, threading
import millpond.loader
from millpond.loader.reader import open_dataset

path, spoken, how, k = sys.argv[1:]
how, left = json.loads(how), int(k)
folder = os.path.dirname(millpond.loader.__file__)

def trace(frame, event, value):
    global left
    if not frame.f_code.co_filename.startswith(folder):
        return None
    if event == "line":
        left -= 1
        if left == 0:
            os._exit(17)
    return trace

state = None
with open(spoken, "a+") as said:
    said.seek(0)
    for line in said:
        state = json.loads(line)["state"]
    loader = open_dataset(path).loader(**how)
    if k != "0":
        threading.settrace(trace)
        sys.settrace(trace)
    if state is not None:
        loader.load_state_dict(state)
    for batch in loader:
        found = batch["id"].tolist() if "id" in batch else batch["tokens"].ravel().tolist()
        said.write(json.dumps({"rows": found, "state": loader.state_dict()}) + "\\n")
        said.flush()
    sys.settrace(None)
    threading.settrace(None)
"""
LIVES = (
    {"batch_size": 5, "prefetch": 0},
    {"batch_size": 7, "prefetch": 2},
    {"batch_size": 3, "prefetch": 1},
)
KINDS = {
    "global": {"shuffle": "global", "seed": 7, "columns": ["id"]},
    "pack": {"shuffle": "global", "seed": 7, "pack": 32, "tokens": "tokens"},
}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("killed") / "set")
    write_dataset(rows(N), path, rows_per_shard=20, batch_rows=8)
    return path


def lives(path: str, spoken: Path, kind: str, kills: list[int]) -> list[int]:
    """The rows that were said, when processes ended at these lines, and one ran to the end."""
    for i, k in enumerate([*kills, 0]):
        how = json.dumps({**KINDS[kind], **LIVES[i % len(LIVES)]})
        command = [sys.executable, "-c", SCRIPT, path, str(spoken), how, str(k)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ended.returncode in ((0, EXIT) if k else (0,)), ended.stderr
    return [row for line in spoken.read_text().splitlines() for row in json.loads(line)["rows"]]


def alone(path: str, kind: str) -> list[int]:
    column = "tokens" if kind == "pack" else "id"
    loader = open_dataset(path).loader(1, prefetch=0, **KINDS[kind])
    return [int(row) for batch in loader for row in batch[column].ravel().tolist()]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_some_lines_nothing_is_lost_or_repeated(
    path: str, tmp_path: Path, kind: str
) -> None:
    assert lives(path, tmp_path / "said", kind, [300, 901, 555]) == alone(path, kind)


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first", range(1, 2000, 61))
def test_killed_at_any_line_nothing_is_lost_or_repeated(
    path: str, tmp_path: Path, kind: str, first: int
) -> None:
    kills = [first, first * 7 % 1999 + 1]
    assert lives(path, tmp_path / "said", kind, kills) == alone(path, kind)
