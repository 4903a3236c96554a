"""Every script in examples/ runs, and says what the README says it does."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def output(script: str, *arguments: str) -> str:
    command = [sys.executable, str(ROOT / "examples" / script), *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.slow
def test_flights(tmp_path: Path) -> None:
    said = output("flights.py", str(tmp_path))
    assert "336,776 flights, 3,322 planes" in said
    assert "327,346 flights took off and landed" in said
    assert "219 planes in 8 files" in said
    assert re.search(r"N15555 .* 84\.1 .* 8\.1", said)


@pytest.mark.slow
def test_kill_and_resume() -> None:
    said = output("kill_and_resume.py")
    assert "killed with signal 9" in said
    assert "files at the target: 0" in said
    found, computed = map(int, re.search(r"(\d+) tasks found, (\d+) computed", said).groups())
    assert found >= 10
    assert computed > 0
    assert "5,000 rows, the same as plain DuckDB's" in said
