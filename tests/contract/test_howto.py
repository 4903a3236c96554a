"""The examples of the how-to pages on storage run."""

import re
from pathlib import Path

import pytest
import servers

PAGES = Path(__file__).parents[2] / "docs/how-to"
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)


def run(page: str, **names: object) -> int:
    """Run the Python blocks of a page one after the other, as one program."""
    blocks = BLOCK.findall((PAGES / page).read_text())
    exec("\n".join(blocks), names)
    return len(blocks)


@pytest.mark.parametrize("page", ["shared-file-systems.md", "3fs.md"])
def test_the_examples_about_file_systems_run(page: str, tmp_path: Path) -> None:
    assert run(page, folder=str(tmp_path)) == 1


def test_the_examples_about_object_stores_run(moto_server: servers.Server) -> None:
    assert run("object-stores.md", endpoint=moto_server.endpoint) == 2


def test_the_examples_about_tables_run(tmp_path: Path) -> None:
    assert run("tables.md", folder=str(tmp_path)) == 3
