"""Sorted rows become Parquet files in order, with what their keys range over; or no file."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import millpond
from millpond.errors import WorkerLost
from millpond.options import options
from millpond.session import Session
from millpond.shuffle.ordered_files import write_ordered

ROWS = 300_000
SQL = f"""
SELECT i, (hash(i) % 1000)::INTEGER AS k, md5(i::VARCHAR) AS s, md5((i + 1)::VARCHAR) AS t,
       CASE WHEN i % 10 > 0 THEN hash(i) % 7 END::UINTEGER AS few
FROM range({ROWS}) AS t(i)
"""
SCHEMA = pa.schema({"k": pa.int64()})


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("rows") / "rows.parquet"
    duckdb.sql(f"COPY ({SQL}) TO '{path}' (FORMAT parquet, ROW_GROUP_SIZE 20_000)")
    return str(path)


def parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("part-*.parquet"))


@pytest.mark.parametrize("shape", ["auto", "staged"])
@pytest.mark.parametrize("by", ["s", "k desc", "few nulls first, k", "k % 10, s desc"])
def test_files_are_in_order_and_ties_in_that_of_the_input(
    source: str, tmp_path: Path, shape: str, by: str
) -> None:
    given = options(
        shape=shape, threads=2, memory_limit="256MB", split_bytes=4_000_000, progress=False
    )
    with Session(given) as sp:
        made = sp.read_parquet(source).sort(by).write_parquet(tmp_path / "out")
    assert made.rows == ROWS
    files = parts(tmp_path / "out")
    assert shape == "staged" or len(files) > 2
    found = pa.concat_tables([pq.read_table(file) for file in files])
    columns = ", ".join(f"{c} NULLS LAST" if "nulls" not in c else c for c in by.split(", "))
    want = duckdb.sql(f"SELECT i FROM '{source}' ORDER BY {columns}, i").to_arrow_table()
    assert found.column("i").equals(want.column("i"))
    assert found.column_names == ["i", "k", "s", "t", "few"]


@pytest.mark.parametrize("n_files", [1, 3])
@pytest.mark.parametrize("by", ["s", "k desc", "few nulls first, k", "k % 10, s desc"])
def test_more_than_memory_holds_is_sorted_range_by_range(
    source: str, tmp_path: Path, by: str, n_files: int
) -> None:
    files = [str(tmp_path / f"{i}.parquet") for i in range(n_files)]
    for i, file in enumerate(files):  # Rows of one value lie in all of them.
        some = f"FROM '{source}' WHERE i % {n_files} = {i}"
        duckdb.sql(f"COPY ({some}) TO '{file}' (FORMAT parquet, ROW_GROUP_SIZE 20_000)")
    with millpond.init(threads=2, memory_limit="128MB", progress=False) as sp:
        rows = sp.read_parquet(files).filter("i % 10 < 9").sort(by)
        made = rows.write_parquet(tmp_path / "out")
        plan = rows.write_parquet_lazy(tmp_path / "other").explain(physical=True)
    assert "\nfused: a sort of more than memory holds, range by range" in plan
    assert made.rows == ROWS * 9 // 10
    out = parts(tmp_path / "out")
    sizes = [pq.read_metadata(file).num_rows for file in out]
    assert len(out) > 10
    assert max(sizes) < 2 * made.rows / len(out)  # A key of many rows is cut inside.
    found = pa.concat_tables([pq.read_table(file) for file in out])
    columns = ", ".join(f"{c} NULLS LAST" if "nulls" not in c else c for c in by.split(", "))
    query = f"SELECT i FROM '{source}' WHERE i % 10 < 9 ORDER BY {columns}, i % {n_files}, i"
    assert found.column("i").equals(duckdb.sql(query).to_arrow_table().column("i"))


@pytest.mark.parametrize("where", ["", "i % 10 < 9"])
def test_a_range_that_memory_does_not_hold_is_sorted_by_duckdb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    file = str(tmp_path / "rows.parquet")
    # Texts of few values and decimals, which travel as codes and in 64 bits.
    select = "i, s, t, hash(i) % 7 || ' of 7' AS f, (i % 999 / 100)::DECIMAL(15, 2) AS d"
    duckdb.sql(
        f"COPY (SELECT {select} FROM ({SQL})) TO '{file}' (FORMAT parquet, ROW_GROUP_SIZE 50_000)"
    )
    asked = list[float]()
    monkeypatch.setattr("millpond.worker.files.holds", lambda size, worker: asked.append(size))
    with millpond.init(threads=2, memory_limit="128MB", progress=False) as sp:
        rows = sp.read_parquet(file)
        rows = rows.filter(where) if where else rows
        rows.sort("f desc, d").write_parquet(tmp_path / "out")
    assert len(asked) > 10
    found = pa.concat_tables([pq.read_table(path) for path in parts(tmp_path / "out")])
    query = f"FROM '{file}' WHERE {where or True} ORDER BY f DESC, d, i"
    want = duckdb.sql(query).to_arrow_table()
    assert found.cast(want.schema).equals(want)


def test_files_tell_the_range_of_a_text_that_they_are_sorted_by(
    source: str, tmp_path: Path
) -> None:
    with millpond.init(threads=2, memory_limit="256MB") as sp:
        sp.read_parquet(source).sort("s").write_parquet(tmp_path / "out")
    footers = [pq.read_metadata(file) for file in parts(tmp_path / "out")]
    groups = [meta.row_group(g) for meta in footers for g in range(meta.num_row_groups)]
    keys = [group.column(2).statistics for group in groups]
    assert all(a.max < b.min for a, b in pairwise(keys))
    assert not any(group.column(3).is_stats_set for group in groups)


def batches(n: int) -> Iterator[pa.RecordBatch]:
    for i in range(n):
        yield pa.record_batch([pa.array(np.full(1000, i))], SCHEMA)


def begin(folder: Path) -> Iterator[str]:
    number = 0
    while True:
        yield str(folder / f"{number:02d}")
        number += 1


@pytest.mark.parametrize(("n", "files"), [(0, 1), (1, 1), (4, 1), (5, 2), (40, 10)])
def test_files_hold_what_they_should(tmp_path: Path, n: int, files: int) -> None:
    made = write_ordered(
        batches(n), begin(tmp_path).__next__, SCHEMA, codec="none", keys=["k"],
        each_bytes=32_000, threads=3,
    )  # fmt: skip
    found = [pq.read_table(path) for path in sorted(tmp_path.iterdir())]
    assert len(made) == len(found) == files
    assert [file.rows for file in made] == [table.num_rows for table in found]
    values = np.concatenate([table.column("k").to_numpy() for table in found])
    assert (values == np.repeat(np.arange(n), 1000)).all()


def test_an_end_that_is_asked_for(tmp_path: Path) -> None:
    calls = iter(range(3))

    def check() -> None:
        if next(calls, None) is None:
            raise WorkerLost("the task was cancelled")

    with pytest.raises(WorkerLost, match="was cancelled"):
        write_ordered(
            batches(40), begin(tmp_path).__next__, SCHEMA, codec="none", keys=[],
            each_bytes=32_000, threads=2, check=check,
        )  # fmt: skip
    assert len(list(tmp_path.iterdir())) == 3  # Whole ones, which their task discards.
