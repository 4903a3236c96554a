"""Training sets on an object store: the same rows and order, over a store that fails."""

import os
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import numpy as np
import pytest

pytest.importorskip("obstore")

from millpond.errors import RowsUnreadable, StorageError
from millpond.formats.shard_index import read_index
from millpond.loader.reader import open_dataset
from millpond.loader.remote import RemoteShards
from millpond.loader.shard_rows import ShardRows
from millpond.storage import LocalStorage
from tests.fakes.faulty_s3 import FaultyS3, faulty_s3
from tests.support.loader_sets import Make, ids, select

PATH = "s3://bucket/sets/corpus"


@pytest.fixture
def server(make: Make) -> Iterator[FaultyS3]:
    """A store that holds a dataset which was written to a folder."""
    folder = Path(make(100).path)
    with faulty_s3() as running:
        for file in folder.iterdir():
            if file.is_file():
                running.objects[f"sets/corpus/{file.name}"] = (file.read_bytes(), {})
        yield running


@pytest.mark.slow
def test_an_object_store_gives_the_rows_and_order_of_a_folder(server: FaultyS3, make: Make) -> None:
    there, here = open_dataset(PATH, server.options(), select=select), make(100)
    assert there.fingerprint == here.fingerprint
    asked = [99, 0, 41, 41, -2]
    assert there[asked].equals(here[asked])
    for options in ({}, {"filter": "id % 3 = 0"}, {"pack": 32, "tokens": "tokens"}):
        far = list(there.loader(7, shuffle="global", **options))  # type: ignore[arg-type]
        near = list(here.loader(7, shuffle="global", **options))  # type: ignore[arg-type]
        name = "tokens" if "pack" in options else "id"
        assert all(np.array_equal(a[name], b[name]) for a, b in zip(far, near, strict=True))
    assert any(".millpond" in key for key in server.objects), "plans are kept beside the data"


@pytest.mark.slow
def test_a_batch_survives_a_store_that_fails_for_a_while(server: FaultyS3) -> None:
    ds = open_dataset(PATH, server.options())
    server.faults.extend(["503", "drop", "429"])
    assert sorted(ids(ds.loader(10, shuffle="global"))) == list(range(100))


@pytest.mark.slow
def test_a_shard_that_is_gone_is_named_and_no_secret_with_it(server: FaultyS3) -> None:
    ds = open_dataset(PATH, server.options())
    gone = next(key for key in server.objects if "000001" in key)
    del server.objects[gone]
    with pytest.raises(RowsUnreadable, match="000001") as caught:
        ds[50]
    assert "secret-key" not in str(caught.value)
    assert "secret-key" not in repr(ds)
    assert ds[10]["id"] == 10
    skipping = ds.loader(10, shuffle="global", on_error="skip")
    assert set(ids(skipping)) <= {*range(40), *range(80, 100)}
    assert skipping.skipped == 40


@pytest.mark.slow
def test_a_remote_dataset_travels_by_pickle(server: FaultyS3) -> None:
    ds = open_dataset(PATH, server.options())
    assert pickle.loads(pickle.dumps(ds))[3]["id"] == 3


@pytest.mark.slow
def test_a_store_that_refuses_is_no_reason_to_replace_rows(server: FaultyS3) -> None:
    ds = open_dataset(PATH, server.options())
    loader = ds.loader(10, shuffle="global", on_error="skip")
    server.faults.extend(["403"] * 50)
    with pytest.raises(StorageError):
        list(loader)
    server.faults.clear()
    assert sorted(ids(loader)) == list(range(100))
    assert loader.skipped == 0


@pytest.mark.slow
def test_a_cache_asks_the_store_once(server: FaultyS3, tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    for _ in range(2):
        ds = open_dataset(PATH, server.options(), cache=cache)
        server.asked.clear()
        assert ids(ds.loader(10, shuffle="global")) == ids(
            open_dataset(PATH, server.options()).loader(10, shuffle="global")
        )
        server.asked.clear()
        assert ds[[5, 50, 95]]["id"].to_pylist() == [5, 50, 95]
        assert server.asked == []
    server.objects = {k: v for k, v in server.objects.items() if "dataset.json" in k}
    assert ids(open_dataset(PATH, server.options(), cache=cache).loader(40)) == list(range(100))


@pytest.mark.slow
def test_a_cache_keeps_to_its_limit_and_reads_the_rest_by_ranges(
    server: FaultyS3, tmp_path: Path, make: Make
) -> None:
    cache = tmp_path / "cache"
    limit = 2 * max(len(data) for key, (data, _) in server.objects.items() if "arrow" in key)
    ds = open_dataset(PATH, server.options(), cache=str(cache), cache_bytes=limit)
    assert ds[::-1].equals(make(100)[::-1])
    assert sorted(ids(ds.loader(7, shuffle="global"))) == list(range(100))
    kept = [file.stat().st_size for file in cache.iterdir() if file.name != "lock"]
    assert len(kept) == 2
    assert sum(kept) <= limit


@pytest.mark.slow
def test_a_damaged_cache_is_found_by_checksums(server: FaultyS3, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    open_dataset(PATH, server.options(), cache=str(cache))[:]
    file = max((f for f in cache.iterdir()), key=lambda f: f.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(RowsUnreadable):
        open_dataset(PATH, server.options(), cache=str(cache))[:]


@pytest.mark.slow
def test_threads_may_read_a_store_while_it_forgets(make: Make) -> None:
    """Each keeps 500 bytes: what one thread has fetched, another one's call pushes out."""
    root = make(100).path
    index = read_index(Path(root, "dataset.json").read_bytes(), root)
    paths = [f"{root}/{shard.name}" for shard in index.shards]
    shards = RemoteShards(paths, index.shards, LocalStorage(), keep_bytes=500)
    source = ShardRows(root, index, shards)

    def read(seed: int) -> bool:
        asked = np.random.default_rng(seed).integers(0, 100, 40)
        found = source.take(asked, ["id"])["id"].values
        return found is not None and np.array_equal(found.view(np.int64).reshape(-1), asked)

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(read, range(60)))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this platform has no /dev/full")
def test_a_cache_on_a_full_disk_keeps_what_has_room_and_reads_the_rest_by_ranges(
    server: FaultyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []

    def filling(path: str, mode: str) -> IO[bytes]:
        if path.endswith(".part"):
            begun.append(path)
            if len(begun) > 1:
                os.symlink("/dev/full", path)
        return open(path, mode)

    monkeypatch.setattr("millpond.loader.cache.open", filling, raising=False)
    cache = tmp_path / "cache"
    ds = open_dataset(PATH, server.options(), cache=str(cache))
    assert sorted(ids(ds.loader(7, shuffle="global"))) == list(range(100))
    assert len(begun) == 3
    kept = [file.name for file in cache.iterdir() if file.name != "lock"]
    assert kept == [Path(begun[0]).stem]


@pytest.mark.slow
def test_a_cache_where_no_folder_can_be_is_one_clear_error(
    server: FaultyS3, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="a file where a folder is needed"):
        open_dataset(PATH, server.options(), cache=str(tmp_path / "file"))
