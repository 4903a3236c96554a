"""One cache of a machine for several processes, and files that go while they are read."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from millpond.errors import RowsUnreadable
from millpond.loader.reader import open_dataset
from tests.fakes.faulty_s3 import FaultyS3, faulty_s3
from tests.support.loader_sets import Make, ids

PATH = "s3://bucket/sets/corpus"
# Three passes, so that both processes fetch, map and read by ranges at the same time.
READ = """
import json, sys
from millpond.loader import open_dataset
path, options, cache, limit = json.loads(sys.argv[1])
ds = open_dataset(path, options, cache=cache, cache_bytes=limit)
loader = ds.loader(7, shuffle="global", seed=3, epochs=3)
print(json.dumps([int(i) for batch in loader for i in batch["id"]]))
"""


@pytest.fixture
def server(make: Make) -> Iterator[FaultyS3]:
    folder = Path(make(100).path)
    with faulty_s3() as running:
        for file in folder.glob("*.*"):
            running.objects[f"sets/corpus/{file.name}"] = (file.read_bytes(), {})
        yield running


@pytest.mark.slow
@pytest.mark.parametrize("shards", [0, 1, 3], ids=["less than a shard", "one", "all"])
def test_processes_share_a_cache_within_its_limit(
    server: FaultyS3, make: Make, tmp_path: Path, shards: int
) -> None:
    sizes = sorted(len(data) for key, (data, _) in server.objects.items() if "arrow" in key)
    limit = sum(sizes[-shards:]) if shards else sizes[0] - 1
    cache = tmp_path / "cache"
    asked = json.dumps([PATH, server.options(), str(cache), limit])
    running = [
        subprocess.Popen([sys.executable, "-c", READ, asked], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    found = [process.communicate(timeout=120)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0]
    want = ids(make(100).loader(7, shuffle="global", seed=3, epochs=3))
    assert [json.loads(text) for text in found] == [want] * 3
    kept = [file for file in cache.iterdir() if file.name != "lock"]
    assert sum(file.stat().st_size for file in kept) <= limit
    assert len(kept) == shards


@pytest.mark.parametrize("format", ["numpy", "views"])
@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_shard_that_goes_in_an_epoch_is_read_on_or_named(
    make: Make, monkeypatch: pytest.MonkeyPatch, format: Any, prefetch: int
) -> None:
    """What is mapped stays readable; what is not mapped yet is gone, and its rows are named."""
    monkeypatch.setattr("millpond.loader.flat.LocalShards.read_ahead", lambda self: None)
    ds = open_dataset(make(4000, rows_per_shard=1000).path)
    batches = iter(ds.loader(100, format=format, prefetch=prefetch))
    seen = ids([next(batches)])
    Path(ds.path, "000000.arrow").unlink()
    Path(ds.path, "000003.arrow").unlink()
    with pytest.raises(RowsUnreadable, match=r"000003\.arrow.*cannot be opened") as caught:
        seen.extend(int(i) for batch in batches for i in batch["id"])
    assert seen == list(range(len(seen)))
    assert len(seen) >= 2900
    assert min(caught.value.rows) >= 3000
