"""Every benchmark explains itself, and runs at a size that is over in a moment."""

import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"
SCRIPTS = sorted(p.name for p in FOLDER.glob("*.py") if "__main__" in p.read_text())
TABLE = "--data {0}/tpch --folder {0}"  # Made by tpchgen-cli, of the extra `bench`.
SMALL = {
    "exchange.py": ["--rows 50000 --pairs 1 --folder {0}", "--rows 50000 --conservation --pairs 1"],
    "function_pieces.py": ["--rows 5000 --rounds 1"],
    "functions.py": ["--rows 2000 --batch-rows 2000 --pairs 1"],
    "graysort.py": ["sort --size 5MB --folder {0}"],
    "hello.py": ["--pairs 1"],
    "loader.py": ["--scale 0.002 --rounds 1 --only epoch order packing restore"],
    "loader_cold.py": ["--scale 0.002 --rounds 1"],
    "loader_memory.py": ["--scale 0.002 --rounds 1"],
    "object_store.py": ["rings ranges scan --mib 16 --folder {0}"],
    "partition.py": [f"--sf 0.01 --pairs 1 {TABLE}"],
    "random_shuffle.py": ["--size 5MB --memory-limit 1GB --pairs 1 --folder {0}"],
    "ray_local.py": ["--rows 50000 --size 1MB --pairs 1"],
    "scale.py": ["--tasks 1000 --wide 50 --overhead"],
    "sort_peers.py": ["--size 5MB --pairs 1 --folder {0}"],
    "tasks.py": ["--tasks 5 --pairs 1"],
    "tokens.py": ["--megabytes 1 --rounds 1 --encoder bpe"],
    "tpch.py": ["--sf 0.01 --pairs 1 --folder {0}/tpch"],
}  # fmt: skip
NEEDS = {  # What the extras of the tests have not.
    "tokens.py": ("datasets", "bpe_openai"),
    **dict.fromkeys(("functions.py", "ray_local.py", "scale.py"), ("ray",)),
}


def ran(script: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(FOLDER / script), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_every_script_has_a_small_size() -> None:
    assert {*SMALL} == {*SCRIPTS}


@pytest.mark.full
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_runs_at_a_small_size(script: str, tmp_path: Path) -> None:
    generator = Path(sysconfig.get_path("scripts")) / "tpchgen-cli"
    if script in ("partition.py", "tpch.py") and not generator.exists():
        pytest.skip("tpchgen-cli, of the extra bench, is not installed")
    for module in NEEDS.get(script, ()):
        if find_spec(module) is None:
            pytest.skip(f"{module} is not installed: the script says what it needs")
    for words in SMALL[script]:
        # A bar is for real sizes: tpch.py ends with 1 where it is missed.
        ended = ran(
            script, *[word.replace("\xa0", " ") for word in words.format(tmp_path).split(" ")]
        )
        assert ended.returncode == 0 or "bar:" in ended.stdout, ended.stderr
        assert ended.stdout


@pytest.mark.full
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_explains_itself(script: str) -> None:
    ended = ran(script, "--help")
    assert ended.returncode == 0, ended.stderr
    assert "usage:" in ended.stdout
