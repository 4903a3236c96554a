"""What an import loads: heavy libraries only when they are needed."""

import os
import subprocess
import sys

import duckdb
import pytest

import millpond

NEVER_FIRST = {"ray", "torch", "pandas", "polars", "rich", "pyarrow", "numpy", "duckdb", "obstore"}
# Made in the engine's own process; a result is Arrow, an exchange needs numpy.
NEVER_IN_A_RUN = {"ray", "torch", "pandas", "polars", "rich", "obstore", "multiprocessing"}
HELLO = """
import millpond
with millpond.init(progress=False) as sp:
    spread = sp.sql("SELECT range AS item FROM range(9)").repartition(3, hash_by="item")
    assert sp.partial_sql("SELECT min(item) AS low FROM {0}", spread).count() == 3
"""


def loaded(code: str) -> set[str]:
    """The top modules of a new process after `code`."""
    tell = "import sys; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{tell}"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    return set(done.stdout.split())


def test_import_millpond_loads_the_standard_library_only() -> None:
    assert not loaded("import millpond") & (NEVER_FIRST | {"xxhash", "cloudpickle"})


@pytest.mark.slow
def test_the_command_line_tells_its_version_without_what_only_some_commands_need() -> None:
    code = "from millpond.cli import main\ntry:\n  main(['--version'])\nexcept SystemExit:\n  pass"
    assert not loaded(code) & NEVER_IN_A_RUN


@pytest.mark.slow
def test_a_first_run_loads_nothing_that_it_does_not_need() -> None:
    # DuckDB 1 imports pandas by itself when it is given an Arrow table.
    own = {"pandas"} if duckdb.__version__.startswith("1.") else set()
    assert not loaded(HELLO) & (NEVER_IN_A_RUN - own)


def test_every_public_name_is_found_and_listed() -> None:
    for name in millpond.__all__:
        assert getattr(millpond, name) is not None
        assert name in dir(millpond)


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nope'"):
        millpond.nope  # noqa: B018
