"""A block file holds what was appended, whichever way it went to the disk and back."""

import os
from pathlib import Path

import pytest

from millpond.errors import DiskFull, PathNotFound
from millpond.storage.direct import SMALL_BYTES, BlockFile, is_cached, read_direct

BLOCK = 1 << 16


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK, 5 * BLOCK + 4097])
@pytest.mark.parametrize("direct_after", [None, 0, 1, 2 * BLOCK])
def test_it_holds_what_was_appended(tmp_path: Path, size: int, direct_after: int | None) -> None:
    data = os.urandom(size)
    file = BlockFile(str(tmp_path / "x"), direct_after=direct_after, block_bytes=BLOCK)
    for first in range(0, size, 9973):
        file.append(data[first : first + 9973])
    file.close()

    assert (tmp_path / "x").read_bytes() == data
    assert file.position == size


def test_where_direct_writes_are_refused_it_goes_through_the_cache() -> None:
    path = Path("/dev/shm") / f"millpond-{os.getpid()}"  # tmpfs: no direct I/O on older kernels.
    if not path.parent.is_dir():
        pytest.skip("no tmpfs here")
    file = BlockFile(str(path), direct_after=0, block_bytes=BLOCK)
    try:
        file.append(b"ab" * BLOCK + b"c")
        file.close()
        assert path.read_bytes() == b"ab" * BLOCK + b"c"
    finally:
        path.unlink()


def test_abort_leaves_no_file(tmp_path: Path) -> None:
    file = BlockFile(str(tmp_path / "x"), block_bytes=BLOCK)
    file.append(bytes(2 * BLOCK))
    file.abort()
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_said_and_leaves_no_file(tmp_path: Path) -> None:
    (tmp_path / "x").symlink_to("/dev/full")
    file = BlockFile(str(tmp_path / "x"), block_bytes=BLOCK)
    with pytest.raises(DiskFull):
        file.append(bytes(3 * BLOCK))  # The thread that writes tells of it one block later.
    file.abort()
    assert not list(tmp_path.iterdir())


def test_ranges_are_read_past_the_cache_and_through_it(tmp_path: Path) -> None:
    size = SMALL_BYTES + 3 * 4096 + 17
    data = os.urandom(size)
    (tmp_path / "x").write_bytes(data)
    ranges = [(0, 10), (4095, 2), (1, size - 2), (100, SMALL_BYTES), (size - 5, 100), (size, 5),
              (size + 5000, 5), (7, 0), (0, 10 * size)]  # fmt: skip

    found = read_direct(str(tmp_path / "x"), ranges)

    for (offset, length), got in zip(ranges, found, strict=True):
        assert got == data[offset : offset + length], (offset, length)


def test_a_file_that_is_not_there_is_said() -> None:
    with pytest.raises(PathNotFound):
        read_direct("/nowhere/x", [(0, 1)])


def test_what_was_just_written_is_in_the_cache_or_unknown(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(bytes(10_000))
    assert is_cached(str(path), 0)
    assert is_cached(str(path), 9_999)
