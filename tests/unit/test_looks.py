"""Looks at files that will be opened: few requests, many at once, never of a file as it was."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from millpond.errors import PathNotFound
from millpond.storage import FileInfo
from millpond.storage.looks import AHEAD, BYTES, KEPT, Look, Looks
from millpond.storage.pool import THREADS, each


class Files:
    """Sizes by path, and what was asked for."""

    def __init__(self, sizes: dict[str, int]) -> None:
        self.sizes, self.asked = sizes, list[tuple[str, int]]()
        self.lock = threading.Lock()

    def peek(self, path: str, offset: int, length: int) -> Look:
        with self.lock:
            self.asked.append((path, offset))
        if path not in self.sizes:
            raise PathNotFound(path, "read")
        size = self.sizes[path]
        data = memoryview(bytes(max(min(length, size - offset), 0)))
        return Look(FileInfo(path, size, "1"), offset, data)

    def read_same(self, info: FileInfo, offset: int, length: int) -> memoryview:
        raise AssertionError("a look reads no more")

    def infos(self) -> list[FileInfo]:
        return [FileInfo(path, size, "1") for path, size in self.sizes.items()]


def many(n: int, size: int = 100) -> Files:
    return Files({f"s3://b/{i:05}": size for i in range(n)})


def test_each_of_many_files_is_asked_for_once() -> None:
    files = many(KEPT * 3)
    looks = Looks(files.peek, files.read_same)
    looks.expect(files.infos(), end_bytes=BYTES)
    for path in files.sizes:
        assert looks.look(path).info.size_bytes == 100
    assert sorted(files.asked) == [(path, 0) for path in files.sizes]


def test_whoever_opens_one_file_lets_few_others_be_looked_at() -> None:
    files = many(1000)
    looks = Looks(files.peek, files.read_same)
    looks.expect(files.infos(), end_bytes=BYTES)
    looks.look("s3://b/00000")
    assert len(looks._asked) == 3
    for i in range(1, 100):
        looks.look(f"s3://b/{i:05}")
    assert len(looks._asked) == 100 + AHEAD


def test_all_of_a_small_file_and_the_end_or_the_beginning_of_a_large_one_is_seen() -> None:
    files = Files({"small": 10, "large": 10 * BYTES})
    for end_bytes, at in ((BYTES, 9 * BYTES), (0, 0)):
        looks = Looks(files.peek, files.read_same)
        looks.expect(files.infos(), end_bytes=end_bytes)
        assert looks.look("small")[1:] == (0, bytes(10))
        assert looks.look("large")[1:] == (at, bytes(BYTES))
    assert len(files.asked) == 4


def test_a_size_that_was_told_before_is_remembered_and_one_that_was_not_is_found_out() -> None:
    files = Files({"small": 10, "large": 10 * BYTES})
    looks = Looks(files.peek, files.read_same)
    looks.expect(files.infos(), end_bytes=BYTES)
    looks.expect(["large"], end_bytes=BYTES)
    assert looks.look("large").offset == 9 * BYTES
    assert files.asked == [("large", 9 * BYTES)]

    looks = Looks(files.peek, files.read_same)
    looks.expect(["large"], end_bytes=BYTES)
    assert looks.look("large").offset == 9 * BYTES
    looks.expect(["small"], end_bytes=BYTES)
    assert looks.look("small").offset == 0
    assert files.asked[1:] == [("large", 0), ("large", 9 * BYTES), ("small", 0)]


def test_a_file_that_was_replaced_is_seen_as_it_is() -> None:
    files = Files({"a": 10 * BYTES})
    looks = Looks(files.peek, files.read_same)
    looks.expect(files.infos(), end_bytes=BYTES)
    files.sizes["a"] = 20 * BYTES
    assert looks.look("a").info.size_bytes == 20 * BYTES
    files.sizes["a"] = 5
    assert looks.look("a").info.size_bytes == 20 * BYTES  # One reader asks several times.
    assert looks.renew("a")  # Another reader.
    assert looks.look("a").info.size_bytes == 5
    files.sizes["a"] = 7
    looks.expect(["a"], end_bytes=BYTES)
    assert looks.look("a").info.size_bytes == 7


def test_what_was_looked_at_ahead_is_there_for_the_reader_that_comes_after_a_name() -> None:
    files = many(3)
    looks = Looks(files.peek, files.read_same)
    looks.expect(files.infos(), end_bytes=BYTES)
    looks.look("s3://b/00000")
    assert looks.renew("s3://b/00002")  # DuckDB asks for each name before it opens any.
    looks.look("s3://b/00002")
    assert len([path for path, _ in files.asked if path == "s3://b/00002"]) == 1
    assert not looks.renew("s3://b/other")


def test_a_look_that_failed_is_tried_again() -> None:
    files = many(3)
    lost = files.sizes.pop("s3://b/00001")
    looks = Looks(files.peek, files.read_same)
    looks.expect([f"s3://b/{i:05}" for i in range(3)], end_bytes=BYTES)
    looks.look("s3://b/00000")
    with pytest.raises(PathNotFound, match="00001"):
        looks.look("s3://b/00001")
    files.sizes["s3://b/00001"] = lost
    assert looks.look("s3://b/00001").info.size_bytes == 100


def test_threads_of_the_pool_may_look_too() -> None:
    files = many(4 * THREADS)
    looks = Looks(files.peek, files.read_same)
    looks.expect(files.infos(), end_bytes=BYTES)
    found = each(lambda path: looks.look(path).info.path, list(files.sizes))
    assert found == list(files.sizes)


def test_threads_that_want_one_file_share_one_look() -> None:
    files, begun, go_on = many(1), threading.Event(), threading.Event()

    def slow(path: str, offset: int, length: int) -> Look:
        begun.set()
        go_on.wait(30)
        return files.peek(path, offset, length)

    looks = Looks(slow, files.read_same)
    with ThreadPoolExecutor(4) as threads:
        first = threads.submit(looks.look, "s3://b/00000")
        begun.wait(30)
        others = [threads.submit(looks.look, "s3://b/00000") for _ in range(3)]
        go_on.set()
        assert {future.result() for future in [first, *others]} == {first.result()}
    assert len(files.asked) == 1
