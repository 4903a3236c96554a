"""Rows by number: every type comes back, in the order asked, from any store; damage is named."""

import json
import os
import pickle
import shutil
import threading
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from millpond.errors import (
    FileUnreadable,
    OptionError,
    PathNotFound,
    RowsUnreadable,
    SchemaMismatch,
    TargetNotEmpty,
)
from millpond.formats.shard_index import read_index
from millpond.loader.columns import Ragged
from millpond.loader.reader import Dataset, open_dataset
from millpond.loader.remote import RemoteShards
from millpond.loader.shard_rows import ShardRows
from millpond.loader.write import write_dataset
from millpond.storage import LocalStorage
from tests.support.loader_sets import Make, ids, rows

N = 100


def some_of_everything() -> pa.Table:
    n = np.arange(N)
    maybe = [None if i % 7 == 3 else int(i) for i in n]
    return pa.table(
        {
            "i64": n,
            "i8": pa.array(n % 100, pa.int8()),
            "f16": pa.array(n.astype(np.float16)),
            "null_int": pa.array(maybe, pa.int32()),
            "flag": pa.array([i % 3 == 0 for i in n]),
            "null_flag": pa.array([None if i % 5 == 0 else i % 2 == 0 for i in n]),
            "text": pa.array([None if i % 11 == 5 else "ä" * (i % 13) for i in n]),
            "blob": pa.array([bytes([i]) * (i * 31 % 700) for i in n], pa.large_binary()),
            "fixed": pa.array([bytes([i]) * 12 for i in n], pa.binary(12)),
            "wide": pa.array([bytes([i]) * 300 for i in n], pa.binary(300)),
            "tokens": pa.array([[i] * (i % 9) for i in n], pa.list_(pa.int32())),
            "null_list": pa.array(
                [None if i % 4 == 1 else [i, None, 3] for i in n], pa.large_list(pa.int64())
            ),
            "pair": pa.array([[i, i + 1] for i in n], pa.list_(pa.int16(), 2)),
            "null_pair": pa.array([[i, None] for i in n], pa.list_(pa.float32(), 2)),
            "words": pa.array([[str(i), None] for i in n], pa.list_(pa.string())),
            "deep": pa.array([[[i], [], [1, 2]] for i in n], pa.list_(pa.list_(pa.int32()))),
            "struct": pa.array([{"a": i, "b": [str(i)]} if i % 6 else None for i in n]),
            "map": pa.array([[(str(i), i)] for i in n], pa.map_(pa.string(), pa.int64())),
            "decimal": pa.array([Decimal(i) / 4 for i in n.tolist()], pa.decimal128(20, 2)),
            "time": pa.array(n * 1_000_003, pa.timestamp("us")),
            "date": pa.array(n.astype(np.int32)).cast(pa.date32()),
            "word": pa.array([f"w{i % 3}" for i in n]).dictionary_encode(),
        }
    )


class Faraway(LocalStorage):
    """Files that this machine may not open by itself, as on an object store."""

    def local_path(self, path: str) -> str | None:
        return None


def faraway(ds: Dataset, keep_bytes: int = 1 << 20) -> Dataset:
    """The same dataset, read by ranges."""
    root = ds.path
    with open(f"{root}/dataset.json", "rb") as file:
        index = read_index(file.read(), root)
    paths = [f"{root}/{shard.name}" for shard in index.shards]
    shards = RemoteShards(paths, index.shards, Faraway(), keep_bytes)
    return Dataset(ShardRows(root, index, shards), Faraway(), ds.select, ())


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    path = str(tmp_path_factory.mktemp("set") / "everything")
    write_dataset(some_of_everything(), path, rows_per_shard=37, batch_rows=10)
    return open_dataset(path)


@pytest.mark.slow
@pytest.mark.parametrize("store", [lambda ds: ds, faraway, lambda ds: faraway(ds, 500)])
@settings(max_examples=15, deadline=None)
@given(asked=st.lists(st.integers(-N, N - 1), max_size=30))
def test_every_type_comes_back_in_the_order_asked(
    everything: Dataset, store: Callable[[Dataset], Dataset], asked: list[int]
) -> None:
    table = some_of_everything()
    expected = table.take(pa.array([i % N for i in asked], pa.int64())).to_pylist()
    found = store(everything)[asked]
    found.validate(full=True)
    assert found.to_pylist() == expected


def test_rows_may_be_asked_for_ahead_up_to_the_last(everything: Dataset) -> None:
    source, last = everything.rows, np.array([0, N - 1], np.int64)
    for name in everything.schema.names:
        source.advise(last, [name], 1)
        source.advise(last, [name], 50)
    assert everything[[N - 1]].to_pylist() == some_of_everything().to_pylist()[-1:]


def test_one_row_is_a_dict_and_a_slice_is_a_table(make: Make) -> None:
    ds = make(100)
    assert ds[17] == rows(100).to_pylist()[17]
    assert ds[-1]["id"] == 99
    assert ds[10:20:3]["id"].to_pylist() == [10, 13, 16, 19]
    assert len(ds) == 100
    assert [row["id"] for row in ds] == list(range(100))


def test_a_row_that_is_not_there_is_named(make: Make) -> None:
    with pytest.raises(IndexError, match="no row 100; it has 100 rows"):
        make(100)[100]
    with pytest.raises(OptionError, match="by number, not by float64"):
        make(100)[[0.5]]


def test_numbers_come_as_numpy_and_lists_as_ragged_views(everything: Dataset) -> None:
    batch = next(iter(everything.loader(N, prefetch=0)))
    table = some_of_everything()
    assert batch["i64"].dtype == np.int64
    assert batch["f16"].tolist() == table["f16"].to_pylist()
    assert batch["pair"].shape == (N, 2)
    assert batch["fixed"].shape == (N, 12)
    assert batch["wide"][5].tobytes() == b"\x05" * 300
    assert batch["null_int"].mask.tolist() == [i % 7 == 3 for i in range(N)]
    assert batch["time"].dtype == np.dtype("datetime64[us]")
    assert batch["text"].tolist() == table["text"].to_pylist()
    tokens = batch["tokens"]
    assert isinstance(tokens, Ragged)
    assert [t.tolist() for t in tokens] == table["tokens"].to_pylist()
    assert np.shares_memory(tokens[8], tokens.values)
    assert np.asarray(tokens)[3].tolist() == [3, 3, 3]
    part = tokens[4:7]
    assert part.values.tolist() == [4] * 4 + [5] * 5 + [6] * 6
    assert part.offsets.tolist() == [0, 4, 9, 15]
    assert np.shares_memory(part.values, tokens.values)
    assert len(tokens[7:3]) == 0


def test_every_batch_has_the_values_of_its_own_rows(everything: Dataset) -> None:
    batches = list(everything.loader(30, columns=["tokens"]))
    assert sum(batch["tokens"].values.size for batch in batches) == sum(i % 9 for i in range(N))


def test_arrow_batches_have_the_columns_asked_for(make: Make) -> None:
    batches = list(make(50).loader(20, format="arrow", columns=["name", "id"]))
    assert [batch.num_rows for batch in batches] == [20, 20, 10]
    assert batches[0].schema.names == ["name", "id"]


def test_a_shard_is_a_file_for_any_arrow_reader(make: Make) -> None:
    ds = make(40, batch_rows=None)
    with pa.memory_map(f"{ds.path}/000000.arrow") as file:
        table = pa.ipc.open_file(file).read_all()
    assert table.select(["id", "name", "tokens", "vector"]).equals(rows(40))


def test_a_dataset_travels_by_pickle(make: Make) -> None:
    ds = make(10)
    assert pickle.loads(pickle.dumps(ds))[3] == ds[3]


@pytest.mark.parametrize("align", [8192, 65_536])
def test_no_record_batch_crosses_a_border_that_it_need_not_cross(
    tmp_path: Path, align: int
) -> None:
    write_dataset(rows(500), str(tmp_path), align=align)
    index = read_index((tmp_path / "dataset.json").read_bytes(), "index")
    assert index.align == align
    used = index.layout[:, 2::3] > 0
    first = np.where(used, index.layout[:, 1::3], np.uint64(2**63)).min(axis=1)
    last = np.where(used, index.layout[:, 1::3] + index.layout[:, 2::3], 0).max(axis=1) - 1
    assert (first // align == last // align).all()
    assert open_dataset(str(tmp_path))[::-1]["id"].to_pylist() == list(range(500))[::-1]
    with open(tmp_path / "000000.arrow", "rb") as file:  # As a stream: without the footer.
        file.seek(8)
        assert sum(batch.num_rows for batch in pa.ipc.open_stream(file)) == 500


def test_equal_rows_have_an_equal_fingerprint_and_others_another(make: Make) -> None:
    assert make(50).fingerprint == make(50).fingerprint
    assert make(50).fingerprint != make(50, first=1).fingerprint


def test_a_second_write_to_a_path_is_refused(make: Make) -> None:
    with pytest.raises(TargetNotEmpty):
        write_dataset(rows(3), make(3).path)


def test_a_failed_write_leaves_nothing_to_open(tmp_path: Path) -> None:
    def failing() -> Any:
        yield from rows(5).to_batches()
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        write_dataset(failing(), str(tmp_path / "half"), rows_per_shard=2)
    assert not [f for f in tmp_path.rglob("*") if f.is_file()]


def test_a_failed_write_of_large_shards_leaves_no_thread_and_no_open_file(tmp_path: Path) -> None:
    large = pa.table({"payload": pa.array([bytes(1 << 20)] * 12, pa.binary(1 << 20))})

    def failing() -> Any:
        yield from large.to_batches(max_chunksize=1)
        raise ValueError("no more")

    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ValueError, match="no more"):
        write_dataset(failing(), str(tmp_path / "half"), batch_rows=1)
    assert not [t for t in threading.enumerate() if t.name.startswith("block-file")]
    assert len(os.listdir("/proc/self/fd")) == before
    assert not [f for f in tmp_path.rglob("*") if f.is_file()]


@pytest.mark.parametrize("width", [3001, 1 << 20])
def test_shards_of_many_blocks_hold_what_was_written(tmp_path: Path, width: int) -> None:
    n = (10 << 20) // width
    data = np.random.default_rng(1).integers(0, 256, n * width, dtype=np.uint8).tobytes()
    table = pa.table({
        "id": np.arange(n),
        "payload": pa.Array.from_buffers(pa.binary(width), n, [None, pa.py_buffer(data)]),
    })  # fmt: skip
    path = str(tmp_path / "set")
    write_dataset(table, path, rows_per_shard=n * 2 // 3)
    found = open_dataset(path, verify="always")
    assert len(found.rows.index.shards) == 2  # type: ignore[attr-defined]
    assert found[:].equals(table)


def flip(path: str, at: int) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))


@pytest.mark.parametrize("column", ["vector", "id", "tokens", "name"])
def test_a_flipped_bit_is_found_and_its_rows_named(make: Make, column: str) -> None:
    ds = make(100)
    layout, shard = ds.rows.layout, f"{ds.path}/000001.arrow"  # type: ignore[attr-defined]
    node, chunk = layout.columns[column], 3
    at = layout.address[node.slots()[-1], chunk] - ds.rows.shards.places[1]  # type: ignore[attr-defined]
    flip(shard, int(at) + 8)
    damaged = open_dataset(ds.path)
    assert damaged[:40].num_rows == 40
    with pytest.raises(RowsUnreadable, match=r"shard '000001\.arrow'") as caught:
        damaged[40:80]
    first = int(layout.chunks.starts[chunk])
    assert set(caught.value.rows) <= set(range(first, first + 16))
    assert damaged.path in str(caught.value)
    assert open_dataset(ds.path, verify="off")[80:]["id"].to_pylist() == list(range(80, 100))


def test_a_wide_value_is_checked_once_and_its_neighbours_stay_readable(make: Make) -> None:
    ds = make(40)
    slot = ds.rows.layout.columns["vector"].data  # type: ignore[attr-defined]
    flip(f"{ds.path}/000000.arrow", int(ds.rows.layout.address[slot, 1]) + 320 * 4)  # type: ignore[attr-defined]
    damaged = open_dataset(ds.path)
    with pytest.raises(RowsUnreadable) as caught:
        damaged[:]
    assert caught.value.rows == (20,)
    assert damaged[[19, 21]]["id"].to_pylist() == [19, 21]


def test_a_missing_or_cut_shard_is_named(make: Make) -> None:
    ds = make(100)
    Path(ds.path, "000001.arrow").unlink()
    with Path(ds.path, "000002.arrow").open("r+b") as file:
        file.truncate(100)
    again = open_dataset(ds.path)
    assert again[:40].num_rows == 40
    with pytest.raises(RowsUnreadable, match=r"000001.arrow.*cannot be opened"):
        again[50]
    with pytest.raises(RowsUnreadable, match=r"000002.arrow.*has 100 bytes, and the index says"):
        again[90]
    with pytest.raises(RowsUnreadable, match=r"000001.arrow"):
        faraway(ds)[50]


def edited(ds: Dataset, change: Callable[[dict[str, Any]], None], resign: bool = False) -> None:
    from millpond.formats.shard_index import _checksum

    path = Path(ds.path, "dataset.json")
    body = json.loads(path.read_bytes())
    change(body)
    if resign:
        body.pop("checksum")
        body["checksum"] = _checksum(body)
    path.write_text(json.dumps(body))


def test_a_dataset_replaced_under_its_reader_gives_no_row_of_the_other(make: Make) -> None:
    """What was mapped stays as it was; a shard of the other set fails its checksums."""
    ds, other = make(120, 1000, rows_per_shard=40), make(120, 2000, rows_per_shard=40)
    assert ds[[3, 30]]["id"].to_pylist() == [1003, 1030]
    shutil.rmtree(ds.path)
    shutil.copytree(other.path, ds.path)
    assert ds[[4, 31]]["id"].to_pylist() == [1004, 1031]
    for column in ("id", "name", "vector"):
        with pytest.raises(RowsUnreadable, match=r"000002\.arrow"):
            ds.take([115], [column])
    assert open_dataset(ds.path)[[115]]["id"].to_pylist() == [2115]


@pytest.mark.parametrize("far", [False, True])
@pytest.mark.parametrize("same_size", [False, True])
def test_a_shard_of_another_schema_is_named(make: Make, same_size: bool, far: bool) -> None:
    """A whole Arrow file in the place of a shard, by its size or by its checksums."""
    ds = make(120, rows_per_shard=40)
    path = Path(ds.path, "000001.arrow")
    size = path.stat().st_size
    other = pa.table({"id": [str(i) for i in range(40)], "else": [float(i) for i in range(40)]})
    with pa.ipc.new_file(str(path), other.schema) as file:
        file.write_table(other)
    if same_size:
        assert path.stat().st_size < size
        with path.open("r+b") as opened:
            opened.truncate(size)
    again = faraway(ds) if far else open_dataset(ds.path)
    assert again[:40]["id"].to_pylist() == list(range(40))
    for column in ds.schema.names:
        with pytest.raises(RowsUnreadable, match=r"000001\.arrow") as caught:
            again.take([3, 50, 90], [column])
        assert caught.value.rows == (50,)


def test_a_truncated_index_is_refused(make: Make) -> None:
    path = Path(make(20).path, "dataset.json")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(FileUnreadable, match="not whole JSON"):
        open_dataset(str(path.parent))


@pytest.mark.parametrize(
    ("change", "resign", "says"),
    [
        (lambda b: b["shards"][0].update(rows=39), False, "checksum does not fit"),
        (lambda b: b["shards"][0].update(rows=39), True, "do not hold its rows"),
        (lambda b: b["shards"][0].update(bytes=50), True, "lies outside of it"),
        (lambda b: b["shards"][0].update(name="../x"), True, "does not lie beside it"),
        (lambda b: b["shards"][0].update(name="/etc/passwd"), True, "does not lie beside it"),
        (lambda b: b.pop("schema"), True, "cannot be read"),
        (lambda b: b.update(layout="AAAA"), True, "cannot be read"),
        (lambda b: b.update(version=99), True, "format version 99"),
        (lambda b: b.update(format="other"), True, "not the index of a Millpond dataset"),
    ],
)
def test_an_edited_index_is_refused(
    make: Make, change: Callable[[dict[str, Any]], None], resign: bool, says: str
) -> None:
    ds = make(100)
    edited(ds, change, resign)
    with pytest.raises(FileUnreadable, match=says):
        open_dataset(ds.path)


def test_a_shard_that_links_outside_is_refused(make: Make, tmp_path: Path) -> None:
    ds = make(20)
    shard = Path(ds.path, "000000.arrow")
    shard.rename(tmp_path / "elsewhere")
    shard.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileUnreadable, match="leads outside"):
        open_dataset(ds.path)


def test_a_path_without_a_dataset_says_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(PathNotFound):
        open_dataset(str(tmp_path / "nowhere"))
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(FileUnreadable, match="neither an index"):
        open_dataset(str(tmp_path))


def test_types_that_cannot_be_stored_are_named(tmp_path: Path) -> None:
    with pytest.raises(SchemaMismatch, match=r"column 'n'.*null"):
        write_dataset(pa.table({"n": pa.nulls(3)}), str(tmp_path / "x"))
    with pytest.raises(SchemaMismatch, match="'xxh3:a'"):
        write_dataset(pa.table({"xxh3:a": [1]}), str(tmp_path / "y"))


def test_batches_of_another_schema_are_refused(tmp_path: Path) -> None:
    batches = [*pa.table({"a": [1]}).to_batches(), *pa.table({"a": ["x"]}).to_batches()]
    with pytest.raises(SchemaMismatch, match="The batch has: a string"):
        write_dataset(batches, str(tmp_path / "x"))


def test_plain_parquet_opens_and_says_what_random_reads_cost(tmp_path: Path) -> None:
    pq.write_table(rows(60), tmp_path / "a.parquet", row_group_size=20)
    pq.write_table(rows(40, 60), tmp_path / "b.parquet", row_group_size=20)
    ds = open_dataset(str(tmp_path))
    assert ds[[99, 3, 59, 60]].to_pylist() == rows(100).take(pa.array([99, 3, 59, 60])).to_pylist()
    assert ds[[]].num_rows == 0
    loader = ds.loader(7, shuffle="block", block_rows=10, window_blocks=3)
    assert sorted(ids(loader)) == list(range(100))
    assert "row group" in loader.explain()
    packed = ds.loader(4, pack=32, tokens="tokens")
    assert sum(int((b["segment_ids"] > 0).sum()) for b in packed) == sum(
        i * 7 % 23 for i in range(100)
    )


def test_parquet_files_of_different_columns_are_refused(tmp_path: Path) -> None:
    pq.write_table(rows(5), tmp_path / "a.parquet")
    pq.write_table(rows(5).select(["id"]), tmp_path / "b.parquet")
    with pytest.raises(SchemaMismatch, match=r"b\.parquet"):
        open_dataset(str(tmp_path))


@pytest.mark.slow
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(at=st.integers(0, 10**9), value=st.integers(0, 255))
def test_no_damage_to_a_shard_gives_wrong_rows(
    everything: Dataset, tmp_path_factory: pytest.TempPathFactory, at: int, value: int
) -> None:
    """Any byte changed: the rows are the same, or an error names the shard."""
    path = tmp_path_factory.mktemp("copy")
    for file in Path(everything.path).iterdir():
        if file.is_file():
            (path / file.name).write_bytes(file.read_bytes())
    data = bytearray((path / "000000.arrow").read_bytes())
    data[at % len(data)] = value
    (path / "000000.arrow").write_bytes(data)
    found, shard = None, ""
    try:
        found = open_dataset(str(path))[:].to_pylist()
    except RowsUnreadable as error:
        shard = error.shard
    assert shard == "000000.arrow" or found == some_of_everything().to_pylist()
