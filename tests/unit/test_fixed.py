"""Fixed-width records come back byte for byte, and what does not fit is named."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from millpond.errors import FileUnreadable, MillpondError, OptionError
from millpond.formats import fixed
from millpond.formats.scan import FileSlice
from millpond.storage import LocalStorage

LAYOUT = fixed.Layout.of({"key": 3, "value": 7}, "read_fixed")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "x.dat"
    path.write_bytes(bytes(range(200)) + bytes(range(100)))  # 30 records.
    return path


def rows(file: Path, *slices: FileSlice, batch_bytes: int = 70) -> pa.Table:
    storage = LocalStorage()
    batches = fixed.read(storage, slices, LAYOUT, batch_bytes=batch_bytes)
    return pa.Table.from_batches(list(batches))


def test_records_are_cut_into_their_fields(file: Path) -> None:
    table = rows(file, FileSlice(str(file)))
    assert table.num_rows == 30
    assert table.slice(1, 1).to_pylist() == [
        {"key": bytes([10, 11, 12]), "value": bytes(range(13, 20))}
    ]
    assert LAYOUT.schema.types == ("BLOB", "BLOB")


def test_a_slice_is_its_own_records(file: Path) -> None:
    table = rows(file, FileSlice(str(file), 2, 9), FileSlice(str(file), 29, 1))
    assert [row["key"][0] for row in table.to_pylist()] == [*range(20, 110, 10), 90]


def test_one_field_may_be_read_alone(file: Path) -> None:
    (batch,) = fixed.read(LocalStorage(), [FileSlice(str(file), 0, 2)], LAYOUT, ["value"])
    assert batch.to_pylist() == [{"value": bytes(range(3, 10))}, {"value": bytes(range(13, 20))}]


def test_whole_records_are_a_view() -> None:
    data = bytes(range(20))
    column = fixed.whole(data, LAYOUT)
    assert column.to_pylist() == [data[:10], data[10:]]
    assert column.buffers()[1].address == np.frombuffer(data, np.uint8).ctypes.data


@pytest.mark.parametrize("kind", [None, pa.binary(), pa.large_binary()])
def test_what_is_read_can_be_written(file: Path, tmp_path: Path, kind: pa.DataType | None) -> None:
    writer = fixed.FixedWriter(str(tmp_path / "y"), LAYOUT)
    for batch in rows(file, FileSlice(str(file))).to_batches():
        if kind is not None:
            batch = pa.record_batch([c.cast(kind) for c in batch.columns], batch.schema.names)
        writer.add(batch.slice(0, 3))
        writer.add(batch.slice(3))
    assert writer.close() == 300
    assert writer.rows == 30
    assert (tmp_path / "y").read_bytes() == file.read_bytes()


def test_splits_cover_every_record_once(file: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.dat").touch()
    files = list(LocalStorage().list(str(tmp_path)))
    found = fixed.splits(files, LAYOUT, target_bytes=70)

    slices = [s for split in found for s in split.slices]
    assert {s.path for s in slices} == {str(file)}
    assert [s.first_row for s in slices] == [0, *np.cumsum([s.n_rows for s in slices])[:-1]]
    assert sum(s.n_rows or 0 for s in slices) == 30
    assert max(s.n_rows or 0 for s in slices) * 10 <= 70


def test_a_file_that_is_not_whole_records_is_named(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])
    (info,) = LocalStorage().list(str(file))
    with pytest.raises(FileUnreadable, match=r"x\.dat: 299 bytes are 29 records of 10 bytes and 9"):
        fixed.count(info, LAYOUT)
    with pytest.raises(FileUnreadable, match="ends within record 29"):
        rows(file, FileSlice(str(file), 0, 30), batch_bytes=300)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (b"abcd", "'key' has 4 bytes; the field has 3"),
        (None, "'key' has 1 NULL values"),
    ],
)
def test_a_value_that_does_not_fit_is_named(bad: bytes | None, words: str) -> None:
    batch = pa.record_batch({"key": pa.array([bad], pa.binary()), "value": [b"1234567"]})
    with pytest.raises(MillpondError, match=words):
        fixed.to_rows(batch, LAYOUT)


@pytest.mark.parametrize("fields", [{}, {"a": 0}, {"a": -1}, {"a": True}, {"a": 1.5}])
def test_widths_are_whole_numbers(fields: dict[str, int]) -> None:
    with pytest.raises(OptionError, match="read_fixed"):
        fixed.Layout.of(fields, "read_fixed")


def test_many_records_survive_the_trip(tmp_path: Path) -> None:
    data = os.urandom(100_000)
    writer = fixed.FixedWriter(str(tmp_path / "y"), LAYOUT)
    writer.add_bytes(fixed.as_rows(data, LAYOUT))
    writer.close()
    batches = fixed.read(LocalStorage(), [FileSlice(str(tmp_path / "y"))], LAYOUT)
    assert b"".join(fixed.to_rows(b, LAYOUT).tobytes() for b in batches) == data
