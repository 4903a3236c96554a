"""Outputs commit whole, on every store: old state or new state, never a mixture."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from places import Place

from millpond.errors import (
    FileUnreadable,
    MillpondError,
    NotAtomic,
    SchemaMismatch,
    StorageError,
    TargetNotEmpty,
)
from millpond.schema import Schema
from millpond.storage import OutputFile, Range, Staged, Storage
from millpond.storage.commit import (
    Mode,
    Uncertain,
    check_present,
    collect,
    commit,
    marked,
    new_commit_id,
)
from millpond.storage.manifest import (
    DataFile,
    Manifest,
    file_paths,
    manifest_path,
    newest_manifest,
    read_manifest,
)

SCHEMA = Schema.of([("a", "BIGINT"), ("b", "VARCHAR")])


def write(
    place: Place,
    texts: Sequence[str],
    mode: Mode = "error",
    *,
    schema: Schema = SCHEMA,
    storage: Storage | None = None,
) -> Manifest:
    """Commit one file for each text; a text stands for the rows of a file."""
    through, id = storage or place.storage, new_commit_id()
    outputs = []
    for i, text in enumerate(texts):
        staged = place.storage.stage(place.path(marked(f"{i:05}.txt", id)), f"{id}.{i}")
        Path(staged.local).write_text(text)
        outputs.append(
            OutputFile(place.storage.seal(staged), rows=len(text), checksum=f"sum-{text}")
        )
    return commit(through, place.root, outputs, commit_id=id, schema=schema, mode=mode)


def content(place: Place) -> list[str]:
    """What a reader of the newest manifest reads."""
    newest = newest_manifest(place.storage, place.root)
    assert newest is not None
    check_present(place.storage, place.root, newest)
    ranges = [Range(path, 0, -1) for path in file_paths(place.storage, place.root, newest)]
    return [bytes(view).decode() for view in place.storage.read_many(ranges)]


def test_a_first_write_is_manifest_one_and_says_all_about_its_files(place: Place) -> None:
    made = write(place, ["one", "two!"])
    assert made.number == 1
    assert (made.rows, made.size_bytes, made.schema) == (7, 7, SCHEMA)
    assert newest_manifest(place.storage, place.root) == made
    assert content(place) == ["one", "two!"]
    assert len(place.names()) == 2


def test_a_second_write_is_refused_and_leaves_nothing(place: Place) -> None:
    write(place, ["one"])
    before = place.names()
    with pytest.raises(TargetNotEmpty, match="already holds files"):
        write(place, ["two"])
    assert place.names() == before
    assert content(place) == ["one"]


def test_files_that_lie_there_refuse_a_write(place: Place) -> None:
    place.put("notes.md", b"mine")
    with pytest.raises(TargetNotEmpty):
        write(place, ["one"])
    assert place.names() == ["notes.md"]


def test_an_append_adds(place: Place) -> None:
    if not place.atomic:
        with pytest.raises(NotAtomic, match="ignores conditional writes"):
            write(place, ["one"], "append")
        assert place.names() == []
        return
    write(place, ["one"], "append")
    made = write(place, ["two"], "append")
    assert made.number == 2
    assert content(place) == ["one", "two"]


def test_an_overwrite_replaces_and_removes(place: Place) -> None:
    write(place, ["one", "two"])
    write(place, ["three"], "overwrite")
    assert content(place) == ["three"]
    assert len(place.names()) == 1


def test_files_without_a_manifest_are_kept_by_append_and_removed_by_overwrite(
    place: Place,
) -> None:
    place.put("plain/old.txt", b"old")
    place.put("README.md", b"notes")
    if place.atomic:
        made = write(place, ["new"], "append")
        assert content(place) == ["old", "new"]
        assert made.rows == -1  # Nobody counted the old ones.
    write(place, ["newest"], "overwrite")
    assert content(place) == ["newest"]
    assert [name for name in place.names() if ".mp-" not in name] == ["README.md"]


def test_an_output_that_was_copied_without_its_manifests_keeps_its_rows(place: Place) -> None:
    if not place.atomic:
        pytest.skip("append is refused on this store")
    place.put(marked("00000.txt", "0123456789abcdef"), b"copied")
    assert collect(place.storage, place.root, grace_s=-1e6) == []
    write(place, ["new"], "append")
    assert content(place) == ["copied", "new"]


def test_an_append_of_other_columns_is_refused(place: Place) -> None:
    if not place.atomic:
        pytest.skip("append is refused on this store")
    write(place, ["one"])
    with pytest.raises(SchemaMismatch, match=r"a BIGINT, b VARCHAR.*new rows are \(a DOUBLE\)"):
        write(place, ["two"], "append", schema=Schema.of([("a", "DOUBLE")]))
    assert content(place) == ["one"]
    assert len(place.names()) == 1


def test_an_empty_result_is_a_committed_output(place: Place) -> None:
    made = write(place, [])
    assert (made.rows, made.files, made.number) == (0, (), 1)
    with pytest.raises(TargetNotEmpty):
        write(place, ["one"])


def test_of_writers_at_once_all_appends_are_kept(place: Place) -> None:
    if not place.atomic:
        pytest.skip("append is refused on this store")
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda i: write(place, [f"{i}a", f"{i}b"], "append"), range(6)))
    assert sorted(content(place)) == sorted(f"{i}{c}" for i in range(6) for c in "ab")
    newest = newest_manifest(place.storage, place.root)
    assert newest is not None
    assert newest.number == 6


def test_of_first_writers_at_once_one_wins_and_the_others_leave_nothing(place: Place) -> None:
    if not place.atomic:
        pytest.skip("without conditional writes, two first writers are not told apart")

    def first(i: int) -> bool:
        try:
            write(place, [f"{i}a", f"{i}b"])
        except TargetNotEmpty:
            return False
        return True

    with ThreadPoolExecutor(4) as threads:
        won = list(threads.map(first, range(4)))
    assert won.count(True) == 1
    assert content(place) == [f"{won.index(True)}a", f"{won.index(True)}b"]
    assert len(place.names()) == 2


class Dies(BaseException):
    """The process is gone: nothing of it runs any more."""


class DiesAt:
    """A storage whose user dies at the call numbered `at` that changes anything.

    `half`: the call is carried out for half of its files; otherwise not at all.
    """

    def __init__(self, storage: Storage, at: int, half: bool) -> None:
        self.storage, self.left, self.half = storage, at, half

    def __getattr__(self, name: str) -> Any:
        found: Callable[..., Any] = getattr(self.storage, name)
        if name not in ("publish", "put_if_absent", "delete"):
            return found

        def call(what: Any, *more: Any) -> Any:
            if self.left < 0:
                raise Dies
            self.left -= 1
            if self.left >= 0:
                return found(what, *more)
            if self.half and name == "put_if_absent":
                found(what, *more)  # Done, and its author does not live to know it.
            elif self.half:
                found(list(what)[: len(list(what)) // 2])
            raise Dies

        return call


@pytest.mark.parametrize("mode", ["append", "overwrite"])
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("at", range(4))
def test_a_writer_that_dies_anywhere_leaves_the_old_state_or_the_new_one(
    local_place: Place, mode: Mode, at: int, half: bool
) -> None:
    write(local_place, ["old1", "old2"])
    new = (["old1", "old2"] if mode == "append" else []) + ["new1", "new2"]
    try:
        write(local_place, ["new1", "new2"], mode, storage=DiesAt(local_place.storage, at, half))  # type: ignore[arg-type]
    except Dies:
        assert content(local_place) in (["old1", "old2"], new)
    else:
        assert at >= (2 if mode == "append" else 3)
        assert content(local_place) == new
    # Whatever is left over is removed in the end, and not before its time.
    now = content(local_place)
    assert collect(local_place.storage, local_place.root) == []
    collect(local_place.storage, local_place.root, grace_s=-1e6, keep=1)
    assert content(local_place) == now
    assert len(local_place.names()) == len(now)


def test_staged_files_of_the_dead_are_collected(place: Place) -> None:
    write(place, ["one"])
    staged = place.storage.seal(place.storage.stage(place.path("k=1/x.txt"), "dead"))
    assert collect(place.storage, place.root) == []
    removed = collect(place.storage, place.root, keep=1, grace_s=-1e6)
    assert len(removed) == 1
    with pytest.raises(MillpondError, match=r"x\.txt"):
        place.storage.publish([staged])
    assert content(place) == ["one"]


class Fails:
    """A storage that fails in the moment of commit, before or after it took place."""

    def __init__(self, storage: Storage, after: bool) -> None:
        self.storage, self.after = storage, after

    def __getattr__(self, name: str) -> Any:
        return getattr(self.storage, name)

    def put_if_absent(self, path: str, data: bytes) -> bool:
        if path.endswith("00000.json"):
            return self.storage.put_if_absent(path, data)
        if self.after:
            self.storage.put_if_absent(path, data)
        raise StorageError("the network is gone")


@pytest.mark.parametrize("after", [False, True])
def test_a_failure_in_the_moment_of_commit_removes_nothing(local_place: Place, after: bool) -> None:
    write(local_place, ["one"])
    with pytest.raises(Uncertain, match="whether manifest 2 was created is not known"):
        write(local_place, ["two"], "append", storage=Fails(local_place.storage, after))  # type: ignore[arg-type]
    assert content(local_place) == (["one", "two"] if after else ["one"])


class Loses:
    """A storage whose answers get lost: it created the file, and says that another did."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    def __getattr__(self, name: str) -> Any:
        return getattr(self.storage, name)

    def put_if_absent(self, path: str, data: bytes) -> bool:
        self.storage.put_if_absent(path, data)
        return False


class CannotPublish:
    """A storage that neither publishes nor removes anything."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    def __getattr__(self, name: str) -> Any:
        return getattr(self.storage, name)

    def publish(self, staged: Sequence[Staged]) -> None:
        raise StorageError("no room to publish")

    def delete(self, paths: Sequence[str]) -> None:
        raise StorageError("nor to delete")


def test_what_failed_first_is_told_also_where_nothing_can_be_removed(
    local_place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(StorageError, match="no room to publish"):
        write(local_place, ["one"], storage=CannotPublish(local_place.storage))  # type: ignore[arg-type]
    assert "nor to delete" in caplog.text
    assert content(local_place) == []


def test_a_lost_answer_is_no_lost_commit(local_place: Place) -> None:
    made = write(local_place, ["one"], "append", storage=Loses(local_place.storage))  # type: ignore[arg-type]
    assert made.number == 1
    assert content(local_place) == ["one"]


def test_a_manifest_that_was_changed_is_an_error_with_its_name(place: Place) -> None:
    write(place, ["one"])
    for text in (b"", b'{"number": 1', b"[]", b'{"millpond_manifest": 1}'):
        place.put("_manifest/00000001.json", text)
        with pytest.raises(FileUnreadable, match=r"00000001\.json"):
            newest_manifest(place.storage, place.root)
    place.put("_manifest/00000001.json", b'{"millpond_manifest": 99}')
    with pytest.raises(StorageError, match="another version"):
        newest_manifest(place.storage, place.root)


@pytest.mark.parametrize("name", ["../out.txt", "/etc/passwd", "a/../../b", ""])
def test_names_in_a_manifest_stay_below_their_root(place: Place, name: str) -> None:
    bad = Manifest(1, "x", (DataFile(name, 1, 1),), SCHEMA)
    place.put("_manifest/00000001.json", bad.to_json())
    newest = newest_manifest(place.storage, place.root)
    assert newest is not None
    with pytest.raises(StorageError, match="lead out"):
        file_paths(place.storage, place.root, newest)


def test_a_missing_or_changed_data_file_is_named(place: Place) -> None:
    made = write(place, ["one"])
    [path] = file_paths(place.storage, place.root, made)
    place.put(path.removeprefix(place.root + "/"), b"longer")
    with pytest.raises(StorageError, match="has 6 bytes, and manifest 1 says 3"):
        check_present(place.storage, place.root, made)
    place.storage.delete([path])
    with pytest.raises(StorageError, match="is missing"):
        check_present(place.storage, place.root, made)


def test_a_listing_that_shows_an_old_state_does_not_hide_the_new_one(local_place: Place) -> None:
    write(local_place, ["one"])
    write(local_place, ["two"], "overwrite")

    class Stale:
        """A shared file system whose listing is some seconds old."""

        def __getattr__(self, name: str) -> Any:
            return getattr(local_place.storage, name)

        def list(self, prefix: str) -> Any:
            return (i for i in local_place.storage.list(prefix) if "00000002" not in i.path)

    newest = newest_manifest(Stale(), local_place.root)  # type: ignore[arg-type]
    assert newest is not None
    assert newest.number == 2


def test_a_manifest_survives_its_text(place: Place) -> None:
    files = (DataFile("k=ü/a.mp-x.parquet", 3, 4, "xxh3:00"), DataFile("b", -1, 0))
    made = Manifest(7, "id", files, SCHEMA, "print")
    place.put("_manifest/00000007.json", made.to_json())
    assert read_manifest(place.storage, place.root, 7) == made


def test_the_path_of_a_manifest_has_eight_digits(place: Place) -> None:
    assert manifest_path("s3://b/out/", 12) == "s3://b/out/_manifest/00000012.json"
    assert read_manifest(place.storage, place.root, 12) is None
