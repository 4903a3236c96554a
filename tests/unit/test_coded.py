"""Parquet files read as codes: the rows are those that DuckDB reads, and so are the files."""

from collections.abc import Sequence
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import millpond
from millpond.errors import FileUnreadable
from millpond.options import options
from millpond.session import Session
from millpond.shuffle.coded import Group, coded_files

ROWS = 60_000


STRING = pa.string()


def rows(first: int, kind: pa.DataType = STRING) -> pa.Table:
    """Texts of few values, other ones in each file, and NULLs among them."""
    i = np.arange(first, first + ROWS)
    few = [None if k % 7 == 0 else f"{first // ROWS}-é{k % 5}" for k in i]
    return pa.table({
        "i": i, "few": pa.array(few, kind), "none": pa.nulls(ROWS, kind),
        "many": pa.array([f"text {k * 7919 % ROWS} " * 8 for k in i], kind),
        "d": pa.array(i).cast(pa.decimal128(19, 0)).cast(pa.decimal128(15, 2)),
    })  # fmt: skip


@pytest.fixture(params=["string", "string_view"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> list[str]:
    kind = pa.string() if request.param == "string" else pa.string_view()
    paths = [str(tmp_path / f"{n}.parquet") for n in range(3)]
    for n, path in enumerate(paths):
        pq.write_table(rows(n * ROWS, kind), path, row_group_size=20_000,
                       use_dictionary=["few", "none"], compression="none")  # fmt: skip
    return paths


def schema() -> pa.Schema:
    return rows(0).schema


def place(some: pa.Table, group: Group) -> Sequence[pa.Array]:
    first = group.first_of_all
    assert first == group.first_row + group.place * ROWS
    return [pa.array(np.arange(first, first + some.num_rows))]


def test_rows_and_their_places_are_those_of_the_files(files: list[str]) -> None:
    found = coded_files(files, schema())
    assert found is not None
    batches = list(found.batches(place, 2))
    codes = pa.Table.from_batches(batches)
    assert codes.schema.field("few").type == pa.int32()
    assert codes.schema.field("many").type == pa.string()
    texts = found.texts(codes.drop_columns("__more0"))
    assert texts.schema == found.schema
    texts.validate(full=True)
    wanted = pa.concat_tables([rows(n * ROWS) for n in range(3)])
    assert texts.cast(wanted.schema).equals(wanted)
    assert codes.column("__more0").equals(wanted.column("i"))


@pytest.mark.parametrize("by", ["few, i", "many desc", "d desc"])
def test_sorted_files_are_as_duckdb_sorts(files: list[str], tmp_path: Path, by: str) -> None:
    with millpond.init(threads=2, memory_limit="70MB", progress=False) as sp:
        frame = sp.read_parquet(files).sort(by)
        frame.write_parquet(tmp_path / "out")
        plan = frame.write_parquet_lazy("/nowhere").explain(physical=True)
    assert "range by range" in plan
    want = duckdb.sql(f"FROM read_parquet({files}) ORDER BY {by}, i").to_arrow_table()
    found = duckdb.sql(f"FROM '{tmp_path}/out/*.parquet'").to_arrow_table()
    assert found.equals(want.cast(found.schema))


def test_hash_partitions_are_those_of_duckdbs_reader(files: list[str], tmp_path: Path) -> None:
    with millpond.init(threads=2, progress=False) as sp:
        sp.read_parquet(files).repartition(5, hash_by=["few", "d"]).write_parquet(tmp_path / "a")
        plain = sp.read_parquet(files).filter("i >= 0").repartition(5, hash_by=["few", "d"])
        plain.write_parquet(tmp_path / "b")
    for n in range(5):
        query = "FROM '{}/part-0000{}.parquet' ORDER BY i"
        a, b = (duckdb.sql(query.format(tmp_path / x, n)).fetchall() for x in "ab")
        assert a == b
    assert sum(pq.read_metadata(f).num_rows for f in (tmp_path / "a").glob("*.parquet")) == 3 * ROWS


@pytest.mark.parametrize("limit", ["8GB", "70MB"])
def test_a_random_order_is_that_of_duckdbs_reader(
    files: list[str], tmp_path: Path, limit: str
) -> None:
    pq.write_table(rows(0)[:0], str(tmp_path / "empty.parquet"))
    given = [files[0], str(tmp_path / "empty.parquet"), *files[1:]]
    with millpond.init(shape="fused", progress=False) as sp:
        expected = sp.read_parquet(given).random_shuffle(3).to_arrow()
    with Session(options(threads=2, memory_limit=limit, split_bytes=2 << 20, progress=False)) as sp:
        shuffled = sp.read_parquet(given).random_shuffle(3)
        told = shuffled.write_parquet_lazy("/nowhere").explain(physical=True)
        shuffled.write_parquet(tmp_path / "out")
    assert "in one pass, in memory" in told
    found = duckdb.sql(f"FROM '{tmp_path}/out/*.parquet'").to_arrow_table()
    assert found.equals(expected.cast(found.schema))


def test_what_duckdb_reads_in_another_way_is_left_to_it(files: list[str], tmp_path: Path) -> None:
    other = schema().set(0, pa.field("i", pa.int32()))
    assert coded_files(files, other) is None
    assert coded_files([*files, str(tmp_path / "gone.parquet")], schema()) is None
    pq.write_table(rows(0), tmp_path / "small.parquet", row_group_size=1000)
    assert coded_files([str(tmp_path / "small.parquet")], schema()) is None


@pytest.mark.parametrize(("different", "length", "read"), [(200, 20_000, False), (6000, 200, True)])
def test_texts_that_would_not_fit_as_rows_are_left_to_duckdb(
    tmp_path: Path, different: int, length: int, read: bool
) -> None:
    n, path = 100_000, str(tmp_path / "long.parquet")
    texts = pa.array([f"{i:04d}" * (length // 4) for i in range(different)])
    codes = pa.array(np.arange(n) * 7 % different, pa.int32())
    rows = pa.table({"s": pa.DictionaryArray.from_arrays(codes, texts)})
    pq.write_table(rows, path, compression="none", dictionary_pagesize_limit=8 << 20,
                   store_schema=False)  # fmt: skip
    assert (coded_files([path], pa.schema({"s": pa.string()})) is not None) == read


def test_bytes_that_would_not_fit_as_rows_are_left_to_duckdb(tmp_path: Path) -> None:
    n, path = 100_000, str(tmp_path / "long.parquet")
    long = pa.array([bytes([i]) * 20_000 for i in range(200)])
    codes = pa.array(np.arange(n) * 7 % 200, pa.int32())
    coded = pa.table({"b": pa.DictionaryArray.from_arrays(codes, long)})
    pq.write_table(coded, path, compression="none", dictionary_pagesize_limit=8 << 20,
                   store_schema=False)  # fmt: skip
    assert coded_files([path], pa.schema({"b": pa.binary()})) is None


def test_large_row_groups_are_read_where_there_is_memory_for_them(tmp_path: Path) -> None:
    path, n = str(tmp_path / "wide.parquet"), 40_000
    wide = [f"{i:05d}".encode() * 205 for i in range(n)]
    pq.write_table(pa.table({"b": wide}), path, use_dictionary=False, row_group_size=n)
    assert coded_files([path], pa.schema({"b": pa.binary()})) is None
    found = coded_files([path], pa.schema({"b": pa.binary()}), 64 << 20)
    assert found is not None
    batches = list(found.batches(place, 2))
    assert max(batch.nbytes for batch in batches) <= 16 << 20
    assert pa.Table.from_batches(batches).column("b").to_pylist() == wide
    assert pa.Table.from_batches(batches).column("__more0").to_pylist() == list(range(n))


def test_small_row_groups_are_read_together(tmp_path: Path) -> None:
    path, n = str(tmp_path / "x.parquet"), 600_000
    pq.write_table(pa.table({"i": np.arange(n), "s": ["a", "b"] * (n // 2)}), path,
                   row_group_size=100_000)  # fmt: skip
    found = coded_files([path], pa.schema({"i": pa.int64(), "s": pa.string()}))
    assert found is not None
    batches = list(found.batches(place, 2))
    assert [b.num_rows for b in batches] == [200_000] * 3
    rows = pa.Table.from_batches(batches)
    assert rows.column("__more0").equals(rows.column("i"))
    assert rows.column("i").to_pylist() == list(range(n))
    texts = found.texts(rows.drop_columns("__more0")).column("s")
    assert texts.cast(pa.string()).to_pylist() == ["a", "b"] * (n // 2)


def test_a_text_that_is_none_is_an_error(tmp_path: Path) -> None:
    bad = pa.array([b"fine", b"\xff\xfe"] * ROWS).view(pa.string())
    path = str(tmp_path / "bad.parquet")
    for dictionary in (True, False):
        pq.write_table(pa.table({"s": bad}), path, use_dictionary=dictionary)
        found = coded_files([path], pa.schema({"s": pa.string()}))
        assert found is not None
        with pytest.raises(FileUnreadable, match=r"bad\.parquet"):
            list(found.batches(lambda *_: [], 2))
