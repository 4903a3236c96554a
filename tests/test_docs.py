"""What the pages name is there: files, modules, links, options, and a test for each example."""

import ast
import re
from inspect import signature
from itertools import pairwise
from pathlib import Path

import pytest

import millpond
from millpond import options

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
FILES = [
    path.relative_to(ROOT)
    for folder in ("millpond", "tests", "benchmarks", "examples", "docs")
    for path in ROOT.joinpath(folder).rglob("*")
    if path.is_file()
]
HERE_ONLY = {"script.py"}  # The reader's own.
NEEDS_A_CLUSTER = "docs/how-to/cluster.md"  # One call of init; its arguments are compared.

# Whose Python blocks run, and in which test; a page with blocks that is not here fails below.
RUN_BY = {
    "README.md": "tests/test_readme.py",
    "docs/tutorial.md": "tests/test_tutorial.py",
    "docs/how-to/from-smallpond.md": "tests/test_tutorial.py",
    "docs/how-to/training.md": "tests/loader/test_howto.py",
    **dict.fromkeys(
        (
            *("docs/how-to/3fs.md", "docs/how-to/azure.md", "docs/how-to/delta.md"),
            *("docs/how-to/gcs.md", "docs/how-to/http.md", "docs/how-to/iceberg.md"),
            *("docs/how-to/object-stores.md", "docs/how-to/s3.md", "docs/how-to/tables.md"),
            "docs/how-to/shared-file-systems.md",
        ),
        "tests/contract/test_howto.py",
    ),
    "docs/reference/api.md": "tests/unit/test_doctests.py",  # Made of the docstrings.
}


def named(pattern: str) -> list[tuple[str, str]]:
    """(page, what the pattern finds in it)."""
    return [
        (str(page.relative_to(ROOT)), name)
        for page in PAGES
        for name in re.findall(pattern, page.read_text())
    ]


def test_every_file_that_a_page_names_exists() -> None:
    found = named(r"(?<![\w./-])((?:[\w-]+/)*[\w-]+\.(?:py|yaml))\b")
    assert len(found) > 80
    ends = {"/".join(path.parts[i:]) for path in FILES for i in range(len(path.parts))}
    assert [(page, name) for page, name in found if name not in ends | HERE_ONLY] == []


def test_every_link_leads_somewhere() -> None:
    links = named(r"\]\(([^)#]+)(?:#[^)]*)?\)")
    assert len(links) > 30
    broken = [
        (page, link)
        for page, link in links
        if "://" not in link and not (ROOT / page).parent.joinpath(link).exists()
    ]
    assert broken == []


def test_every_option_that_a_page_names_is_read() -> None:
    names = named(r"MILLPOND_[A-Z_]+[A-Z]")
    readers = [path.read_text() for path in ROOT.rglob("*.py") if path.name != "test_docs.py"]
    fields = {f"MILLPOND_{name.upper()}" for name in options.Options.__dataclass_fields__}
    unknown = {name for _, name in names} - fields
    assert [name for name in unknown if not any(f'"{name}"' in text for text in readers)] == []


def test_the_map_has_every_room_and_no_other() -> None:
    table = (ROOT / "ARCHITECTURE.md").read_text().split("| room |")[1].split("\n\n")[0]
    rooms = [re.findall(r"`([\w/]+)`", line.split("|")[1]) for line in table.splitlines()[2:]]
    inside = {p.name + "/" * p.is_dir() for p in (ROOT / "millpond").iterdir()}
    there = {name.removesuffix(".py") for name in inside if not name.startswith(("_", "py.typed"))}
    assert {name for row in rooms for name in row} == there


def test_the_map_names_modules_that_are_there() -> None:
    table = (ROOT / "ARCHITECTURE.md").read_text().split("| room |")[1].split("\n\n")[0]
    for line in table.splitlines()[2:]:
        _, room, text, _ = line.split("|")
        folder = ROOT / "millpond" / room.strip(" `/")
        if not folder.is_dir():
            continue
        words = re.findall(r"`([a-z_]+)(?:/|\.py)?`", text)
        source = "\n".join(path.read_text() for path in folder.rglob("*.py"))
        for word in words:
            assert (
                folder.joinpath(word).is_dir()
                or folder.joinpath(f"{word}.py").exists()
                or (f"def {word}" in source)
            ), (room, word)


def test_every_benchmark_is_on_a_page_and_says_what_it_takes() -> None:
    pages = "\n".join(page.read_text() for page in PAGES)
    for script in (ROOT / "benchmarks").glob("*.py"):
        tree = ast.parse(script.read_text())
        assert ast.get_docstring(tree), script.name
        if 'if __name__ == "__main__"' in script.read_text():
            assert script.name in pages, f"no page says what {script.name} printed"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_example_is_run_by_a_test(page: Path) -> None:
    name = str(page.relative_to(ROOT))
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    if name == NEEDS_A_CLUSTER:
        (call,) = (node for node in ast.walk(ast.parse(blocks[0])) if isinstance(node, ast.Call))
        assert len(blocks) == 1
        assert {word.arg for word in call.keywords} < set(signature(millpond.init).parameters)
    elif blocks:
        test = (ROOT / RUN_BY[name]).read_text()
        assert Path(name).name in test or name == "docs/reference/api.md"


def test_decisions_have_one_number_each() -> None:
    numbers = sorted(path.name[:4] for path in (ROOT / "docs" / "decisions").glob("*.md"))
    assert [one for one, other in pairwise(numbers) if one == other] == []
