"""Bad input from and about object stores: what is said, what is survived, and what it costs."""

import threading
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
from faulty_s3 import FaultyS3, Vast, faulty_s3

from millpond.errors import OptionError, PathNotFound, StorageError
from millpond.schema import Schema
from millpond.storage import LocalStorage, ObjectStorage, OutputFile, Range, read_ahead
from millpond.storage.commit import commit, marked, new_commit_id
from millpond.storage.manifest import file_paths, newest_manifest
from millpond.storage.protocol import AHEAD

URI = "s3://bucket/a.bin"


@pytest.fixture
def server() -> Iterator[FaultyS3]:
    with faulty_s3() as running:
        running.objects["a.bin"] = (bytes(100_000), {})
        yield running


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("expired", "400 Bad Request: ExpiredToken.*have expired: get new ones"),
        ("denied", "403 Forbidden: AccessDenied.*Check the keys, their rights on the bucket"),
        ("malformed", "400 Bad Request: AuthorizationHeaderMalformed.*Check the region"),
        ("skewed", "403 Forbidden: RequestTimeTooSkewed.*Set the clock"),
    ],
)
def test_a_refusal_names_object_status_code_and_what_to_check(
    server: FaultyS3, fault: str, said: str
) -> None:
    storage = ObjectStorage("s3", server.options())
    for work in (
        lambda: storage.read_many([Range(URI, 0, 10)]),
        lambda: storage.put_if_absent("s3://bucket/new", b"x"),
        lambda: list(storage.list("s3://bucket/folder/")),
    ):
        server.faults = [fault]
        asked = len(server.asked)
        with pytest.raises(StorageError, match=f"s3://bucket/.*{said}"):
            work()
        assert len(server.asked) - asked <= 2  # It will not pass: it is not tried again.
    assert "new" not in server.objects


def test_an_expired_token_without_a_body_is_guessed_at_aloud(server: FaultyS3) -> None:
    server.faults = ["expired"]
    with pytest.raises(StorageError, match=r"stat s3://bucket/a\.bin: 400 .*token.*expired"):
        ObjectStorage("s3", server.options()).stat(URI)


@pytest.mark.slow
@pytest.mark.parametrize("n", [1000, 5 << 20])
def test_a_server_that_falls_silent_within_an_answer_is_asked_again(
    server: FaultyS3, n: int
) -> None:
    data = bytes(range(256)) * (6 << 12)
    server.objects["a.bin"] = (data, {})
    server.faults = ["stall"]
    storage = ObjectStorage("s3", server.options(read_timeout="0.3s"))
    assert storage.read_many([Range(URI, 50, n)])[0] == data[50 : 50 + n]
    server.faults = ["stall"] * 9
    given = server.options(read_timeout="0.3s", max_retries=1)
    with pytest.raises(StorageError, match=r"read s3://bucket/a\.bin"):
        ObjectStorage("s3", given).read_many([Range(URI, 50, n)])


def test_an_object_of_50_gb_is_read_in_ranges(server: FaultyS3) -> None:
    size = 50 * 10**9
    server.objects["vast.bin"] = (Vast(size), {})
    uri = "s3://bucket/vast.bin"
    storage = ObjectStorage("s3", server.options())
    places = [0, 8 * 10**8, 2**31 - 8, 2**32 - 8, 2**32 + 8, 49 * 10**9, size - 16]
    views = storage.read_many([Range(uri, at, 16) for at in places])
    for at, view in zip(places, views, strict=True):
        assert view == (at // 8).to_bytes(8, "little") + (at // 8 + 1).to_bytes(8, "little")
    # One that runs past the end gets what is there, and no memory for the rest.
    (tail,) = storage.read_many([Range(uri, size - 8, 10**12)])
    assert tail == (size // 8 - 1).to_bytes(8, "little")
    info = storage.stat(uri)
    assert info is not None
    assert info.size_bytes == size


def test_a_listing_that_lags_behind_hides_no_commit(server: FaultyS3) -> None:
    storage, root = ObjectStorage("s3", server.options()), "s3://bucket/out"
    for text in ("one", "two"):
        id = new_commit_id()
        staged = storage.stage(f"{root}/{marked('0.txt', id)}", tag="task-0")
        with open(staged.local, "w") as file:
            file.write(text)
        output = OutputFile(storage.seal(staged), rows=1)
        schema = Schema.of([("a", "VARCHAR")])
        commit(storage, root, [output], commit_id=id, schema=schema, mode="append")
        server.stale = set(server.objects)  # What was just written shows in no listing yet.
    assert list(storage.list(root)) == []
    newest = newest_manifest(storage, root)
    assert newest is not None
    assert newest.number == 2
    ranges = [Range(path, 0, -1) for path in file_paths(storage, root, newest)]
    assert [bytes(view) for view in storage.read_many(ranges)] == [b"one", b"two"]


def test_reading_ahead_asks_for_two_more_and_gives_all_in_order(server: FaultyS3) -> None:
    data = bytes(i % 251 for i in range(100_000))
    server.objects["a.bin"] = (data, {})
    storage = ObjectStorage("s3", server.options())
    taken: list[int] = []

    def wanted() -> Iterator[Range]:
        for i in range(10):
            taken.append(i)
            yield Range(URI, i * 10_000, 10_000)

    for i, (asked, view) in enumerate(read_ahead(storage, wanted())):
        assert asked.offset == i * 10_000
        assert view == data[i * 10_000 : (i + 1) * 10_000]
        assert len(taken) == min(i + 1 + AHEAD, 10)


def test_reading_ahead_ends_with_the_first_error_or_with_its_reader(server: FaultyS3) -> None:
    storage = ObjectStorage("s3", server.options())
    names = ["s3://bucket/a.bin", "s3://bucket/none", "s3://bucket/a.bin"]
    reader = read_ahead(storage, [Range(name, 0, 5) for name in names])
    assert bytes(next(reader)[1]) == bytes(5)
    with pytest.raises(PathNotFound, match="bucket/none"):
        next(reader)
    reader = read_ahead(storage, (Range(URI, i, 5) for i in range(10**9)))
    next(reader)
    reader.close()
    asked = len(server.asked)
    assert asked <= 3 + 1 + AHEAD + 1
    assert not [t for t in threading.enumerate() if t.name.startswith("read-ahead")]


def test_files_of_this_machine_are_not_read_ahead(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    taken: list[int] = []
    ranges = (taken.append(i) or Range(str(tmp_path / "a"), i, 1) for i in range(10))
    for i, (_, view) in enumerate(read_ahead(LocalStorage(), ranges)):
        assert bytes(view) == b"%d" % i
        assert len(taken) == i + 1


TOKENS = ["line\nend", "nul\0", "ünicode", "\ttab"]


@pytest.mark.parametrize("token", TOKENS)
@pytest.mark.parametrize(
    ("kind", "word"),
    [("s3", "session_token"), ("s3", "access_key_id"), ("az", "bearer_token")],
)
def test_a_key_that_no_request_can_carry_is_refused_and_not_shown(
    kind: str, word: str, token: str
) -> None:
    with pytest.raises(OptionError, match=f"{word} holds a line end") as caught:
        ObjectStorage(kind, {word: token, "account_name": "a"} if kind == "az" else {word: token})
    said = "".join(traceback.format_exception(caught.value))
    assert token not in said
    assert repr(token)[1:-1] not in said


def test_a_token_of_the_environment_with_a_line_end_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "from-a-file\n")
    with pytest.raises(OptionError, match="AWS_SESSION_TOKEN holds a line end"):
        ObjectStorage("s3")
    ObjectStorage("s3", {"session_token": "given"})  # The variable is not used then.
