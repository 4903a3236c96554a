"""MDS shards are read in place: the bytes here are what Mosaic's own writer makes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from millpond.errors import FileUnreadable, RowsUnreadable, SchemaMismatch
from millpond.loader.reader import open_dataset
from tests.support.loader_sets import ids

ENCODINGS = {
    "id": ("int", 8),
    "text": ("str", None),
    "tokens": ("ndarray:int32", None),
    "score": ("float32", 4),
}


def encoded(i: int) -> bytes:
    """Sample i: the sizes of the columns that vary, then all columns."""
    text = f"row {i}".encode()
    tokens = np.full(i % 5 + 1, i, np.int32)
    array = bytes([1 << 2, len(tokens)]) + tokens.tobytes()
    sizes = np.array([len(text), len(array)], np.uint32).tobytes()
    return sizes + np.int64(i).tobytes() + text + array + np.float32(i / 2).tobytes()


def shards(folder: Path, counts: list[int], **changes: Any) -> str:
    described, first = [], 0
    for number, n in enumerate(counts):
        samples = [encoded(i) for i in range(first, first + n)]
        first += n
        config = json.dumps({"format": "mds"}).encode()
        base = 4 * (n + 2) + len(config)
        edges = base + np.cumsum([0, *map(len, samples)])
        head = np.array([n, *edges], np.uint32).tobytes()
        name = f"shard.{number:05d}.mds"
        data = head + config + b"".join(samples)
        (folder / name).write_bytes(data)
        shard = {
            "column_names": list(ENCODINGS),
            "column_encodings": [encoding for encoding, _ in ENCODINGS.values()],
            "column_sizes": [size for _, size in ENCODINGS.values()],
            "compression": None,
            "format": "mds",
            "raw_data": {"basename": name, "bytes": len(data), "hashes": {}},
            "samples": n,
            "version": 2,
            "zip_data": None,
        }
        described.append({**shard, **changes})
    (folder / "index.json").write_text(json.dumps({"shards": described, "version": 2}))
    return str(folder)


def test_samples_come_back_in_the_order_asked(tmp_path: Path) -> None:
    ds = open_dataset(shards(tmp_path, [7, 5]))
    assert len(ds) == 12
    assert ds[[11, 0, 7]].to_pylist() == [
        {"id": i, "text": f"row {i}", "tokens": [i] * (i % 5 + 1), "score": i / 2}
        for i in (11, 0, 7)
    ]
    loader = ds.loader(5, shuffle="global")
    assert sorted(ids(loader)) == list(range(12))
    assert "MDS" in loader.explain()
    packed = ds.loader(2, pack=8, tokens="tokens")
    assert sum(int((b["segment_ids"] > 0).sum()) for b in packed) == sum(
        i % 5 + 1 for i in range(12)
    )


def test_damage_is_named(tmp_path: Path) -> None:
    path = shards(tmp_path, [4, 4])
    shard = tmp_path / "shard.00001.mds"
    data = bytearray(shard.read_bytes())
    at = data.index(b"row 5") - 16  # The size of its text.
    data[at] += 1
    shard.write_bytes(data)
    ds = open_dataset(path)
    assert ds[[0, 4]]["id"].to_pylist() == [0, 4]
    with pytest.raises(RowsUnreadable, match=r"shard\.00001\.mds.*add up") as caught:
        ds[[6, 5]]
    assert caught.value.rows == (5,)
    shard.unlink()
    with pytest.raises(RowsUnreadable, match=r"shard\.00001\.mds.*cannot be read"):
        open_dataset(path)[6]


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"compression": "zstd"}, FileUnreadable, "compressed"),
        ({"column_encodings": ["int", "pkl", "str", "str"]}, SchemaMismatch, "run code"),
        ({"raw_data": {"basename": "../x", "bytes": 1}}, FileUnreadable, "lie beside"),
        ({"samples": "many"}, FileUnreadable, "no index of MDS"),
    ],
)
def test_what_cannot_be_read_is_refused(
    tmp_path: Path, changes: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        open_dataset(shards(tmp_path, [3], **changes))
