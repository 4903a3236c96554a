"""What only object stores can get wrong, asked of real servers."""

import pytest
import servers
from places import remote

from millpond.errors import PathNotFound, StorageError
from millpond.storage import ObjectStorage, Range


@pytest.fixture(params=["juicefs_server", "moto_server"])
def server(request: pytest.FixtureRequest) -> servers.Server:
    found: servers.Server = request.getfixturevalue(request.param)
    return found


def test_a_missing_bucket_is_named_whatever_is_tried(server: servers.Server) -> None:
    storage = ObjectStorage("s3", server.options())
    said = r"s3://nobody: 404 Not Found: NoSuchBucket.*Check that the bucket exists"
    with pytest.raises(StorageError, match=said):
        storage.read_many([Range("s3://nobody/a.bin", 0, 10)])
    with pytest.raises(StorageError, match=said):
        storage.put_if_absent("s3://nobody/a.bin", b"")
    with pytest.raises(StorageError, match="NoSuchBucket"):
        list(storage.list("s3://nobody/folder"))


def test_a_wrong_secret_says_what_to_check(juicefs_server: servers.Server) -> None:
    storage = ObjectStorage("s3", juicefs_server.options(secret_access_key="wrong-secret"))
    with pytest.raises(StorageError, match=r"403 Forbidden: SignatureDoesNotMatch.*Check the keys"):
        storage.read_many([Range("s3://contract/a.bin", 0, 10)])


def test_a_key_that_vanished_between_listing_and_reading_is_named(server: servers.Server) -> None:
    place = remote(server)
    place.put("a.bin", b"bytes")
    listed = next(iter(place.storage.list(place.root)))
    place.storage.delete([listed.path])
    with pytest.raises(PathNotFound, match=r"a\.bin"):
        place.storage.read_many([Range(listed.path, 0, 3)])


def test_markers_of_folders_are_no_files(server: servers.Server) -> None:
    place = remote(server)
    place.put("full/a.bin", b"a")
    client = server.client()
    prefix = place.root.removeprefix(f"s3://{server.bucket}/")
    for folder in ("full/", "void/"):
        client.put_object(Bucket=server.bucket, Key=f"{prefix}/{folder}", Body=b"")
    assert place.names() == ["full/a.bin"]


@pytest.mark.slow
def test_a_file_of_many_pieces_is_uploaded_and_read_back(server: servers.Server) -> None:
    place = remote(server)
    block = bytes(range(256)) * 4096
    path = place.put("big.bin", block * 21)
    views = place.storage.read_many([Range(path, 0, -1), Range(path, (21 << 20) - 3, 10)])
    assert views[0] == block * 21
    assert views[1] == block[-3:]


@pytest.mark.full
def test_thousands_of_objects_are_listed_and_read(juicefs_server: servers.Server) -> None:
    place = remote(juicefs_server)
    prefix = place.root.removeprefix(f"s3://{juicefs_server.bucket}/")
    client = juicefs_server.client()
    for i in range(1200):  # More than one page of a listing.
        client.put_object(Bucket=juicefs_server.bucket, Key=f"{prefix}/{i:04}", Body=b"%d" % i)
    listed = [info.path for info in place.storage.list(place.root)]
    assert listed == [place.path(f"{i:04}") for i in range(1200)]
    views = place.storage.read_many([Range(path, 0, 10) for path in listed])
    assert [bytes(view) for view in views] == [b"%d" % i for i in range(1200)]
    place.storage.delete(listed)
    assert place.names() == []
