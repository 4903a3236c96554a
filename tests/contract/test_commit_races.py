"""Two processes write to one place at once: both or one with an error, and no loss."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from millpond.storage import LocalStorage
from millpond.storage.commit import check_present
from millpond.storage.manifest import newest_manifest

WRITER = """
import sys
from pathlib import Path
from millpond.errors import MillpondError
from millpond.schema import Schema
from millpond.storage import LocalStorage, OutputFile
from millpond.storage.commit import commit, marked, new_commit_id

root, name, times, mode = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
store, schema = LocalStorage(), Schema.of([("a", "BIGINT")])
print("ready", flush=True)
sys.stdin.readline()
for i in range(times):
    id = new_commit_id()
    outputs = []
    for part in range(2):
        staged = store.stage(f"{root}/{marked(f'{part:05}.txt', id)}", f"{id}.{part}")
        Path(staged.local).write_text(f"{name}{i}.{part}")
        outputs.append(OutputFile(store.seal(staged), rows=1))
    try:
        commit(store, root, outputs, commit_id=id, schema=schema, mode=mode)
        print("done", i)
    except MillpondError as error:
        print("error", type(error).__name__)
"""


def race(root: Path | list[Path], modes: tuple[str, ...], times: int) -> list[list[str]]:
    """Run one writer for each mode, all from the same moment on; what each of them says.

    `root` is one path for all, or one for each: where its node has the same folder.
    """
    roots = root if isinstance(root, list) else [root] * len(modes)
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(roots[i]), f"w{i}-", str(times), mode],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environ,
        )
        for i, mode in enumerate(modes)
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    said = [writer.communicate(timeout=120)[0].splitlines() for writer in writers]
    assert [writer.returncode for writer in writers] == [0] * len(writers)
    return said


def content(root: Path) -> list[str]:
    storage = LocalStorage()
    newest = newest_manifest(storage, str(root))
    assert newest is not None
    check_present(storage, str(root), newest)
    return sorted((root / file.path).read_text() for file in newest.files)


@pytest.mark.slow
def test_appends_of_two_processes_are_all_kept(tmp_path: Path) -> None:
    said = race(tmp_path, ("append", "append"), 20)
    assert all(line.startswith("done") for lines in said for line in lines)
    wanted = [f"w{w}-{i}.{part}" for w in range(2) for i in range(20) for part in range(2)]
    assert content(tmp_path) == sorted(wanted)
    assert len(list((tmp_path / "_manifest").iterdir())) == 41


@pytest.mark.slow
def test_of_two_first_writers_one_has_an_error_and_leaves_no_file(tmp_path: Path) -> None:
    for attempt in range(2):
        root = tmp_path / str(attempt)
        said = race(root, ("error", "error"), 1)
        assert sorted(lines[0] for lines in said) == ["done 0", "error TargetNotEmpty"]
        winner = [lines[0] for lines in said].index("done 0")
        assert content(root) == [f"w{winner}-0.0", f"w{winner}-0.1"]
        assert len(list(root.glob("*.txt"))) == 2
        assert not list(root.glob(".millpond-staged*"))


@pytest.mark.slow
def test_overwrites_and_appends_at_once_are_never_mixed(tmp_path: Path) -> None:
    said = race(tmp_path, ("append", "overwrite"), 15)
    assert all(line.startswith("done") for lines in said for line in lines)
    found = content(tmp_path)
    # Whole commits only, in the order of the writers: what the last overwrite left, and
    # the appends after it.
    names = sorted({text.rpartition(".")[0] for text in found})
    assert found == sorted(f"{name}.{part}" for name in names for part in range(2))
    assert [name for name in names if name.startswith("w1-")] in (["w1-14"],)
    later = sorted(int(name.removeprefix("w0-")) for name in names if name.startswith("w0-"))
    assert later == list(range(15 - len(later), 15))
