"""A hash-partitioned write in one pass gives the files of the exchange, in bounded memory."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import millpond
from millpond.errors import MillpondError, WorkerLost
from millpond.shuffle.files import write_files

SCHEMA = pa.schema({"k": pa.int64(), "s": pa.string()})
ROWS = (
    "i, CASE WHEN i % 10 = 0 THEN NULL ELSE i % 13 END AS k, 'text ' || i AS s, "
    "(i / 7)::DECIMAL(15, 2) AS d, DATE '2020-01-01' + (i % 50)::INTEGER AS day, "
    "i % 2 = 0 AS b, (i * 1.5)::DOUBLE AS f, TIMESTAMP '2020-01-01' + to_seconds(i) AS at, "
    "('x' || i)::BLOB AS raw, i::UINTEGER AS u"
)


def written(folder: Path, shape: str, n: int, rows: int, **options: object) -> list[pa.Table]:
    """The files of a hash-partitioned write, as tables sorted by `i`."""
    with millpond.init(shape=shape, threads=2, memory_limit="1GB") as sp:
        many = sp.from_items([{"i": i} for i in range(rows)]) if rows else None
        frame = many or sp.from_items([{"i": 1}]).filter("i > 1")
        parts = frame.map(ROWS).repartition(n, hash_by="k")
        made = parts.write_parquet(str(folder / shape), **options)
        assert made.rows == rows
    names = sorted(path.name for path in (folder / shape).glob("*.parquet"))
    assert [name[:10] for name in names] == [f"part-{number:05d}" for number in range(n)]
    return [pq.read_table(folder / shape / name).sort_by("i") for name in names]


@pytest.mark.parametrize(("n", "rows"), [(1, 50), (7, 2000), (30, 11), (3, 0)])
def test_the_same_rows_in_the_same_files(tmp_path: Path, n: int, rows: int) -> None:
    once, parted = (written(tmp_path, shape, n, rows) for shape in ("auto", "staged"))
    assert [t.to_pylist() for t in once] == [t.to_pylist() for t in parted]
    assert [t.schema.types for t in once] == [t.schema.types for t in parted]


def test_the_codec_is_the_one_asked_for(tmp_path: Path) -> None:
    written(tmp_path, "auto", 2, 100, compression="zstd")
    (file,) = (tmp_path / "auto").glob("part-00000*")
    column = pq.read_metadata(file).row_group(0).column(0)
    assert column.compression == "ZSTD"


@pytest.mark.parametrize(
    ("n", "columns", "options", "why"),
    [
        (7, "i", {}, None),
        (1000, "i", {}, "more than 512 files"),
        (7, "i, [i] AS l", {}, r"l is BIGINT\[\]"),
        (7, "i, 1::HUGEINT AS h", {}, "h is HUGEINT"),
        (7, "i", {"row_group_size": 5000}, "row_group_size=5000 is an option"),
        (7, "i", {"compression": "zstd"}, None),
    ],
)
def test_explain_says_why_not(
    n: int, columns: str, options: dict[str, object], why: str | None
) -> None:
    with millpond.init() as sp:
        frame = sp.from_items([{"i": 1}]).map(columns).repartition(n, hash_by="i")
        told = frame.write_parquet_lazy("/nowhere", **options).explain(physical=True)
    if why is None:
        assert f"fused: {n} files in one pass, without parts" in told
    else:
        import re

        assert re.search(f"staged: {n} files are asked for; not in one pass: {why}", told)


def test_small_row_groups_are_worse_than_an_exchange(tmp_path: Path) -> None:
    pq.write_table(pa.table({"i": np.random.default_rng(0).integers(0, 2**62, 2_000_000)}),
                   tmp_path / "in.parquet")  # fmt: skip
    for limit, how in (("256MB", "row groups of 0.3 MiB are small"), ("8GB", "one pass, without")):
        with millpond.init(memory_limit=limit) as sp:
            parts = sp.read_parquet(str(tmp_path / "in.parquet")).repartition(200, hash_by="i")
            assert how in parts.write_parquet_lazy("/nowhere").explain(physical=True)


def test_with_a_data_root_parts_are_kept(tmp_path: Path) -> None:
    with millpond.init(data_root=str(tmp_path)) as sp:
        parts = sp.from_items([1]).repartition(2, hash_by="item")
        told = parts.write_parquet_lazy(str(tmp_path / "out")).explain(physical=True)
    assert "a rerun can resume" in told


# ---- the writer ----------------------------------------------------------------------


def batches(numbers: np.ndarray, each: int = 1000) -> Iterator[pa.RecordBatch]:
    for first in range(0, len(numbers), each):
        some = numbers[first : first + each]
        keys = pa.array(np.arange(first, first + len(some)))
        texts = pa.array([f"row {i}" for i in range(first, first + len(some))])
        yield pa.record_batch([keys, texts, pa.array(some.astype(np.uint32))],
                              names=["k", "s", "number"])  # fmt: skip


@pytest.mark.parametrize("threads", [1, 3])
def test_a_heavy_partition_leaves_large_row_groups_to_the_others(
    tmp_path: Path, threads: int
) -> None:
    numbers = np.where(np.arange(60_000) % 10 > 0, 0, np.arange(60_000) // 10 % 8)
    paths = [str(tmp_path / f"{i}") for i in range(8)]
    counts = write_files(batches(numbers), paths, SCHEMA, codec="snappy", budget_bytes=300_000,
                         threads=threads)  # fmt: skip
    assert [file.rows for file in counts] == np.bincount(numbers, minlength=8).tolist()
    found = [pq.read_table(path)["k"].to_pylist() for path in paths]
    assert [sorted(keys) for keys in found] == [
        np.flatnonzero(numbers == number).tolist() for number in range(8)
    ]
    groups = [pq.read_metadata(path).num_row_groups for path in paths]
    assert groups[0] >= 4
    assert max(groups[1:]) <= 2


def test_a_file_for_every_number_even_without_rows(tmp_path: Path) -> None:
    paths = [str(tmp_path / f"{i}") for i in range(3)]
    none = write_files(iter(()), paths, SCHEMA, codec="none", budget_bytes=1, threads=2)
    assert [file.rows for file in none] == [0, 0, 0]
    assert all(pq.read_table(path).schema == SCHEMA for path in paths)


@pytest.mark.parametrize("failure", [WorkerLost("the task was cancelled"), OSError(5, "bad disk")])
def test_no_file_is_left_after_an_error(tmp_path: Path, failure: Exception) -> None:
    def broken() -> Iterator[pa.RecordBatch]:
        yield from batches(np.zeros(3000))
        raise failure

    paths = [str(tmp_path / f"{i}") for i in range(3)]
    with pytest.raises(type(failure)):
        write_files(broken(), paths, SCHEMA, codec="none", budget_bytes=20_000, threads=2)
    assert not any(map(os.path.exists, paths))


def test_a_number_past_the_last_file_is_an_error(tmp_path: Path) -> None:
    paths = [str(tmp_path / f"{i}") for i in range(3)]
    with pytest.raises(MillpondError, match="out of range: there are 3"):
        write_files(batches(np.full(10, 3)), paths, SCHEMA, codec="none", budget_bytes=1, threads=1)
