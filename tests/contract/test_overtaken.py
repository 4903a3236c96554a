"""Readers of an output that another session writes to: the old state or the new one, whole."""

from pathlib import Path
from typing import Any

import clouds
import pytest

import millpond
from millpond.errors import SchemaMismatch


@pytest.fixture(params=["local", "gs"])
def out(request: pytest.FixtureRequest, tmp_path: Path, gs_cloud: clouds.Clouds) -> tuple[str, Any]:
    if request.param == "local":
        return str(tmp_path / "out"), {}
    return f"gs://{clouds.BUCKET}/{tmp_path.name}/out", gs_cloud.options()


def rows(*numbers: int) -> list[dict[str, int]]:
    return [{"a": number} for number in numbers]


@pytest.mark.slow
@pytest.mark.parametrize("format", ["parquet", "json", "arrow"])
def test_a_frame_over_an_output_that_was_overwritten_reads_what_is_there_now(
    out: tuple[str, Any], format: str
) -> None:
    path, options = out
    with (
        millpond.init(storage_options=options, progress=False) as reader,
        millpond.init(storage_options=options, progress=False) as writer,
    ):

        def write(mode: str, *numbers: int) -> None:
            frame = writer.from_items(rows(*numbers)).repartition(2, by_rows=True)
            getattr(frame, f"write_{format}")(path, mode=mode)

        write("error", 1, 2, 3)
        frame = getattr(reader, f"read_{format}")(path)
        write("overwrite", 4, 5)
        assert frame.sort("a").take_all() == rows(4, 5)
        write("append", 6)
        assert frame.sort("a").take_all() == rows(4, 5, 6)  # From the state at the time of a run:
        later = getattr(reader, f"read_{format}")(path)
        write("append", 7)
        assert later.sort("a").take_all() == rows(4, 5, 6)  # its files are all there still.
        write("overwrite", 8)
        write("overwrite", 9)
        assert later.filter("a > 8").take_all() == rows(9)
        assert frame.count() == 1


def test_an_output_that_was_overwritten_with_other_columns_is_named(out: tuple[str, Any]) -> None:
    path, options = out
    with millpond.init(storage_options=options, progress=False) as sp:
        sp.from_items(rows(1)).write_parquet(path)
        frame = sp.read_parquet(path)
        sp.from_items([{"b": 1}]).write_parquet(path, mode="overwrite")
        with pytest.raises(SchemaMismatch, match=r"out'.*overwritten.*Read it again"):
            frame.count()
        assert sp.read_parquet(path).take_all() == [{"b": 1}]


def test_an_output_overwritten_in_folders_of_keys_is_named(out: tuple[str, Any]) -> None:
    path, options = out
    with millpond.init(storage_options=options, progress=False) as sp:
        made = sp.from_items([{"a": 1, "k": "x"}])
        made.write_parquet(path, partition_by="k")
        frame = sp.read_parquet(path)
        assert frame.take_all() == [{"a": 1, "k": "x"}]
        made.write_parquet(path, partition_by="k", mode="overwrite")
        with pytest.raises(SchemaMismatch, match="Read it again"):
            frame.count()


@pytest.mark.slow
@pytest.mark.parametrize("keys", [None, ["b"]])
@pytest.mark.parametrize("format", ["parquet", "json", "csv"])
def test_an_output_without_a_row_has_its_columns(
    out: tuple[str, Any], format: str, keys: list[str] | None
) -> None:
    path, options = out
    with millpond.init(storage_options=options, progress=False) as sp:
        none = sp.from_items([{"a": 1, "b": "x", "c": 1.5}]).filter("a > 5")
        getattr(none, f"write_{format}")(path, partition_by=keys)
        read = getattr(sp, f"read_{format}")(path)
        assert (read.schema, read.to_arrow().num_rows) == (none.schema, 0)
        assert read.filter("c > 1").count() == 0


@pytest.mark.parametrize("header", [True, False])
def test_rows_of_text_written_as_csv_after_none_are_read_with_their_names(
    out: tuple[str, Any], header: bool
) -> None:
    path, options = out
    with millpond.init(storage_options=options, progress=False) as sp:
        texts = sp.from_items([{"a": "x", "b": "y"}])
        texts.filter("a = ''").write_csv(path, header=header)
        assert sp.read_csv(path).schema == texts.schema
        texts.write_csv(path, mode="append", header=header)
        read = sp.read_csv(path, header=header)
        assert [tuple(row.values()) for row in read.take_all()] == [("x", "y")]
