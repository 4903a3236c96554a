"""Object stores that fail: what is tried again, what is an error, and what it says."""

import json
import os
import pickle
import subprocess
import sys
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from faulty_s3 import FaultyS3, faulty_s3

from millpond.errors import (
    MillpondError,
    MissingExtra,
    OptionError,
    PathNotFound,
    StorageError,
)
from millpond.storage import ObjectStorage, Range, open_storage
from millpond.storage.object_keys import locate
from millpond.storage.object_reads import PIECE
from millpond.storage.profiles import profile_options

BYTES = os.urandom(100_000)
URI = "s3://bucket/a.bin"


@pytest.fixture
def server() -> Iterator[FaultyS3]:
    with faulty_s3() as running:
        running.objects["a.bin"] = (BYTES, {})
        yield running


def opened(server: FaultyS3, **more: object) -> ObjectStorage:
    return ObjectStorage("s3", server.options(**more))


def read(storage: ObjectStorage, length: int = 1000) -> bytes:
    return bytes(storage.read_many([Range(URI, 50, length)])[0])


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["503", "429", "drop"])
def test_what_may_pass_is_tried_again(server: FaultyS3, fault: str) -> None:
    server.faults = [fault, fault]
    assert read(opened(server)) == BYTES[50:1050]


@pytest.mark.slow
def test_a_store_that_stays_busy_is_an_error_with_its_status(server: FaultyS3) -> None:
    server.faults = ["503"] * 10
    with pytest.raises(StorageError, match=r"read s3://bucket/a\.bin: 503 .*SlowDown.* overloaded"):
        read(opened(server, max_retries=1))


def test_a_range_that_was_cut_short_is_never_taken_for_the_end(server: FaultyS3) -> None:
    server.faults = ["cut"] * 10
    with pytest.raises(StorageError, match=r"s3://bucket/a\.bin"):
        read(opened(server, max_retries=0))


@pytest.mark.slow
def test_a_store_that_does_not_answer_times_out(server: FaultyS3) -> None:
    server.faults = ["hang"] * 10
    with pytest.raises(StorageError, match=r"read s3://bucket/a\.bin: .*Check the endpoint"):
        read(opened(server, max_retries=0, timeout="300ms"))


def test_a_wrong_region_is_an_error_that_says_region(server: FaultyS3) -> None:
    server.faults = ["301"] * 10
    with pytest.raises(StorageError, match="region"):
        read(opened(server, max_retries=0))


def test_nothing_listens_at_the_endpoint() -> None:
    options = {"endpoint": "http://127.0.0.1:9", "allow_http": True, "max_retries": 0}
    storage = ObjectStorage("s3", {**options, "access_key_id": "x", "secret_access_key": "y"})
    with pytest.raises(StorageError, match=r"read s3://bucket/a\.bin.*Check the endpoint"):
        read(storage)


def test_a_plain_http_endpoint_must_be_allowed(server: FaultyS3) -> None:
    with pytest.raises(StorageError, match="allow_http='true'"):
        read(opened(server, allow_http=False, max_retries=0))


def test_an_error_never_shows_a_secret(server: FaultyS3) -> None:
    server.faults = ["403"] * 10
    with pytest.raises(StorageError) as caught:
        read(opened(server))
    said = "".join(traceback.format_exception(caught.value))
    assert "403 Forbidden: SignatureDoesNotMatch, It differs. Check the keys" in str(caught.value)
    for secret in ("the-session-token", "the-secret-key", "AKIA-the-key-id"):
        assert secret not in said
        assert secret.encode() not in pickle.dumps(caught.value)


def test_a_storage_shows_no_secret_and_does_not_travel(server: FaultyS3) -> None:
    storage = opened(server)
    read(storage)
    assert repr(storage) == str(storage) == "ObjectStorage('s3')"
    with pytest.raises(TypeError, match="keys, which do not travel"):
        pickle.dumps(storage)


def test_a_secret_of_the_environment_is_struck_out(
    server: FaultyS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "bucket-and-secret")
    with pytest.raises(PathNotFound):
        list(opened(server).read_many([Range("s3://bucket/none", 0, 1)]))
    server.faults = ["503"] * 9
    with pytest.raises(StorageError) as caught:
        opened(server, max_retries=0).stat("s3://bucket/bucket-and-secret")
    assert "bucket-and-secret" not in str(caught.value)


@pytest.mark.slow
def test_a_lost_answer_to_a_conditional_write_is_not_taken_for_a_defeat(server: FaultyS3) -> None:
    storage = opened(server)
    assert storage.put_if_absent("s3://bucket/m/1.json", b"one")  # The probe is done.
    server.faults = ["lost"]
    before = len(server.asked)
    assert storage.put_if_absent("s3://bucket/m/2.json", b"two")
    assert [line for line in server.asked[before:] if "PUT" in line] == ["PUT /bucket/m/2.json"] * 2
    assert not storage.put_if_absent("s3://bucket/m/2.json", b"two")


def test_an_object_that_is_replaced_while_it_is_read_is_an_error(server: FaultyS3) -> None:
    server.replace_after["a.bin"] = bytes(reversed(BYTES))
    far = [Range(URI, 0, 100), Range(URI, 90_000, 100)]
    with pytest.raises(StorageError, match=r"a\.bin: it was replaced while"):
        opened(server).read_many(far)


def test_neighbouring_ranges_are_one_request(server: FaultyS3) -> None:
    views = opened(server).read_many([Range(URI, i * 20, 10) for i in range(1000)])
    assert b"".join(views) == b"".join(BYTES[i * 20 : i * 20 + 10] for i in range(1000))
    assert server.asked == ["GET /bucket/a.bin"]


@pytest.mark.slow
def test_a_long_range_is_read_in_pieces_and_put_together(server: FaultyS3) -> None:
    data = os.urandom(1 << 20) * 40
    server.objects["a.bin"] = (data, {})
    views = opened(server).read_many([Range(URI, 5, -1), Range(URI, 10, 1 << 40)])
    assert views[0] == data[5:]
    assert views[1] == data[10:]
    assert server.asked.count("GET /bucket/a.bin") == -(-len(data) // PIECE)


@pytest.mark.slow
def test_long_ranges_that_touch_are_asked_for_together(server: FaultyS3) -> None:
    data = os.urandom(1 << 20) * 40
    server.objects["a.bin"] = (data, {})
    nine = 9 << 20
    views = opened(server).read_many([Range(URI, 3 + nine * i, nine) for i in (3, 0, 4, 1, 2)])
    assert [len(view) for view in views] == [nine, nine, (4 << 20) - 3, nine, nine]
    for view, i in zip(views, (3, 0, 4, 1, 2), strict=True):
        assert view == data[3 + nine * i : 3 + nine * (i + 1)]
    assert server.asked == ["GET /bucket/a.bin"] * -(-45 // 16)


def test_a_web_server_is_read_and_never_written(server: FaultyS3) -> None:
    uri = f"http://127.0.0.1:{server.server_port}/bucket/a.bin"
    storage = open_storage(uri, {"allow_http": True})
    assert bytes(storage.read_many([Range(uri, 7, 9)])[0]) == BYTES[7:16]
    assert [info.size_bytes for info in storage.list(uri)] == [len(BYTES)]
    assert list(storage.list(uri + ".none")) == []
    with pytest.raises(StorageError, match="read-only"):
        storage.stage(uri, "t1")
    with pytest.raises(StorageError, match="no listing"):
        storage.list(uri.replace("a.bin", "*.bin"))


@pytest.mark.parametrize("tail", ["?X-Amz-Signature=secret", "#secret"])
def test_a_web_address_with_a_secret_in_it_is_refused_without_showing_it(tail: str) -> None:
    for uri in (f"https://host/a.bin{tail}", f"https://me:secret@host/a.bin{tail}"):
        with pytest.raises(StorageError) as caught:
            locate(uri, "http")
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize("uri", ["s3:///key", "gs://bucket/key", "/a/b"])
def test_a_uri_of_another_kind_is_refused(uri: str) -> None:
    with pytest.raises(StorageError):
        locate(uri, "s3")


def test_empty_objects_are_looked_at_together(server: FaultyS3) -> None:
    server.objects = {f"d/{i}.csv": (b"", {}) for i in range(8)} | {"d/8.csv": (b"x", {})}
    server.faults = ["", *["hang"] * 8]  # The listing, and each first look.

    with ThreadPoolExecutor(1) as one:
        listed = one.submit(lambda: list(opened(server).list("s3://bucket/d/")))
        together = [server.wanted.acquire(timeout=10) for _ in range(8)]
        server.released.set()
        assert len(listed.result()) == 9
    assert all(together)


@pytest.mark.parametrize("key", ["a//b", "a/../b", "../a", "./a", "a/.", "a\0b", "a\nb"])
def test_a_key_that_no_store_takes_is_refused_before_any_request(
    server: FaultyS3, key: str
) -> None:
    storage, uri = opened(server), f"s3://bucket/{key}"
    for work in (
        lambda: storage.stat(uri),
        lambda: storage.read_many([Range(uri, 0, 1)]),
        lambda: storage.put_if_absent(uri, b""),
        lambda: storage.list(uri),
        lambda: storage.stage(uri, "t1"),
    ):
        with pytest.raises(StorageError, match="cannot be a key"):
            work()
    assert server.asked == []


def test_a_bucket_or_a_folder_is_no_file(server: FaultyS3) -> None:
    for uri in ("s3://bucket/", "s3://bucket", "s3://bucket/folder/"):
        with pytest.raises(StorageError, match="names a bucket or a folder"):
            opened(server).read_many([Range(uri, 0, 1)])


def test_unknown_schemes_and_options_are_named() -> None:
    with pytest.raises(StorageError, match=r"no storage is known for ftp://.*s3://"):
        open_storage("ftp://host/file")
    with pytest.raises(OptionError, match="endpiont"):
        ObjectStorage("s3", {"endpiont": "http://x"}).stat(URI)
    with pytest.raises(OptionError, match=r"'allow_http'\] must be 'true' or 'false'"):
        ObjectStorage("s3", {"allow_http": "maybe"})
    with pytest.raises(OptionError, match="type list") as caught:
        ObjectStorage("s3", {"secret_access_key": ["hidden-value"]})
    assert "hidden-value" not in str(caught.value)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(MissingExtra, match=r"s3:// needs the extra 's3': pip install"):
        open_storage(URI)


@pytest.fixture
def aws_files(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "config").write_text(
        "[default]\nregion = eu-west-1\n[profile work]\nregion=us-west-2\n"
        "endpoint_url = http://store:9000\n[profile login]\nsso_session = corp\n"
    )
    (tmp_path / "credentials").write_text(
        "[default]\naws_access_key_id = D\naws_secret_access_key = d%d\n"
        "[work]\naws_access_key_id = W\naws_secret_access_key = w\naws_session_token = t\n"
    )
    return {
        "AWS_CONFIG_FILE": f"{tmp_path}/config",
        "AWS_SHARED_CREDENTIALS_FILE": f"{tmp_path}/credentials",
    }


def test_keys_come_from_the_profile_that_is_chosen(aws_files: dict[str, str]) -> None:
    default = {"region": "eu-west-1", "access_key_id": "D", "secret_access_key": "d%d"}
    work = {
        "region": "us-west-2",
        "endpoint": "http://store:9000",
        "access_key_id": "W",
        "secret_access_key": "w",
        "session_token": "t",
    }
    assert profile_options(None, aws_files) == default
    assert profile_options("work", aws_files) == work
    assert profile_options(None, {**aws_files, "AWS_PROFILE": "work"}) == work
    assert profile_options(None, {**aws_files, "AWS_ACCESS_KEY_ID": "E"}) == {}
    assert (
        profile_options(None, {"AWS_CONFIG_FILE": "/n", "AWS_SHARED_CREDENTIALS_FILE": "/n"}) == {}
    )


def test_a_profile_that_cannot_be_used_says_why(aws_files: dict[str, str]) -> None:
    with pytest.raises(OptionError, match="'nobody' is in neither of"):
        profile_options("nobody", aws_files)
    with pytest.raises(OptionError, match="by a login or a role"):
        profile_options("login", aws_files)
    Path(aws_files["AWS_SHARED_CREDENTIALS_FILE"]).write_text("secret-without-a-section")
    with pytest.raises(OptionError, match="cannot be parsed") as caught:
        profile_options(None, aws_files)
    assert "secret-without" not in "".join(traceback.format_exception(caught.value))


def test_the_first_error_of_a_batch_is_ours(server: FaultyS3) -> None:
    ranges = [Range(f"s3://bucket/none{i}", 0, 10) for i in range(20)]
    with pytest.raises(MillpondError, match="none"):
        opened(server).read_many(ranges)


UPLOAD = """
import json, sys
from millpond.storage import open_storage
storage = open_storage("s3://bucket/out", json.loads(sys.argv[1]))
staged = storage.stage("s3://bucket/out/part-00000.parquet", "task")
open(staged.local, "wb").write(b"rows" * 1000)
storage.seal(staged)
"""


@pytest.mark.slow
def test_what_a_killed_upload_left_on_this_machine_is_swept_by_the_next_session(
    server: FaultyS3, tmp_path: Path
) -> None:
    environ = {**os.environ, "TMPDIR": str(tmp_path)}
    server.faults = ["hang"]
    command = [sys.executable, "-c", UPLOAD, json.dumps(server.options())]
    process = subprocess.Popen(command, env=environ)
    assert server.wanted.acquire(timeout=60), "nothing was uploaded"
    process.kill()
    process.wait()
    (left,) = tmp_path.glob("millpond-*/upload-*/*")
    assert left.stat().st_size == 4000

    session = "import millpond; millpond.init().close()"
    subprocess.run([sys.executable, "-c", session], env=environ, check=True)
    assert [path.name for path in tmp_path.glob("millpond-*/*")] == []
