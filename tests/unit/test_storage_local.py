"""What is particular to files of this machine."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from millpond.errors import DiskFull, StorageError
from millpond.storage import LocalStorage, Range, open_storage
from millpond.storage.oserrors import explained
from millpond.storage.paths import beneath, plain
from millpond.storage.preads import PIECE
from millpond.storage.ranges import Read, cut, merge
from tests.support.open_files import open_at

store = LocalStorage()


def test_paths_uris_and_home_name_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a b#1.bin").write_bytes(b"x")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    full = str(tmp_path / "a b#1.bin")
    named = [full, "a b#1.bin", "~/a b#1.bin", f"file://{tmp_path}/a%20b%231.bin"]
    assert {plain(name) for name in named} == {full}
    assert {store.local_path(name) for name in named} == {full}
    assert [info.path for name in named for info in store.list(name)] == [full] * 4
    assert store.local_path("s3://bucket/key") is None


@pytest.mark.parametrize("path", ["file://server/share/x", "s3://bucket/key", "", "a\0b"])
def test_what_is_no_path_of_this_machine_is_refused(path: str) -> None:
    with pytest.raises(StorageError):
        store.stat(path)


def test_a_plain_path_and_a_file_uri_are_local(tmp_path: Path) -> None:
    assert isinstance(open_storage(str(tmp_path)), LocalStorage)
    assert isinstance(open_storage(f"file://{tmp_path}"), LocalStorage)


def test_the_staging_folder_is_private_and_leaves_with_its_last_file(tmp_path: Path) -> None:
    first = store.stage(str(tmp_path / "out/a.bin"), "t1")
    second = store.stage(str(tmp_path / "out/b.bin"), "t2")
    folder = Path(first.local).parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert folder.parent == tmp_path / "out"
    store.publish([store.seal(first)])
    assert Path(second.local).exists()
    store.discard([second])
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a.bin"]


def test_a_published_file_has_the_usual_permissions(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        store.publish([store.seal(store.stage(str(tmp_path / "a.bin"), "t1"))])
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a.bin").stat().st_mode) == 0o640


def test_a_staging_folder_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f".millpond-staged-{os.geteuid()}").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match="private folder"):
        store.stage(str(tmp_path / "a.bin"), "t1")


def test_a_long_name_is_staged_and_published(tmp_path: Path) -> None:
    path = str(tmp_path / ("ä" * 120 + ".parquet"))
    staged = store.stage(path, "stage-0001.partition-00001.attempt-3")
    assert staged.local.endswith(".parquet")
    store.publish([store.seal(staged)])
    assert [info.path for info in store.list(str(tmp_path))] == [path]


def test_a_file_that_changed_after_sealing_is_not_published(tmp_path: Path) -> None:
    sealed = store.seal(store.stage(str(tmp_path / "a.bin"), "t1"))
    Path(sealed.local).write_bytes(b"late")
    with pytest.raises(StorageError, match="4 bytes, but 0 when it was sealed"):
        store.publish([sealed])


def test_a_large_range_is_read_in_pieces_and_ends_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "big.bin"
    block = os.urandom(1 << 16)
    path.write_bytes(block * 300)
    size = 300 << 16
    assert size > 2 * PIECE
    whole, tail = store.read_many(
        [Range(str(path), 0, 2 * size), Range(str(path), size - 100, 1 << 30)]
    )
    assert whole.nbytes == size
    assert whole == block * 300
    assert tail == block[-100:]


def test_ranges_of_a_very_large_file_are_read_where_they_are(tmp_path: Path) -> None:
    path = tmp_path / "sparse.bin"
    places = [0, 1 << 32, (50 << 30) - 8]
    with open(path, "wb") as file:
        for at in places:
            file.seek(at)
            file.write(b"%08d" % (at % 10**8))
    views = store.read_many([Range(str(path), at, 16) for at in places])
    assert [bytes(v)[:8] for v in views] == [b"%08d" % (at % 10**8) for at in places]
    assert len(views[2]) == 8


def test_thousands_of_small_files_are_read_with_few_open_at_once(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i:04}" for i in range(2000)]
    for i, path in enumerate(paths):
        path.write_bytes(b"%d" % i)
    views = store.read_many([Range(str(path), 0, 100) for path in paths])
    assert [bytes(v) for v in views] == [b"%d" % i for i in range(2000)]
    assert open_at(tmp_path) == 0


def test_a_forked_child_reads_too(tmp_path: Path) -> None:
    # torch's DataLoader forks; the parent's reading threads are not there in the child.
    script = (
        "import os, sys\n"
        "from millpond.storage import LocalStorage, Range\n"
        "path = sys.argv[1]\n"
        "ask = [Range(path, i * 100_000, 9) for i in range(40)]\n"
        "LocalStorage().read_many(ask)\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    LocalStorage().read_many(ask)\n"
        "    os._exit(7)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    (tmp_path / "a.bin").write_bytes(bytes(4_000_000))
    done = subprocess.run([sys.executable, "-c", script, tmp_path / "a.bin"], timeout=60)
    assert done.returncode == 7


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a.bin").write_bytes(b"")
    (tmp_path / "data/loop").symlink_to(tmp_path / "data")
    (tmp_path / "link").symlink_to(tmp_path / "data")
    found = [info.path for info in store.list(str(tmp_path / "link"))]
    assert found == [str(tmp_path / "link/a.bin")]


def test_what_is_no_regular_file_is_not_listed(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "broken").symlink_to(tmp_path / "nothing")
    assert list(store.list(str(tmp_path))) == []


def test_a_full_disk_is_named_with_the_path() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this platform has no /dev/full")
    with pytest.raises(DiskFull, match=r"write '/dev/full': No space"):
        fill("/dev/full")


def fill(path: str) -> None:
    with explained(path, "write"), open(path, "wb", buffering=0) as file:
        file.write(b"x")


def test_a_folder_in_the_way_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="folder is needed"):
        store.stage(str(tmp_path / "file/a.bin"), "t1")
    (tmp_path / "d").mkdir()
    with pytest.raises(StorageError, match="folder where a file"):
        store.read_many([Range(str(tmp_path / "d"), 0, 10)])


@pytest.mark.skipif(os.geteuid() == 0 and sys.platform == "linux", reason="root may read all")
def test_a_forbidden_file_says_what_to_check(tmp_path: Path) -> None:
    (tmp_path / "a.bin").touch(mode=0)
    with pytest.raises(StorageError, match="permissions"):
        store.read_many([Range(str(tmp_path / "a.bin"), 0, 10)])


@pytest.mark.parametrize("name", ["a.bin", "d/a.bin", "d/é.bin", "d/..a"])
def test_a_relative_name_stays_beneath_its_root(tmp_path: Path, name: str) -> None:
    assert beneath(str(tmp_path), name) == str(tmp_path / name)


@pytest.mark.parametrize(
    "name",
    ["", "/etc/passwd", "../a", "d/../../a", "d/..", "./a", "a//b", "d/", "a\0b", "a\\b", "out/a"],
)
def test_a_name_that_leads_out_of_its_root_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "out").symlink_to("/tmp")
    with pytest.raises(StorageError, match="lead out"):
        beneath(str(tmp_path), name)


def test_neighbours_within_the_gap_are_one_read() -> None:
    ranges = [Range("f", 100, 10), Range("f", 0, 10), Range("f", 5, 10), Range("g", 0, 10)]
    assert merge(ranges, len, gap=85) == [Read("f", 0, 110, (1, 2, 0)), Read("g", 0, 10, (3,))]
    assert merge(ranges, len, gap=84) == [
        Read("f", 0, 15, (1, 2)),
        Read("f", 100, 10, (0,)),
        Read("g", 0, 10, (3,)),
    ]


def test_merging_ends_before_a_read_pins_too_much_memory() -> None:
    ranges = [Range("f", i * 10, 10) for i in range(10)]
    assert [read.length for read in merge(ranges, len, limit=40)] == [40, 40, 20]


def test_a_long_range_does_not_hide_a_short_one_inside_it() -> None:
    assert merge([Range("f", 0, 100), Range("f", 10, 5)], len) == [Read("f", 0, 100, (0, 1))]


def test_pieces_cover_a_read_without_gap_or_overlap() -> None:
    assert cut(10, 4) == [(0, 3), (3, 3), (6, 4)]
    assert cut(0, 4) == [(0, 0)]
    assert cut(4, 4) == [(0, 4)]


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="Linux's own folder of processes")
def test_a_target_where_nothing_can_be_made_is_not_called_missing() -> None:
    with pytest.raises(StorageError, match="makes no folder or file there"):
        store.stage("/proc/out/a.bin", "t1")


def test_a_file_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its name before anybody hears of it: a power cut leaves all of it, or nothing."""
    done: list[tuple[str, int]] = []
    fsync, replace = os.fsync, os.replace

    def synced(fd: int) -> None:
        fsync(fd)
        done.append(("synced", os.fstat(fd).st_ino))

    def named(source: str, target: str) -> None:
        done.append(("named", os.stat(source).st_ino))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", named)
    target = tmp_path / "new" / "out.bin"
    staged = store.stage(str(target), "attempt")
    Path(staged.local).write_bytes(b"rows")
    store.publish([store.seal(staged)])
    file, folder = target.stat().st_ino, target.parent.stat().st_ino
    steps = [("synced", file), ("named", file), ("synced", folder)]
    assert [step for step in done if step in steps][-3:] == steps
