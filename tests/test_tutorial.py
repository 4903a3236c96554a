"""The tutorial: its blocks run one after the other, and print what stands below them."""

import contextlib
import io
import re
from pathlib import Path

import pytest

import millpond

PAGE = Path(__file__).parent.parent / "docs" / "tutorial.md"
BLOCKS = re.compile(r"```python\n(.*?)```(?:\n\n```\n(.*?)```)?", re.DOTALL)


def lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.splitlines()]


@pytest.mark.slow
def test_the_tutorial_prints_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = BLOCKS.findall(PAGE.read_text())
    assert len(blocks) > 10
    names: dict[str, object] = {"__name__": "tutorial"}
    for code, printed in blocks:
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            exec(code, names)
        assert lines(said.getvalue()) == lines(printed), code


@pytest.mark.slow
def test_the_script_for_smallponds_users_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with millpond.init(progress=False) as sp:
        rows = [{"ticker": f"T{i % 5}", "price": float(i)} for i in range(100)]
        sp.from_items(rows).write_parquet("prices.parquet")
    page = PAGE.parent / "how-to" / "from-smallpond.md"
    (script,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(script, {"__name__": "script"})
    assert re.search(r"4 +T4 +4\.0 +99\.0", said.getvalue())
