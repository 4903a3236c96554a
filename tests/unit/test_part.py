"""A part holds the rows that were added, by partition, whatever their types and sizes."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millpond.errors import DiskFull, MillpondError, SchemaMismatch
from millpond.shuffle import part
from millpond.shuffle.index import part_counts
from millpond.shuffle.write import PartWriter
from tests.unit.part_files import from_disk, numbers_batch, part_ref, read, wanted, write_part

NUMBERS = pa.schema({"n": pa.int64()})


def partition_lists(ref: object, n: int, schema: pa.Schema = NUMBERS) -> list[list[int]]:
    return [
        read(wanted(ref, first_partition=p), schema).column(0).to_pylist()  # type: ignore[arg-type]
        for p in range(n)
    ]


@settings(max_examples=20, deadline=None)
@given(
    n=st.integers(1, 5),
    sizes=st.lists(st.integers(0, 40), max_size=6),
    budget=st.sampled_from([1, 64, 4096, 1 << 20]),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_partition_has_its_rows_in_the_order_they_were_added(
    tmp_path_factory: pytest.TempPathFactory, n: int, sizes: list[int], budget: int, seed: int
) -> None:
    path = tmp_path_factory.mktemp("parts") / "x.part"
    rng = np.random.default_rng(seed)
    expected: list[list[int]] = [[] for _ in range(n)]
    batches, row = [], 0
    for size in sizes:
        numbers = rng.integers(0, n, size)
        batches.append((numbers_batch(*range(row, row + size)), numbers))
        for number in numbers:
            expected[number].append(row)
            row += 1

    ref = write_part(path, batches, n, budget_bytes=budget, schema=NUMBERS)

    assert partition_lists(ref, n) == expected
    assert ref.rows == row
    assert np.frombuffer(part_counts(ref, from_disk)[0], "<i8").tolist() == [
        len(rows) for rows in expected
    ]


def test_rows_of_one_partition_are_written_while_more_come(tmp_path: Path) -> None:
    batches = [(numbers_batch(*range(n, n + 100_000)), None) for n in range(0, 3_000_000, 100_000)]
    one = write_part(tmp_path / "one.part", batches, 1, budget_bytes=1 << 30, schema=NUMBERS)
    several = [(batch, np.zeros(100_000, np.int64)) for batch, _ in batches]
    two = write_part(tmp_path / "two.part", several, 2, budget_bytes=1 << 30, schema=NUMBERS)
    assert (one.n_runs, two.n_runs) == (3, 1)
    assert partition_lists(one, 1) == [list(range(3_000_000))]


@pytest.mark.parametrize("cached_bytes", [0, 5 << 20, 1 << 30])
def test_the_first_bytes_of_a_part_may_go_through_the_page_cache(
    tmp_path: Path, cached_bytes: int
) -> None:
    path, rows = str(tmp_path / "x.part"), numbers_batch(*range(2_000_000))
    writer = PartWriter(path, 1, NUMBERS, cached_bytes=cached_bytes)
    writer.add(rows)
    written = writer.close()
    found = Path(path).read_bytes()
    plain = PartWriter(str(tmp_path / "y.part"), 1, NUMBERS)
    plain.add(rows)
    assert plain.close() == written
    assert found == (tmp_path / "y.part").read_bytes()


def test_every_type_comes_back_as_it_was(tmp_path: Path) -> None:
    wide = pa.struct({"x": pa.list_(pa.string()), "y": pa.map_(pa.string(), pa.int8())})
    columns = {
        "bool": pa.array([True, None, False, True]),
        "decimal": pa.array([1, None, 3, 4], pa.decimal128(38, 3)),
        "fixed": pa.array([b"abc", b"def", None, b"xyz"], pa.binary(3)),
        "large": pa.array(["ä" * 300, "", None, "z"], pa.large_string()),
        "nested": pa.array(
            [{"x": ["a", None], "y": [("k", 1)]}, None, {"x": [], "y": []}, {"x": None, "y": None}],
            wide,
        ),
        "list": pa.array([[[1], []], None, [None], []], pa.list_(pa.list_(pa.int32()))),
        "array": pa.array([[1, 2], None, [3, None], [5, 6]], pa.list_(pa.float32(), 2)),
        "nothing": pa.nulls(4),
        "interval": pa.array([pa.MonthDayNano([1, 2, 3]), None] * 2, pa.month_day_nano_interval()),
        "uuid": pa.array([bytes(16), None] * 2, pa.uuid()),
        "time": pa.array([1, None, 3, 4], pa.timestamp("us", "UTC")),
        "union": pa.UnionArray.from_sparse(
            pa.array([0, 1, 0, 1], pa.int8()),
            [pa.array([1, 2, 3, 4]), pa.array(["a", "b", "c", "d"])],
        ),
    }
    batch = pa.record_batch(columns)

    ref = write_part(tmp_path / "x", [(batch, [1, 0, 1, 0])], 2)

    rows = batch.to_pylist()
    for p, expected in ((0, [rows[1], rows[3]]), (1, [rows[0], rows[2]])):
        back = read(wanted(ref, first_partition=p), batch.schema)
        back.validate(full=True)
        assert back.to_pylist() == expected


def test_ten_thousand_partitions_cost_no_more_than_their_rows(tmp_path: Path) -> None:
    n = 10_000
    batch = pa.record_batch({"n": np.arange(20_000)})
    ref = write_part(tmp_path / "x", [(batch, np.arange(20_000) % n)], n)

    assert partition_lists(ref, 3) == [[0, n], [1, n + 1], [2, n + 2]]
    assert ref.n_runs == 1
    assert part_counts(ref, from_disk)[0] == np.full(n, 2, "<i8").tobytes()


def test_runs_are_cut_by_bytes_not_by_rows(tmp_path: Path) -> None:
    wide = pa.record_batch({"s": pa.array(["x" * 1000] * 100)})
    ref = write_part(tmp_path / "x", [(wide, None)] * 2, budget_bytes=20_000)

    index = (tmp_path / "x").read_bytes()[ref.index_offset :]
    assert part.entries_of(index, 1, ref.n_runs)["length"].max() < 2 * 20_000
    assert read(wanted(ref), wide.schema).num_rows == 200


def test_segments_are_aligned_and_adjacent_partitions_are_adjacent_in_the_index(
    tmp_path: Path,
) -> None:
    batch = numbers_batch(*range(30))
    ref = write_part(tmp_path / "x", [(batch, np.arange(30) % 3)] * 2, 3, budget_bytes=240)

    index = (tmp_path / "x").read_bytes()[ref.index_offset :]
    entries = part.entries_of(index, 3, ref.n_runs)
    assert ref.n_runs == 2
    assert entries.shape == (3, 2)
    assert not (entries["offset"] % 64).any()
    assert entries["offset"][:, 0].tolist() == sorted(entries["offset"][:, 0])
    assert entries["offset"][0, 1] > entries["offset"][2, 0]


def test_an_empty_segment_has_a_checksum(tmp_path: Path) -> None:
    ref = write_part(tmp_path / "x", [(numbers_batch(1), [0])], 2)
    entries = part.entries_of((tmp_path / "x").read_bytes()[ref.index_offset :], 2, 1)

    assert entries["length"][1, 0] == 0
    assert entries["checksum"].all()


def test_a_part_without_rows_is_a_part(tmp_path: Path) -> None:
    ref = write_part(tmp_path / "x", [], 4, schema=NUMBERS)

    assert (ref.rows, ref.n_runs) == (0, 0)
    assert partition_lists(ref, 4) == [[]] * 4
    assert part_counts(ref, from_disk)[0] == bytes(32)


@pytest.mark.parametrize("number", [3, 300, 2**31])
def test_a_partition_out_of_range_is_named_and_leaves_no_file(tmp_path: Path, number: int) -> None:
    with pytest.raises(MillpondError, match=rf"partition number {number} .* 3 partitions"):
        write_part(tmp_path / "x", [(numbers_batch(1, 2), [0, number])], 3)
    assert not list(tmp_path.iterdir())


def test_a_negative_partition_is_named(tmp_path: Path) -> None:
    writer = PartWriter(str(tmp_path / "x"), 3, NUMBERS)
    with pytest.raises(MillpondError, match="partition number -1"):
        writer.add(numbers_batch(1), np.array([-1]))


def test_as_many_numbers_as_rows(tmp_path: Path) -> None:
    with pytest.raises(MillpondError, match="2 rows came with 1 partition numbers"):
        write_part(tmp_path / "x", [(numbers_batch(1, 2), [0])], 3)


def test_a_batch_of_other_columns_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SchemaMismatch, match=r"\(s string\) where the stage writes \(n int64\)"):
        write_part(tmp_path / "x", [(pa.record_batch({"s": ["a"]}), None)], schema=NUMBERS)


def test_dictionaries_are_refused_at_any_depth(tmp_path: Path) -> None:
    kind = pa.list_(pa.dictionary(pa.int8(), pa.string()))
    with pytest.raises(SchemaMismatch, match="column 'd'"):
        PartWriter(str(tmp_path / "x"), 1, pa.schema({"d": kind}))
    assert not list(tmp_path.iterdir())


def test_abort_leaves_no_file(tmp_path: Path) -> None:
    writer = PartWriter(str(tmp_path / "x"), 1, NUMBERS, budget_bytes=1)
    writer.add(numbers_batch(1))
    writer.abort()
    writer.abort()
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_said_and_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.symlink_to("/dev/full")
    writer = PartWriter(str(path), 1, NUMBERS)
    writer.add(numbers_batch(*range(100)))
    with pytest.raises(DiskFull, match="No space is left"):
        writer.close()
    assert not list(tmp_path.iterdir())


def test_what_was_written_is_told(tmp_path: Path) -> None:
    writer = PartWriter(str(tmp_path / "x"), 2, NUMBERS)
    writer.add(numbers_batch(1, 2, 3), np.array([0, 1, 1], np.uint8))
    written = writer.close()

    assert written.size_bytes == (tmp_path / "x").stat().st_size
    assert written.partition_rows == np.array([1, 2], "<i8").tobytes()
    assert sum(np.frombuffer(written.partition_bytes, "<i8")) == written.index_offset - 64
    ref = part_ref(tmp_path / "x", 2, written)
    assert part_counts(ref, from_disk) == (written.partition_rows, written.partition_bytes)
