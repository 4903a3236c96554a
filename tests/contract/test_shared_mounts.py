"""Two nodes of a shared file system, each with a cache of its own."""

import uuid
from pathlib import Path

import pytest
from test_commit_races import content, race

from millpond.storage import LocalStorage, Range


@pytest.fixture
def roots(shared_nodes: tuple[Path, Path]) -> list[Path]:
    name = uuid.uuid4().hex
    return [node / name for node in shared_nodes]


def test_what_one_node_publishes_the_other_reads(roots: list[Path]) -> None:
    here, there = LocalStorage(), LocalStorage()
    assert there.stat(f"{roots[1]}/a.bin") is None  # Now its cache knows that there is none.
    staged = here.stage(f"{roots[0]}/a.bin", "t1")
    Path(staged.local).write_bytes(b"whole" * 100_000)
    sealed = here.seal(staged)
    here.publish([sealed])
    # The reader was told the name and the size; it looks at no listing.
    views = there.read_many([Range(f"{roots[1]}/a.bin", 0, sealed.size_bytes)])
    assert views[0] == b"whole" * 100_000


def test_of_two_nodes_that_put_at_once_one_wins(roots: list[Path]) -> None:
    store = LocalStorage()
    assert store.put_if_absent(f"{roots[0]}/m/1.json", b"first")
    assert not store.put_if_absent(f"{roots[1]}/m/1.json", b"second")
    assert store.put_if_absent(f"{roots[1]}/m/2.json", b"third")
    assert not store.put_if_absent(f"{roots[0]}/m/2.json", b"fourth")
    assert Path(f"{roots[0]}/m/2.json").read_bytes() == b"third"


@pytest.mark.slow
def test_appends_of_two_nodes_are_all_kept(roots: list[Path]) -> None:
    said = race(roots, ("append", "append"), 5)
    assert all(line.startswith("done") for lines in said for line in lines)
    wanted = sorted(f"w{w}-{i}.{part}" for w in range(2) for i in range(5) for part in range(2))
    assert content(roots[0]) == content(roots[1]) == wanted


@pytest.mark.slow
def test_of_two_nodes_that_write_first_one_has_an_error(roots: list[Path]) -> None:
    said = race(roots, ("error", "error"), 1)
    assert sorted(lines[0] for lines in said) == ["done 0", "error TargetNotEmpty"]
    assert len(content(roots[0])) == 2
