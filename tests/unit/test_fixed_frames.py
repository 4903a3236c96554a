"""Frames over fixed-width records: every operator, and the sort that needs no SQL."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import millpond
from millpond.dataframe import DataFrame
from millpond.errors import FileUnreadable, MillpondError, OptionError, PathNotFound
from millpond.physical.records import record_sort
from millpond.plan.sinks import sink
from millpond.session import Session

FIELDS = {"key": 4, "value": 8}


@pytest.fixture(scope="module", params=["auto", "staged"])
def sp(request: pytest.FixtureRequest) -> Iterator[Session]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MILLPOND_SPLIT_BYTES", "5000")  # Several tasks, where there are tasks.
        with millpond.init(shape=request.param, threads=2) as session:
            yield session


@pytest.fixture
def data(tmp_path: Path) -> bytes:
    """2000 records in two files; the value is the place in the input."""
    rows = np.random.default_rng(8).integers(0, 3, (2000, 12), np.uint8)
    rows[:, 4:] = np.arange(2000, dtype=">u8").view(np.uint8).reshape(2000, 8)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.dat").write_bytes(rows[:700].tobytes())
    (tmp_path / "in" / "b.dat").write_bytes(rows[700:].tobytes())
    return rows.tobytes()


@pytest.fixture
def frame(sp: Session, tmp_path: Path, data: bytes) -> DataFrame:
    return sp.read_fixed(str(tmp_path / "in"), FIELDS)


def written(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.glob("*.bin")))


def records(data: bytes) -> list[bytes]:
    return [data[i : i + 12] for i in range(0, len(data), 12)]


def test_records_are_rows(frame: DataFrame, data: bytes) -> None:
    assert frame.schema.types == ("BLOB", "BLOB")
    assert frame.count() == 2000
    assert [row["key"] + row["value"] for row in frame.to_arrow().to_pylist()] == records(data)


def test_other_operators_run_over_records(frame: DataFrame) -> None:
    first = frame.filter("value < '\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x05'::BLOB")
    assert first.count() == 5
    assert first.map("hex(value) AS h").take(1) == [{"h": "00" * 8}]


def test_records_sort_into_files(frame: DataFrame, tmp_path: Path, data: bytes) -> None:
    done = frame.sort("key").write_fixed(str(tmp_path / "out"))

    assert done.rows == 2000
    # Places are part of the record, so equal keys in input order are whole records in order.
    assert written(tmp_path / "out") == b"".join(sorted(records(data)))


def test_a_descending_sort_takes_the_long_way(frame: DataFrame, tmp_path: Path) -> None:
    frame.sort("key DESC").write_fixed(str(tmp_path / "out"))
    keys = [record[:4] for record in records(written(tmp_path / "out"))]
    assert keys == sorted(keys, reverse=True)


def test_only_whole_records_in_ascending_order_of_a_field_go_without_sql(
    frame: DataFrame, sp: Session
) -> None:
    def found(frame: DataFrame, path: str = "/out", fields: dict[str, int] = FIELDS) -> bool:
        options, explain = {"fields": json.dumps(fields)}, sp._runner.dialect.explain
        plan = sink(frame.plan, "fixed", path, "error", options, explain=explain)
        return record_sort(plan, sp._work.settings()) is not None

    assert found(frame.sort("key"))
    assert found(frame.sort("value"))
    assert not found(frame.sort("key DESC"))
    assert not found(frame.sort("key, value"))
    assert not found(frame.filter("key > value").sort("key"))
    assert not found(frame.sort("key"), path="s3://bucket/out")
    assert not found(frame.sort("key"), path="/out.bin")
    assert not found(frame.sort("key"), fields={"key": 5, "value": 7})


def test_columns_of_another_origin_need_their_widths(sp: Session, tmp_path: Path) -> None:
    frame = sp.from_items([{"k": b"ab", "n": b"1"}, {"k": b"cd", "n": b"2"}])
    with pytest.raises(OptionError, match="how wide is 'k'"):
        frame.write_fixed(str(tmp_path / "out"))
    frame.write_fixed(str(tmp_path / "out"), {"k": 2, "n": 1})
    assert written(tmp_path / "out") == b"ab1cd2"


def test_a_value_that_does_not_fit_is_an_error_and_leaves_nothing(
    sp: Session, tmp_path: Path
) -> None:
    frame = sp.from_items([{"k": b"ab"}, {"k": b"abc"}])
    with pytest.raises(MillpondError, match="field 'k' has 3 bytes; the field has 2"):
        frame.write_fixed(str(tmp_path / "out"), {"k": 2})
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_bad_files_are_named_at_the_call(sp: Session, tmp_path: Path, data: bytes) -> None:
    with pytest.raises(PathNotFound, match="read_fixed"):
        sp.read_fixed(str(tmp_path / "none"), FIELDS)
    with pytest.raises(FileUnreadable, match=r"a\.dat: 8,400 bytes are 646 records of 13 bytes"):
        sp.read_fixed(str(tmp_path / "in"), {"key": 4, "value": 9})


def test_records_of_many_files_come_in_order(sp: Session, tmp_path: Path) -> None:
    for file in range(40):
        rows = [(file * 50 + row).to_bytes(4, "big") + bytes(8) for row in range(50)]
        (tmp_path / f"{file:03}.bin").write_bytes(b"".join(rows))
    keys = sp.read_fixed(str(tmp_path / "*.bin"), FIELDS).to_arrow().column("key").to_pylist()
    assert keys == [place.to_bytes(4, "big") for place in range(2000)]
