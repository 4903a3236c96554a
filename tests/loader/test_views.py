"""`format="views"`: the values of any other format, as looks into where they are stored."""

import gc
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from millpond import mix, open_dataset
from millpond.errors import OptionError, RowsUnreadable
from millpond.loader import write_dataset
from millpond.loader.columns import numpy_type
from millpond.loader.reader import Dataset
from tests.support.loader_sets import Make

N = 60
FLOATS = pa.list_(pa.float32(), 80)
KINDS: dict[str, tuple[pa.DataType, Any]] = {
    "bytes": (pa.binary(), lambda i: bytes([i]) * (i * 13)),
    "long": (pa.large_binary(), lambda i: bytes([i]) * i),
    "fixed": (pa.binary(300), lambda i: bytes([i]) * 300),
    "list": (pa.list_(pa.int16()), lambda i: [i] * (i % 7)),
    "large list": (pa.large_list(pa.float64()), lambda i: [i / 7] * (i % 5)),
    "vector": (FLOATS, lambda i: [i / 3] * 80),
}


def table(nulls: bool) -> pa.Table:
    def values(make: Any) -> list[Any]:
        return [None if nulls and i % 5 == 2 else make(i) for i in range(N)]

    columns = {name: pa.array(values(make), kind) for name, (kind, make) in KINDS.items()}
    return pa.table({"id": pa.array(range(N)), **columns})


def plain(view: Any, kind: pa.DataType) -> Any:
    """A view as the Python value that Arrow gives."""
    if view is None:
        return None
    return (
        view.tobytes() if numpy_type(getattr(kind, "value_type", kind)) is None else view.tolist()
    )


def written(tmp_path: Path, rows: pa.Table, source: str) -> Dataset:
    path = tmp_path / source
    if source == "parquet":
        path.mkdir()
        pq.write_table(rows, path / "rows.parquet", row_group_size=16)
    else:
        write_dataset(rows, str(path), rows_per_shard=40, batch_rows=16)
    return open_dataset(str(path))


@pytest.mark.parametrize("source", ["shards", "parquet"])
@pytest.mark.parametrize("nulls", [False, True])
def test_views_have_the_values_of_the_table(tmp_path: Path, source: str, nulls: bool) -> None:
    rows = table(nulls)
    ds = written(tmp_path, rows, source)
    asked = [59, 0, 17, 17, 2, 41]
    found = ds.take(asked, format="views")
    for name, (kind, _) in KINDS.items():
        expected = rows[name].take(asked).to_pylist()
        assert [plain(view, kind) for view in found[name]] == expected
    assert found["id"].tolist() == asked


def test_a_view_is_read_only_and_no_byte_of_it_is_copied(tmp_path: Path) -> None:
    ds = written(tmp_path, table(False), "shards")
    memory = ds.rows.shards.memory  # type: ignore[attr-defined]
    for name in KINDS:
        for view in ds.take([3, 51], [name], format="views")[name]:
            assert not view.flags.writeable
            assert np.shares_memory(view, memory.bytes)


def test_views_outlive_the_dataset(tmp_path: Path) -> None:
    ds = written(tmp_path, table(False), "shards")
    views = ds.take([7, 8], ["fixed"], format="views")["fixed"]
    del ds
    gc.collect()
    assert [bytes(view) for view in views] == [bytes([i]) * 300 for i in (7, 8)]


def test_a_batch_of_views_travels_by_pickle(tmp_path: Path) -> None:
    ds = written(tmp_path, table(True), "shards")
    (batch,) = ds.loader(N, format="views")
    there = pickle.loads(pickle.dumps(dict(batch)))
    assert plain(there["bytes"][4], pa.binary()) == bytes([4]) * 52
    assert there["bytes"][2] is None


@pytest.mark.parametrize("options", [{}, {"shuffle": "global"}, {"shuffle": "block"}])
def test_a_loader_of_views_has_the_order_of_one_of_arrays(make: Make, options: Any) -> None:
    ds = make(100)
    arrays = ds.loader(9, world=2, rank=1, **options)
    views = ds.loader(9, world=2, rank=1, format="views", **options)
    for one, other in zip(arrays, views, strict=True):
        assert one["id"].tolist() == other["id"].tolist()
        assert [a.tolist() for a in one["tokens"]] == [b.tolist() for b in other["tokens"]]
        assert np.array_equal(one["vector"], np.stack(other["vector"]))
        assert one["name"].tolist() == other["name"].tolist()
    assert arrays.receipt() == views.receipt()


def test_sources_of_a_mixture_may_be_stored_in_different_ways(tmp_path: Path) -> None:
    rows = table(True)
    parts = {"a": written(tmp_path, rows, "shards"), "b": written(tmp_path, rows, "parquet")}
    loader = mix(parts, weights={"a": 2, "b": 1}).loader(16, shuffle="global", format="views")
    for batch in loader:
        for name, (kind, _) in KINDS.items():
            expected = rows[name].take(pa.array(batch["id"])).to_pylist()
            assert [plain(view, kind) for view in batch[name]] == expected


def test_lists_with_nulls_inside_are_masked_in_place_of_views(tmp_path: Path) -> None:
    rows = pa.table({"x": pa.array([[1, None, 3], [4], None], pa.list_(pa.int32()))})
    first, second, third = written(tmp_path, rows, "shards").take([0, 1, 2], format="views")["x"]
    assert first.tolist() == [1, None, 3]
    assert second.tolist() == [4]
    assert third is None


@pytest.mark.parametrize("name", ["bytes", "fixed"])
def test_a_damaged_value_is_found_before_its_view_is_given(tmp_path: Path, name: str) -> None:
    ds = written(tmp_path, table(False), "shards")
    layout = ds.rows.layout  # type: ignore[attr-defined]
    slot = layout.columns[name].data
    with open(f"{ds.path}/000000.arrow", "r+b") as file:
        file.seek(int(layout.address[slot, 1]) + 5)
        file.write(b"\xff")
    damaged = open_dataset(ds.path)
    with pytest.raises(RowsUnreadable, match=f"column '{name}'"):
        damaged.take(range(40), [name], format="views")
    skipping = damaged.loader(10, columns=["id", name], format="views", on_error="skip")
    assert sum(len(batch["id"]) for batch in skipping) == N
    assert skipping.skipped == 1


def test_packs_and_unknown_formats_are_refused(make: Make) -> None:
    with pytest.raises(OptionError, match="packs are laid out anew"):
        make(20).loader(2, pack=32, tokens="tokens", format="views")
    with pytest.raises(OptionError, match="numpy, arrow, torch, views"):
        make(20).take([1], format="view")  # type: ignore[arg-type]
