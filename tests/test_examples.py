"""Every script in examples/ runs, and says what the README says it does."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def output(*command: str, cwd: Path = ROOT) -> str:
    ended = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, check=False, cwd=cwd
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder in which the demo has run, and what it said."""
    folder = tmp_path_factory.mktemp("demo")
    said = output(str(ROOT / "examples" / "flights.py"), "demo-output", cwd=folder)
    return folder, said


@pytest.mark.slow
def test_flights(demo: tuple[Path, str]) -> None:
    _, said = demo
    assert "336,776 flights, 3,322 planes" in said
    assert "327,346 flights took off and landed" in said
    assert "219 planes in 8 files" in said
    assert re.search(r"N15555 .* 84\.1 .* 8\.1", said)


@pytest.mark.slow
def test_the_first_example_of_the_readme_prints_what_it_says(demo: tuple[Path, str]) -> None:
    text = (ROOT / "README.md").read_text()
    block = r"<!-- tested: README -->\n```python\n(.*?)```\n\n```\n(.*?)```"
    code, printed = re.search(block, text, re.DOTALL).groups()
    said = output("-c", code, cwd=demo[0])
    assert [line.rstrip() for line in said.splitlines()] == printed.splitlines()


@pytest.mark.slow
def test_kill_and_resume() -> None:
    said = output(str(ROOT / "examples" / "kill_and_resume.py"))
    assert "killed with signal 9" in said
    assert "files at the target: 0" in said
    found, computed = map(int, re.search(r"(\d+) tasks found, (\d+) computed", said).groups())
    assert found >= 10
    assert computed > 0
    assert "5,000 rows, the same as plain DuckDB's" in said


@pytest.mark.slow
def test_pretrain_is_exact_after_kills_on_other_numbers_of_processes() -> None:
    pytest.importorskip("torch")
    said = output(str(ROOT / "examples" / "pretrain.py"))
    assert "2 processes trained and were killed" in said
    assert "1 process resumed" in said
    assert "3 processes resumed and finished the epoch" in said
    assert "the global sequence was exact, 0 lost, 0 repeated" in said
