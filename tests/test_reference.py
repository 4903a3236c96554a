"""The reference page says what the docstrings say."""

import runpy
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "docs" / "reference"


def test_the_reference_is_as_the_code_is() -> None:
    made = runpy.run_path(str(FOLDER / "make.py"))["page"]()
    assert (FOLDER / "api.md").read_text() == made, "run: python docs/reference/make.py"


def test_every_public_name_says_what_it_is() -> None:
    entries = (FOLDER / "api.md").read_text().split("\n### ")[1:]
    assert len(entries) > 80
    assert [e.splitlines()[0] for e in entries if len(e.split("\n\n")) < 2] == []
