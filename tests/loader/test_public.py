"""From a frame to batches by the public names alone."""

import pytest

import millpond
from millpond.errors import ColumnNotFound, SqlError, TargetNotEmpty
from tests.support.sessions import Counted


@pytest.fixture
def corpus(tmp_path) -> str:
    path = str(tmp_path / "corpus")
    with Counted(shape="auto") as run:
        frame = run.session.from_items(list(range(1000))).map("item, 'row ' || item AS name")
        frame.write_dataset(path, rows_per_shard=300)
        with pytest.raises(TargetNotEmpty):
            frame.write_dataset(path)
    return path


def test_rows_come_back_by_number(corpus: str) -> None:
    ds = millpond.open_dataset(corpus)
    assert len(ds) == 1000
    assert ds[17] == {"item": 17, "name": "row 17"}
    assert ds[[3, 1, 2]].column("item").to_pylist() == [3, 1, 2]


def test_a_shuffled_epoch_has_each_row_once(corpus: str) -> None:
    loader = millpond.open_dataset(corpus).loader(64, shuffle="global", seed=7)
    seen = [int(i) for batch in loader for i in batch["item"]]
    assert seen != sorted(seen)
    assert sorted(seen) == list(range(1000))


def test_a_filter_is_sql(corpus: str) -> None:
    ds = millpond.open_dataset(corpus)
    loader = ds.loader(64, filter="item % 10 = 3 AND name LIKE 'row %'")
    assert [int(i) for batch in loader for i in batch["item"]] == list(range(3, 1000, 10))
    with pytest.raises(ColumnNotFound, match="items"):
        ds.loader(64, filter="items > 3")
    with pytest.raises(SqlError, match="item >"):
        ds.loader(64, filter="item >")


def test_a_mixture_draws_by_weight(corpus: str) -> None:
    ds = millpond.open_dataset(corpus)
    low, high = ds, ds
    mixed = millpond.mix({"a": low, "b": high}, weights={"a": 3, "b": 1}, seed=0)
    batch = next(iter(mixed.loader(100)))
    assert len(batch["item"]) == 100


def test_an_empty_frame_is_an_empty_set(tmp_path) -> None:
    with Counted(shape="auto") as run:
        frame = run.session.from_items([1]).filter("item > 1")
        frame.write_dataset(str(tmp_path / "none"))
    assert len(millpond.open_dataset(str(tmp_path / "none"))) == 0
