"""3FS: reads in batches through rings, and every way in which they can fail."""

import errno
import gc
import os
import subprocess
import sys
import types
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hf3fs import Cluster

from millpond.errors import StorageError
from millpond.storage import LocalStorage, Range, ThreeFsStorage, open_storage
from millpond.storage.preads import memory_of
from millpond.storage.threefs import FILES, find_mount
from millpond.storage.usrbio import BUFFER, ENTRIES, OPEN_FILES, Batch, OpenFiles, Ring, batches
from tests.support.open_files import open_at

BYTES = os.urandom(1 << 20)


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    (tmp_path / "mnt").mkdir()
    return Cluster(tmp_path / "mnt")


@pytest.fixture
def client(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    return cluster.install(monkeypatch)


@pytest.fixture
def path(cluster: Cluster) -> str:
    path = f"{cluster.mount}/a.bin"
    Path(path).write_bytes(BYTES)
    return path


def spread(path: str, n: int, length: int = 100) -> list[Range]:
    """`n` ranges too far apart to be merged."""
    return [Range(path, i * 66_000 % 999_000 + i // 15 * 200, length) for i in range(n)]


def right(ranges: list[Range], views: list[memoryview]) -> bool:
    return [bytes(v) for v in views] == [BYTES[r.offset : r.offset + r.length] for r in ranges]


def test_a_batch_is_one_submit_and_one_wait(
    cluster: Cluster, client: types.ModuleType, tmp_path: Path
) -> None:
    big = Path(cluster.mount) / "big.bin"
    with open(big, "wb") as file:
        file.truncate(1 << 30)
        for i in range(512):
            file.seek(i << 21)
            file.write(b"%4096d" % i)
    ranges = [Range(str(big), i << 21, 4096) for i in range(512)]
    Random(1).shuffle(ranges)
    storage = ThreeFsStorage(client)
    views = storage.read_many(ranges)
    assert [int(bytes(v)) for v in views] == [r.offset >> 21 for r in ranges]
    assert [c for c in cluster.calls if c in ("submit", "wait")] == ["submit", "wait"]
    assert cluster.calls.count("register_fd") == 1


def test_the_ring_and_the_open_file_are_used_again(
    cluster: Cluster, client: types.ModuleType, path: str
) -> None:
    storage = ThreeFsStorage(client)
    for _ in range(3):
        ranges = spread(path, 10)
        assert right(ranges, storage.read_many(ranges))
    assert cluster.calls.count("make_ioring") == 1
    assert cluster.calls.count("register_fd") == 1


def test_a_file_that_was_replaced_is_opened_anew(
    cluster: Cluster, client: types.ModuleType, path: str
) -> None:
    storage = ThreeFsStorage(client)
    assert bytes(storage.read_many([Range(path, 0, 3)])[0]) == BYTES[:3]
    staged = storage.stage(path, "t1")
    Path(staged.local).write_bytes(b"new bytes")
    storage.publish([storage.seal(staged)])
    assert bytes(storage.read_many([Range(path, 0, 9)])[0]) == b"new bytes"
    assert len(cluster.registered) == 1


@pytest.mark.parametrize(
    "faults",
    [
        ["short"],
        ["short", errno.EREMOTEIO, "short"],
        [errno.EREMOTEIO],
        [errno.EIO, errno.EAGAIN, errno.EINTR],
        [errno.EIO] * 20,  # Also in the second round: then preadv reads.
        ["hang"],
        ["hang"] * 10,
        [errno.EIO, "hang", "short", 0, 0, 0, 0, 0, 0, 0, "hang"],
        [errno.ENODATA],
    ],
    ids=str,
)
def test_reads_that_fail_in_a_ring_are_done_in_another_way(
    cluster: Cluster, client: types.ModuleType, path: str, faults: list[int | str]
) -> None:
    storage = ThreeFsStorage(client)
    for _ in range(2):
        cluster.faults.extend(faults)
        ranges = spread(path, 10)
        assert right(ranges, storage.read_many(ranges))
    cluster.faults.clear()


def test_what_may_pass_is_asked_of_the_ring_once_more(
    cluster: Cluster, client: types.ModuleType, path: str
) -> None:
    cluster.faults.extend([0, errno.EREMOTEIO, 0])
    ranges = spread(path, 3)
    assert right(ranges, ThreeFsStorage(client).read_many(ranges))
    assert [c for c in cluster.calls if c in ("submit", "wait")] == ["submit", "wait"] * 2


def test_a_ring_with_a_read_still_under_way_is_never_used_again(
    cluster: Cluster, client: types.ModuleType, path: str
) -> None:
    storage = ThreeFsStorage(client, wait_s=0.1)
    cluster.faults.append("hang")
    ranges = spread(path, 3)
    assert right(ranges, storage.read_many(ranges))
    assert right(ranges, storage.read_many(ranges))
    assert cluster.calls.count("make_ioring") == 2
    assert len(cluster.links()) == 1  # The first buffer's registration was taken back.


def test_a_buffer_whose_registration_is_gone_is_an_error_and_not_wrong_bytes(
    cluster: Cluster, client: types.ModuleType, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = ThreeFsStorage(client)
    storage.read_many(spread(path, 3))
    (link,) = cluster.links()
    os.rename(f"{cluster.mount}/3fs-virt/iovs/{link}", f"{cluster.mount}/gone")
    with pytest.raises(StorageError, match=r"a\.bin.*EINVAL"):
        storage.read_many(spread(path, 3))
    os.rename(f"{cluster.mount}/gone", f"{cluster.mount}/3fs-virt/iovs/{link}")


def test_the_fake_punishes_what_a_cluster_would(
    cluster: Cluster, client: types.ModuleType, path: str
) -> None:
    """So that the tests above mean something."""
    shm = SharedMemory(create=True, size=4096)
    iov, cut = client.make_iovec(shm, cluster.mount), client.make_iovec(shm, cluster.mount, 1024)
    shm.unlink()
    fd, writing = os.open(path, os.O_RDONLY), os.open(path, os.O_WRONLY)
    for one in (fd, writing):
        client.register_fd(one)

    def done(*reads: tuple[int, int], buffer: Any = iov, depth: int = 0) -> dict[int, int]:
        ring = client.make_ioring(cluster.mount, 8, True, depth)
        for i, (start, end) in enumerate(reads):
            ring.prepare(buffer[start:end], True, fd, 0, i)
        ring.submit()
        return {r.userdata: r.result for r in ring.wait(max_results=8, timeout=0.0)}

    three = [(0, 10), (10, 20), (20, 30)]
    assert list(done(*three)) != [0, 1, 2]  # Another order.
    assert done(*three, depth=-2) == {0: 10, 1: 10, 2: 10}
    assert len(done(*three, depth=2)) == 2  # The tail waits for ever.
    assert done((0, 10), (5, 15)) == {0: -errno.EINVAL, 1: -errno.EINVAL}  # They overlap.
    assert done((1000, 1100), buffer=cut) == {0: -errno.EINVAL}  # Across two blocks.

    def refused(*given: Any, ring: Any = None) -> int | None:
        with pytest.raises(OSError) as caught:  # noqa: PT011
            (ring or client.make_ioring(cluster.mount, 8)).prepare(*given)
        return caught.value.errno

    assert refused(iov[0:0], True, fd, 0) == errno.EINVAL
    assert refused(iov[0:9], False, fd, 0) == errno.EINVAL
    assert refused(iov[0:9], True, 999, 0) == errno.EBADF
    assert refused(iov[0:9], True, writing, 0) == errno.EACCES
    small = client.make_ioring(cluster.mount, 1)
    small.prepare(iov[0:9], True, fd, 0)
    assert refused(iov[9:18], True, fd, 0, ring=small) == errno.EAGAIN
    for one in (fd, writing):
        client.deregister_fd(one)
        os.close(one)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EBADF, errno.EINVAL])
def test_what_no_other_way_would_change_is_an_error_with_the_path(
    cluster: Cluster, client: types.ModuleType, path: str, code: int
) -> None:
    cluster.faults.extend([0, code])
    storage = ThreeFsStorage(client)
    with pytest.raises(StorageError, match=rf"read '{path}'.*{errno.errorcode[code]}"):
        storage.read_many(spread(path, 3))
    ranges = spread(path, 3)  # And afterwards the storage works.
    assert right(ranges, storage.read_many(ranges))


@pytest.mark.parametrize("call", ["make_iovec", "make_ioring", "submit", "wait", "prepare"])
def test_a_ring_that_cannot_be_had_or_used_leaves_preadv(
    cluster: Cluster, client: types.ModuleType, path: str, call: str
) -> None:
    cluster.refuse[call] = errno.ENOMEM
    storage = ThreeFsStorage(client)
    ranges = spread(path, 10)
    assert right(ranges, storage.read_many(ranges))
    assert right(ranges, storage.read_many(ranges))
    if call.startswith("make"):
        assert cluster.calls.count(call) == 1  # It is not tried for every batch.
        assert cluster.links() == []


@pytest.mark.parametrize("code", [errno.EBADF, errno.ENOMEM])
def test_a_file_that_the_client_does_not_take_is_read_by_preadv(
    cluster: Cluster, client: types.ModuleType, path: str, code: int
) -> None:
    cluster.refuse["register_fd"] = code
    ranges = spread(path, 10)
    assert right(ranges, ThreeFsStorage(client).read_many(ranges))
    assert "submit" not in cluster.calls
    assert open_at(path) == 0


def test_files_on_and_off_the_mount_are_read_together(
    cluster: Cluster, client: types.ModuleType, path: str, tmp_path: Path
) -> None:
    other = tmp_path / "elsewhere.bin"
    other.write_bytes(b"elsewhere")
    ranges = [Range(str(other), 0, 9), Range(path, 5, 5)]
    views = ThreeFsStorage(client).read_many(ranges)
    assert [bytes(v) for v in views] == [b"elsewhere", BYTES[5:10]]


def test_a_stale_registration_of_a_number_is_replaced(
    cluster: Cluster, client: types.ModuleType, path: str
) -> None:
    # Somebody else's code closed a registered file: the number now means the old file.
    other = Path(cluster.mount) / "other.bin"
    other.write_bytes(b"old" * 1000)
    fd = os.open(other, os.O_RDONLY)
    cluster.register_fd(fd)
    os.close(fd)
    files = OpenFiles(client)
    file = files.acquire(path)
    assert file is not None
    assert file.fd == fd  # The number was used again, as the system does.
    assert os.pread(cluster.registered[fd], 8, 0) == BYTES[:8]
    files.release(file)


def test_only_the_last_used_files_stay_open(cluster: Cluster, client: types.ModuleType) -> None:
    paths = [Path(cluster.mount) / f"{i}.bin" for i in range(OPEN_FILES + 50)]
    for i, path in enumerate(paths):
        path.write_bytes(b"%d" % i)
    storage = ThreeFsStorage(client)
    views = storage.read_many([Range(str(path), 0, 10) for path in paths])
    assert [bytes(v) for v in views] == [b"%d" % i for i in range(len(paths))]
    assert len(cluster.registered) == OPEN_FILES
    assert cluster.calls.count("deregister_fd") == 50


def test_a_storage_that_nobody_has_any_more_leaves_no_open_file(
    cluster: Cluster, client: types.ModuleType, path: str
) -> None:
    storage = ThreeFsStorage(client)
    assert right(spread(path, 3), storage.read_many(spread(path, 3)))
    assert open_at(cluster.mount)
    assert cluster.registered
    del storage
    gc.collect()
    assert not open_at(cluster.mount)
    assert not cluster.registered


def test_a_file_in_use_is_not_closed_for_room(cluster: Cluster, client: types.ModuleType) -> None:
    paths = [Path(cluster.mount) / f"{i}.bin" for i in range(3)]
    for path in paths:
        path.write_bytes(b"")
    files = OpenFiles(client, capacity=1)
    used = [files.acquire(str(path)) for path in paths]
    assert len(cluster.registered) == 3
    for file in used:
        assert file is not None
        files.release(file)
    assert len(files) == len(cluster.registered) == 1


def test_a_file_that_was_replaced_is_closed_when_its_last_reader_is_done(
    cluster: Cluster, client: types.ModuleType, path: str
) -> None:
    files = OpenFiles(client)
    old = files.acquire(path)
    assert old is not None
    os.replace(path, f"{path}.old")
    Path(path).write_bytes(b"new")
    new = files.acquire(path)
    assert new is not None
    assert os.pread(old.fd, 4, 0) == BYTES[:4]
    files.release(old)
    assert old.fd not in cluster.registered
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(old.fd)
    assert os.pread(new.fd, 4, 0) == b"new"
    files.release(new)


def test_batches_fit_a_ring_and_its_buffer() -> None:
    def made(*reads: tuple[str, int]) -> list[Batch]:
        paths, lengths = zip(*reads, strict=True)
        whole = Batch(paths, range(len(paths)), lengths, memory_of(sum(lengths)))
        found = batches(whole, FILES)
        assert [p for one in found for p in one.paths] == list(paths)
        assert [at for one in found for at in one.offsets] == list(whole.offsets)
        assert all(sum(one.lengths) == len(one.memory) for one in found)
        return found

    assert [len(one.paths) for one in made(*[("f", 1)] * ENTRIES)] == [ENTRIES]
    crowd = made(*[("f", 1)] * (3 * ENTRIES + 40))
    assert [len(one.paths) for one in crowd] == [ENTRIES] * 3 + [40]
    many = made(*[(str(i), 1) for i in range(FILES * 2)])
    assert [len(one.paths) for one in many] == [FILES] * 2
    large = made(("f", BUFFER // 2 + 5), ("f", BUFFER // 2 + 5))
    assert [len(one.paths) for one in large] == [1, 1]


@pytest.mark.slow
def test_a_long_range_is_read_by_several_rings(cluster: Cluster, client: types.ModuleType) -> None:
    path = Path(cluster.mount) / "long.bin"
    path.write_bytes(BYTES * 40)
    views = ThreeFsStorage(client).read_many(
        [Range(str(path), 7, -1), Range(str(path), (40 << 20) - 5, 100)]
    )
    assert views[0] == (BYTES * 40)[7:]
    assert views[1] == BYTES[-5:]
    assert cluster.calls.count("submit") >= 3


def test_buffers_leave_no_trace(cluster: Cluster, client: types.ModuleType, path: str) -> None:
    before = set(os.listdir("/dev/shm"))
    ring = Ring(client, cluster.mount)
    assert set(os.listdir("/dev/shm")) == before  # Its name is gone at once.
    assert len(cluster.links()) == 1
    del ring
    assert cluster.links() == []


FORKING = """
import os, sys
from pathlib import Path
import pytest
from hf3fs import Cluster
from millpond.storage import Range, ThreeFsStorage

mount = Path(sys.argv[1])
cluster = Cluster(mount)
storage = ThreeFsStorage(cluster.install(pytest.MonkeyPatch()))
(mount / "a.bin").write_bytes(b"abcdef" * 1000)
ask = [Range(str(mount / "a.bin"), i, 6) for i in range(0, 6000, 6)]

def good():
    return all(bytes(v) == b"abcdef" for v in storage.read_many(ask))

assert good() and len(cluster.links()) == 1
child = os.fork()
if child == 0:
    ok = good()
    del storage
    import gc; gc.collect()
    sys.exit(7 if ok else 8)
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
assert code == 7, code
assert len(cluster.links()) == 1, cluster.links()
assert good()
"""


@pytest.mark.slow
def test_a_forked_child_reads_by_itself_and_leaves_the_parents_ring_alone(tmp_path: Path) -> None:
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        [sys.executable, "-c", FORKING, str(tmp_path)],
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


@pytest.mark.parametrize("removal", ["works", "refused", "ignored"])
def test_scratch_is_gone_whatever_the_server_does(
    cluster: Cluster, client: types.ModuleType, removal: str
) -> None:
    cluster.removal = removal
    folder = Path(cluster.mount) / ".millpond-run/x"
    folder.mkdir(parents=True)
    (folder / "part").write_bytes(b"")
    ThreeFsStorage(client).remove_scratch(str(folder))
    assert not folder.exists()
    assert folder.parent.exists()


def test_a_link_is_never_removed_through_the_server(
    cluster: Cluster, client: types.ModuleType, tmp_path: Path
) -> None:
    kept = Path(cluster.mount) / "kept"
    kept.mkdir()
    link = Path(cluster.mount) / ".millpond-link"
    link.symlink_to(kept)
    with pytest.raises(StorageError):
        ThreeFsStorage(client).remove_scratch(str(link))
    assert kept.exists()


MOUNTS = """22 1 0:21 / / rw - ext4 /dev/vda rw
30 22 0:50 / /3fs/stage rw,relatime shared:1 - fuse.hf3fs 3fs-virt rw
31 22 0:51 / /3fs/stage/inner rw - nfs4 server:/x rw
32 22 0:52 / /mnt/with\\040space rw - fuse.hf3fs 3fs-virt rw
33 22 0:53 / /other rw - fuse.hf3fs something rw
34 22 0:54 / /fuse rw - fuse.sshfs 3fs-virt rw
"""


@pytest.mark.parametrize(
    ("path", "mount"),
    [
        ("/3fs/stage/data/a.bin", "/3fs/stage"),
        ("/3fs/stage", "/3fs/stage"),
        ("/3fs/stage2/a.bin", None),
        ("/3fs/stage/inner/a.bin", None),
        ("/mnt/with space/a.bin", "/mnt/with space"),
        ("/other/a.bin", None),  # No folder 3fs-virt in it.
        ("/fuse/a.bin", None),
        ("/home/a.bin", None),
    ],
)
def test_a_mount_is_found_in_the_table(path: str, mount: str | None) -> None:
    assert find_mount(path, None, MOUNTS) == mount


def test_a_mount_of_another_name_is_known_by_its_virtual_folder(tmp_path: Path) -> None:
    (tmp_path / "3fs-virt").mkdir()
    table = f"30 1 0:50 / {tmp_path} rw - fuse.hf3fs hf3fs.cluster rw\n"
    assert find_mount(f"{tmp_path}/a.bin", None, table) == str(tmp_path)


def test_where_the_client_is_there_it_decides_for_each_path(
    cluster: Cluster, client: types.ModuleType, path: str, tmp_path: Path
) -> None:
    (tmp_path / "b.bin").write_bytes(b"elsewhere")
    storage = open_storage(str(tmp_path))  # Opened for a path elsewhere, used for all.
    assert bytes(storage.read_many([Range(str(tmp_path / "b.bin"), 0, 9)])[0]) == b"elsewhere"
    assert "submit" not in cluster.calls
    assert bytes(storage.read_many([Range(path, 0, 9)])[0]) == BYTES[:9]
    assert "submit" in cluster.calls


def test_without_client_and_mount_files_are_ordinary(tmp_path: Path) -> None:
    assert type(open_storage(str(tmp_path))) is LocalStorage
