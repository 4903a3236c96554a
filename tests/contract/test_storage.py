"""What every storage does. Each implementation runs all of it (see conftest.py)."""

import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from places import Place

from millpond.errors import MillpondError, NotAtomic, PathNotFound, StorageError
from millpond.storage import Range

BYTES = bytes(i * 7 % 251 for i in range(300_000))


def read(place: Place, name: str, offset: int = 0, length: int = -1) -> bytes:
    return bytes(place.storage.read_many([Range(place.path(name), offset, length)])[0])


def test_a_file_is_read_as_it_was_written(place: Place) -> None:
    place.put("a.bin", BYTES)
    assert read(place, "a.bin") == BYTES


def test_an_empty_file_is_a_file(place: Place) -> None:
    place.put("empty", b"")
    assert read(place, "empty") == b""
    found = place.storage.stat(place.path("empty"))
    assert found is not None
    assert found.size_bytes == 0


def test_ranges_come_in_the_order_asked_whatever_their_order_in_the_file(place: Place) -> None:
    path = place.put("a.bin", BYTES)
    asked = [(200_000, 1000), (0, 10), (299_990, 10), (5, 10), (0, 0), (100, 70_000)]
    views = place.storage.read_many([Range(path, at, n) for at, n in asked])
    assert [bytes(v) for v in views] == [BYTES[at : at + n] for at, n in asked]


def test_ranges_of_many_files_do_not_mix(place: Place) -> None:
    paths = [place.put(f"{i}.bin", BYTES[i:]) for i in range(4)]
    ranges = [Range(p, at, 50) for at in (0, 150_000) for p in paths]
    views = place.storage.read_many(ranges)
    expected = [BYTES[i + at : i + at + 50] for at in (0, 150_000) for i in range(4)]
    assert [bytes(v) for v in views] == expected


def test_a_range_is_short_at_the_end_of_the_file_and_empty_behind_it(place: Place) -> None:
    path = place.put("a.bin", BYTES)
    size = len(BYTES)
    ranges = [Range(path, size - 5, 100), Range(path, size, 10), Range(path, size + 10**6, 10)]
    views = place.storage.read_many(ranges)
    assert [bytes(v) for v in views] == [BYTES[-5:], b"", b""]


def test_a_length_of_minus_one_is_all_that_follows(place: Place) -> None:
    path = place.put("a.bin", BYTES)
    views = place.storage.read_many([Range(path, 299_000, -1), Range(path, 10**6, -1)])
    assert [bytes(v) for v in views] == [BYTES[299_000:], b""]


def test_the_same_range_twice_gives_it_twice(place: Place) -> None:
    path = place.put("a.bin", BYTES)
    views = place.storage.read_many([Range(path, 3, 9), Range(path, 3, 9)])
    assert [bytes(v) for v in views] == [BYTES[3:12]] * 2


def test_no_ranges_give_nothing(place: Place) -> None:
    assert place.storage.read_many([]) == []


def test_many_threads_read_at_once(place: Place) -> None:
    path = place.put("a.bin", BYTES)

    def some(i: int) -> bool:
        views = place.storage.read_many(
            [Range(path, at + i, 100) for at in range(0, 200_000, 9_999)]
        )
        return all(
            bytes(v) == BYTES[at + i : at + i + 100]
            for v, at in zip(views, range(0, 200_000, 9_999), strict=True)
        )

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(some, range(8)))


def test_a_missing_file_is_named(place: Place) -> None:
    with pytest.raises(PathNotFound, match=r"gone\.bin"):
        read(place, "gone.bin", 0, 10)
    with pytest.raises(PathNotFound, match=r"gone\.bin"):
        read(place, "gone.bin")


def test_a_bad_range_is_refused(place: Place) -> None:
    path = place.put("a.bin", BYTES)
    with pytest.raises(ValueError, match="range"):
        place.storage.read_many([Range(path, -1, 5)])


def test_stat_gives_size_and_a_version_that_changes_with_the_bytes(place: Place) -> None:
    path = place.put("a.bin", b"one")
    first = place.storage.stat(path)
    place.put("a.bin", b"three")
    second = place.storage.stat(path)
    assert first is not None
    assert second is not None
    assert (first.path, first.size_bytes, second.size_bytes) == (path, 3, 5)
    assert first.version != second.version
    assert first.version


def test_stat_of_nothing_or_of_a_folder_is_none(place: Place) -> None:
    place.put("folder/a.bin", b"x")
    assert place.storage.stat(place.path("none")) is None
    assert place.storage.stat(place.path("folder")) is None


def test_a_listing_holds_all_files_below_a_folder_sorted_by_path(place: Place) -> None:
    for name in ["b.bin", "a/2.bin", "a/1.bin", "a-b.bin", "a/x/3.bin", "A.bin"]:
        place.put(name, name.encode())
    assert place.names() == sorted(["b.bin", "a/2.bin", "a/1.bin", "a-b.bin", "a/x/3.bin", "A.bin"])
    assert place.names("a") == ["a/1.bin", "a/2.bin", "a/x/3.bin"]
    assert place.names("a/") == ["a/1.bin", "a/2.bin", "a/x/3.bin"]


def test_a_listing_says_what_stat_says(place: Place) -> None:
    path = place.put("a.bin", b"12345")
    assert list(place.storage.list(place.root)) == [place.storage.stat(path)]
    assert list(place.storage.list(path)) == [place.storage.stat(path)]


def test_a_listing_of_nothing_is_empty(place: Place) -> None:
    assert place.names("nothing") == []
    assert place.names("nothing/*.bin") == []


def test_a_folder_is_no_prefix_of_names(place: Place) -> None:
    place.put("part/a.bin", b"")
    place.put("part2/b.bin", b"")
    assert place.names("part") == ["part/a.bin"]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.bin", ["a.bin", "b1.bin", "b2.bin"]),
        ("b?.bin", ["b1.bin", "b2.bin"]),
        ("b[13-9].bin", ["b1.bin"]),
        ("b[!1].bin", ["b2.bin"]),
        ("*/*.bin", ["d/e.bin"]),
        ("**/*.bin", ["a.bin", "b1.bin", "b2.bin", "d/e.bin", "d/f/g.bin"]),
        ("d/**", ["d/e.bin", "d/f/g.bin"]),
        ("**", ["a.bin", "b1.bin", "b2.bin", "c.txt", "d/e.bin", "d/f/g.bin"]),
        ("d*/f/g.bin", ["d/f/g.bin"]),
        ("A.bin", []),
    ],
)
def test_globs(place: Place, pattern: str, names: list[str]) -> None:
    for name in ["a.bin", "b1.bin", "b2.bin", "c.txt", "d/e.bin", "d/f/g.bin", ".h.bin"]:
        place.put(name, b"")
    assert place.names(pattern) == names


def test_hidden_names_and_manifests_are_left_out_unless_named(place: Place) -> None:
    for name in [".crc", ".tmp/a.bin", "_manifest/1.json", "d/_manifest/2.json", "a.bin"]:
        place.put(name, b"")
    assert place.names() == ["a.bin"]
    assert place.names("**/*") == ["a.bin"]
    assert place.names("_manifest") == ["_manifest/1.json"]
    assert place.names("_manifest/*.json") == ["_manifest/1.json"]
    assert place.names(".tmp/*") == [".tmp/a.bin"]
    assert place.names(".crc") == [".crc"]


@pytest.mark.parametrize(
    "name",
    ["a b.bin", "ä→漢.bin", "a%20b#c?.bin", "a+b&c=d.bin", "k=1/v=ü/x.bin", "it's.bin", "[x].bin"],
)
def test_odd_characters_in_names(place: Place, name: str) -> None:
    place.put(name, b"odd")
    assert read(place, name) == b"odd"
    assert place.names() == [name]
    assert place.names(name) == [name]


def test_nobody_sees_a_file_before_it_is_published(place: Place) -> None:
    staged = place.storage.stage(place.path("a.bin"), "t1")
    Path(staged.local).write_bytes(BYTES)
    sealed = place.storage.seal(staged)
    assert sealed.size_bytes == len(BYTES)
    assert place.names() == []
    assert place.storage.stat(place.path("a.bin")) is None

    place.storage.publish([sealed])
    assert place.names() == ["a.bin"]
    assert read(place, "a.bin") == BYTES


def test_a_sealed_file_is_published_by_another_process(place: Place) -> None:
    staged = place.storage.stage(place.path("a.bin"), "t1")
    Path(staged.local).write_bytes(b"sealed")
    travelled = pickle.loads(pickle.dumps(place.storage.seal(staged)))
    place.opens().publish([travelled])  # As another process would: nothing but the value.
    assert read(place, "a.bin") == b"sealed"


def test_two_attempts_of_one_file_do_not_meet(place: Place) -> None:
    staged = [place.storage.stage(place.path("a.bin"), f"t1.a{i}") for i in range(2)]
    for i, one in enumerate(staged):
        Path(one.local).write_bytes(b"attempt %d" % i)
    sealed = [place.storage.seal(one) for one in staged]
    place.storage.publish(sealed[1:])
    place.storage.discard(sealed[:1])
    assert read(place, "a.bin") == b"attempt 1"


def test_publishing_replaces_what_was_there(place: Place) -> None:
    place.put("a.bin", b"a long old text")
    place.put("a.bin", b"new")
    assert read(place, "a.bin") == b"new"


def test_what_was_discarded_is_gone_sealed_or_not(place: Place) -> None:
    open_one = place.storage.stage(place.path("a.bin"), "t1")
    sealed = place.storage.seal(place.storage.stage(place.path("b.bin"), "t2"))
    place.storage.discard([open_one, sealed])
    assert not Path(open_one.local).exists()
    assert not Path(sealed.local).exists()
    assert place.names() == []
    place.storage.discard([open_one, sealed])  # Again: no error.
    with pytest.raises(MillpondError, match=r"b\.bin"):
        place.storage.publish([sealed])


def test_a_staged_file_that_was_never_sealed_is_not_published(place: Place) -> None:
    staged = place.storage.stage(place.path("a.bin"), "t1")
    with pytest.raises(AssertionError, match="sealed"):
        place.storage.publish([staged])
    place.storage.discard([staged])


def test_many_files_are_published_together(place: Place) -> None:
    sealed = []
    for i in range(5):
        staged = place.storage.stage(place.path(f"d{i % 2}/{i}.bin"), "t")
        Path(staged.local).write_bytes(b"%d" % i)
        sealed.append(place.storage.seal(staged))
    place.storage.publish(sealed)
    assert [read(place, f"d{i % 2}/{i}.bin") for i in range(5)] == [b"%d" % i for i in range(5)]


def test_put_if_absent_creates_once_or_says_that_it_cannot(place: Place) -> None:
    path = place.path("m/1.json")
    if not place.atomic:
        with pytest.raises(NotAtomic, match=r"m/1\.json: this store ignores conditional writes"):
            place.storage.put_if_absent(path, b"first")
        assert place.names() == []
        return
    assert place.storage.put_if_absent(path, b"first")
    assert not place.storage.put_if_absent(path, b"second")
    assert read(place, "m/1.json") == b"first"
    assert place.names() == ["m/1.json"]


def test_of_many_who_put_at_once_one_wins(place: Place) -> None:
    if not place.atomic:
        pytest.skip("this store ignores conditional writes; it says so, see above")
    path = place.path("1.json")
    with ThreadPoolExecutor(8) as threads:
        won = list(threads.map(lambda i: place.storage.put_if_absent(path, b"%d" % i), range(8)))
    assert won.count(True) == 1
    assert read(place, "1.json") == b"%d" % won.index(True)


def test_deleted_files_are_gone_and_missing_ones_no_error(place: Place) -> None:
    kept, removed = place.put("a.bin", b""), place.put("d/b.bin", b"")
    place.storage.delete([removed, place.path("none"), place.path("none/none")])
    assert [info.path for info in place.storage.list(place.root)] == [kept]


def test_scratch_is_removed_whole_and_nothing_else_is(place: Place) -> None:
    for name in ["d/.millpond-run/a.bin", "d/.millpond-run/x/y/b.bin", "d/kept.bin"]:
        place.put(name, b"x")
    place.storage.remove_scratch(place.path("d/.millpond-run"))
    place.storage.remove_scratch(place.path("d/.millpond-run"))  # Gone already: no error.
    assert place.names() == ["d/kept.bin"]
    assert place.names("d/.millpond-run") == []
    with pytest.raises(StorageError, match="only a folder below one whose name begins"):
        place.storage.remove_scratch(place.path("d"))
    assert place.names() == ["d/kept.bin"]


def test_a_local_path_holds_the_same_bytes(place: Place) -> None:
    path = place.put("a.bin", b"bytes")
    local = place.storage.local_path(path)
    assert local is None or Path(local).read_bytes() == b"bytes"


def test_values_travel(place: Place) -> None:
    staged = place.storage.stage(place.path("a.bin"), "t1")
    assert pickle.loads(pickle.dumps(staged)) == staged
    assert replace(staged, size_bytes=1) != staged
    place.storage.discard([staged])
