"""Ctrl-C in a script, as a terminal sends it: to the whole process group."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys
import millpond
from millpond.events import TaskStarted

def stuck(row):
    while True:
        pass

def waits(a: int) -> bool:
    while True:
        pass

def say(event):
    if isinstance(event, TaskStarted):
        print("started", flush=True)

shape, target = sys.argv[1:]
sp = millpond.init(progress=False, threads=2, shape=shape)
print(sp._work.scratch, flush=True)
sp.listen(say)
"""
WORK = {
    "one statement": 'sp.sql("SELECT sum(a.range * b.range) FROM range(9000000) a, '
    'range(9000000) b").take_all()',
    "a Python function": "sp.from_items([1, 2]).map(stuck, schema={'item': 'BIGINT'}).count()",
    "functions in a line": "sp.from_items([1, 2]).filter(lambda row: True)"
    ".map(stuck, schema={'item': 'BIGINT'}).filter(lambda row: True).take_all()",
    "a function of batches": "sp.from_items([1, 2]).map_batches(stuck, "
    "schema={'item': 'BIGINT'}).write_parquet(target)",
    "a function that SQL calls": "sp.from_items([1]).filter('waits(item)', udfs=[waits]).count()",
    "a write of many files": "sp.sql('SELECT a.range AS a, b.range AS b FROM range(9000000) a, "
    "range(9000000) b').repartition(3, hash_by='a').write_parquet(target)",
    "a sort": "sp.sql('SELECT hash(a.range, b.range) AS h FROM range(9000000) a, "
    "range(9000000) b').sort('h').write_parquet(target)",
}


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["auto", "staged"])
@pytest.mark.parametrize("work", WORK.values(), ids=WORK.keys())
def test_ctrl_c_ends_a_script_with_one_line_and_leaves_nothing(
    work: str, shape: str, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    script = subprocess.Popen(
        [sys.executable, "-c", SCRIPT + work, shape, str(target)],
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
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    with pytest.raises(ProcessLookupError):
        os.killpg(script.pid, 0)
