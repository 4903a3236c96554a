"""A room imports rooms on a lower level only; a library has one owner."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "millpond"
LEVELS = {
    room: level
    for level, rooms in enumerate(
        [
            ["began", "errors", "events", "version"],
            ["lazy", "schema", "options"],
            ["expr", "storage"],
            ["formats"],
            ["plan"],
            ["sql", "optimize"],
            ["physical"],
            ["engine"],
            ["shuffle"],
            ["worker"],
            ["runtime", "loader"],
            ["hive", "present", "report", "tables", "targets"],
            ["dataset_target", "keep", "sources", "table_targets", "workplace"],
            ["runner"],
            ["results"],
            ["dataframe"],
            ["session"],
            ["cli"],
            ["__init__", "__main__"],
        ]
    )
    for room in rooms
}
OWNERS = {
    "duckdb": {"engine/duckdb.py"},
    "ray": {"runtime/ray/cluster.py"},
    "torch": {"loader/torch.py"},
    "obstore": {"storage/object_client.py"},
    "deltalake": {"formats/delta.py"},
    "pyiceberg": {"formats/iceberg.py", "formats/iceberg_io.py", "formats/iceberg_write.py"},
    "hf3fs_fuse": {"storage/threefs.py"},
    "hf3fs_py_usrbio": {"storage/threefs.py"},
}


def modules() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            inside = node.module == "millpond"
            found |= {f"millpond.{a.name}" for a in node.names} if inside else {node.module or ""}
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "lazy.extra":
            assert isinstance(node.args[0], ast.Constant), f"{path}: a name that is computed"
            found.add(str(node.args[0].value))
    return found


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_room_imports_lower_rooms_only(path: Path) -> None:
    here = room(path)
    for name in imports(path):
        if name.split(".")[0] != "millpond":
            continue
        there = name.split(".")[1] if "." in name else "__init__"
        if there not in LEVELS:  # `from millpond import name`: a public name.
            there = "__init__"
        allowed = here == there or LEVELS[there] < LEVELS[here]
        assert allowed, f"{path.relative_to(ROOT)} (level {LEVELS[here]}) imports {name}"


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_library_has_one_owner(path: Path) -> None:
    for name in imports(path):
        owners = OWNERS.get(name.split(".")[0])
        assert owners is None or str(path.relative_to(ROOT)) in owners, f"{path} imports {name}"


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_ray_stays_in_its_package(path: Path) -> None:
    """Its modules share the library; everyone else has the door, which gives a runtime."""
    inside = path.parent == ROOT / "runtime" / "ray"
    assert inside or not {n for n in imports(path) if n.startswith("millpond.runtime.ray.")}


def test_only_options_reads_the_environment() -> None:
    # Stores follow the standard environment of their vendors, which storage/ reads.
    readers = {
        str(path.relative_to(ROOT)) for path in modules() if "os.environ" in path.read_text()
    }
    assert {r for r in readers if not r.startswith("storage/")} <= {"options.py"}
