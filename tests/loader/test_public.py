"""From a frame to batches by the public names alone."""

import json
from pathlib import Path

import numpy as np
import pytest

import millpond
from millpond.errors import ColumnNotFound, OptionError, SqlError, TargetNotEmpty
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


def test_parquet_is_what_the_newest_manifest_names(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with millpond.init() as sp:
        sp.from_items(list(range(10))).write_parquet(str(folder))
        sp.from_items(list(range(10, 15))).write_parquet(str(folder), mode="append")
    committed = millpond.open_dataset(str(folder)).fingerprint
    one = next(folder.glob("*.parquet"))
    (folder / "killed.parquet").write_bytes(one.read_bytes())
    with pytest.warns(UserWarning, match="1 files beside those that were committed"):
        ds = millpond.open_dataset(str(folder))
    assert sorted(ds[0:15]["item"].to_pylist()) == list(range(15))
    assert ds.fingerprint == committed


def test_folders_of_values_warn_that_these_are_no_columns(tmp_path: Path) -> None:
    with millpond.init() as sp:
        frame = sp.from_items([{"a": i, "k": i % 2} for i in range(4)])
        frame.write_parquet(str(tmp_path / "by"), partition_by="k")
    with pytest.warns(UserWarning, match=r"values of the folders \(k\) are no columns"):
        assert len(millpond.open_dataset(str(tmp_path / "by"))) == 4


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("sum(item) > 1", "aggregate"),
        ("row_number() OVER () > 2", "window"),
        ("random() < 0.5", "all ranks need the same"),
        ("now() > TIMESTAMPTZ '2020-01-01'", "all ranks need the same"),
        ("item > (SELECT max(item) - 3 FROM given)", "subquery"),
    ],
)
def test_a_filter_that_looks_past_its_row_is_refused(tmp_path: Path, words: str, why: str) -> None:
    ds = small(tmp_path)
    with pytest.raises(millpond.MillpondError, match=why):
        ds.loader(2, filter=words)


@pytest.mark.parametrize(
    "wrong", [{"batch_size": 2.5}, {"rank": "0"}, {"seed": 1.5}, {"epochs": "3"}, {"prefetch": 0.5}]
)
def test_options_that_are_no_whole_numbers_are_refused(
    tmp_path: Path, wrong: dict[str, object]
) -> None:
    with pytest.raises(OptionError, match="pass a whole number"):
        small(tmp_path).loader(**{"batch_size": 2, **wrong})  # type: ignore[arg-type]


def test_numbers_of_numpy_are_numbers_and_the_state_stays_json(tmp_path: Path) -> None:
    ds = small(tmp_path)
    loader = ds.loader(np.int64(2), rank=np.int32(0), world=np.int64(2), seed=np.uint8(7))
    next(iter(loader))
    again = ds.loader(2, world=2, seed=7)
    again.load_state_dict(json.loads(json.dumps(loader.state_dict())))
    assert again.state_dict() == loader.state_dict()


def small(folder: Path) -> millpond.loader.Dataset:
    with millpond.init() as sp:
        sp.from_items(list(range(10))).write_dataset(str(folder / "small"))
    return millpond.open_dataset(str(folder / "small"))
