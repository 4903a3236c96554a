"""Private folders of nodes: kept while their owner lives, swept afterwards."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from millpond.errors import StorageError
from millpond.storage.scratch import KEPT_S, Scratch


def base(tmp_path: Path) -> str:
    return str(tmp_path / "millpond")


def test_it_is_private_and_gone_at_the_end(tmp_path: Path) -> None:
    scratch = Scratch("s-node", base(tmp_path))
    assert os.stat(scratch.path).st_mode & 0o777 == 0o700
    scratch.remove()
    assert os.listdir(base(tmp_path)) == []


def test_what_lives_is_not_swept(tmp_path: Path) -> None:
    one = Scratch("one", base(tmp_path))
    Scratch("two", base(tmp_path))
    assert os.path.isdir(one.path)


@pytest.mark.slow
def test_what_a_killed_process_left_is_swept(tmp_path: Path) -> None:
    script = f"""
import os, signal
from millpond.storage.scratch import Scratch
open(Scratch("dead", {base(tmp_path)!r}).path + "/rows", "w").close()
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", script], check=False)
    assert (Path(base(tmp_path)) / "dead" / "rows").exists()
    Scratch("next", base(tmp_path))
    assert not (Path(base(tmp_path)) / "dead").exists()


def test_an_owner_that_is_restarted_finds_its_files_again(tmp_path: Path) -> None:
    scratch = Scratch("node", base(tmp_path))
    (Path(scratch.path) / "part").write_bytes(b"rows")
    os.close(scratch._lock)  # What the kernel does when a process dies.
    assert (Path(Scratch("node", base(tmp_path)).path) / "part").exists()


def test_what_is_kept_outlives_its_owner_for_three_days(tmp_path: Path) -> None:
    place = base(tmp_path)
    kept = Scratch("kept", place, kept=True)
    (Path(kept.path) / "part").write_bytes(b"rows")
    assert Scratch.take_up("kept", place) is None, "its owner lives"
    kept.leave()
    Scratch("sweeps", place)
    again = Scratch.take_up("kept", place)
    assert again is not None
    assert (Path(again.path) / "part").read_bytes() == b"rows"
    again.leave()
    long_ago = time.time() - KEPT_S - 60
    os.utime(kept.path, (long_ago, long_ago))
    assert Scratch.take_up("kept", place) is None
    Scratch("sweeps later", place)
    assert not os.path.exists(kept.path)


@pytest.mark.parametrize("name", ["../else", "/etc", "", "none", "plain"])
def test_only_what_is_kept_is_taken_up(tmp_path: Path, name: str) -> None:
    Scratch("plain", base(tmp_path)).leave()
    os.mkdir(tmp_path / "else")
    assert Scratch.take_up(name, base(tmp_path)) is None


def test_a_folder_that_others_may_read_is_refused(tmp_path: Path) -> None:
    os.mkdir(base(tmp_path), 0o755)
    with pytest.raises(StorageError, match="not a private folder"):
        Scratch("s", base(tmp_path))
