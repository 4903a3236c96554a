"""How columns are written to Parquet files: small, and as everybody reads them."""

from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from millpond.engine.encodings import Encodings, encodings
from millpond.engine.parquet import ParquetFile

N = 20_000
I = np.arange(N)  # noqa: E741
NOISE = np.random.default_rng(1).integers(-(2**63), 2**63 - 1, N, dtype=np.int64)
NULLS = I % 5 == 0


def table() -> pa.Table:
    """Columns of all kinds; what becomes of each is in its name."""
    near, far = NOISE % 1000, NOISE
    decimal = pa.array([f"{cents / 100:.2f}" for cents in near]).cast(pa.decimal128(15, 2))
    columns = {
        "delta_rising": I * 7,
        "delta_near": pa.array(near, mask=NULLS),
        "delta_tiny": pa.array((I % 251 + near % 3).astype(np.uint8)),
        "delta_edge": pa.array(2**63 + I.astype(np.uint64)),
        "delta_date": pa.array(near.astype(np.int32)).cast(pa.date32()),
        "delta_time": pa.array(I * 10**6).cast(pa.timestamp("us")),
        "delta_decimal": decimal,
        "delta_decimal64": decimal.cast(pa.decimal64(15, 2)),
        "coded_far_apart": pa.array(far[:20][near % 20], mask=NULLS),
        "coded_text": pa.array([f"text {i}" for i in near % 9]),
        "coded_codes": pa.array([f"text {i}" for i in near % 9]).dictionary_encode(),
        "plain_noise": far,
        "plain_float": near * 1.1 + I,
        "plain_text": pa.array([f"text {i}" for i in far]),
        "plain_wide": pa.array(far).cast(pa.decimal128(38, 0)),
        "plain_null": pa.nulls(N, pa.int64()),
    }
    return pa.table(columns)


def test_each_column_is_written_as_suits_it() -> None:
    rows = table()
    found = encodings(rows.to_batches(max_chunksize=777), rows.schema)
    wanted = {name: name.partition("_")[0] for name in rows.schema.names}
    wanted["plain_null"] = "coded"  # One value, again and again.
    told = dict.fromkeys(rows.schema.names, "plain")
    told |= dict.fromkeys(found.coded, "coded") | dict.fromkeys(found.deltas, "delta")
    assert told == wanted


@pytest.mark.parametrize("n", [0, 1, 2, 40, 129])
def test_few_rows_are_enough(n: int) -> None:
    rows = table().slice(3, n)
    found = encodings(rows.to_batches(), rows.schema)
    assert "coded_codes" in found.coded
    assert ("delta_rising" in found.deltas) == (n == 129)


@pytest.fixture
def path(tmp_path: Path) -> str:
    rows = table()
    file = ParquetFile(str(tmp_path / "x.parquet"), rows.schema, "snappy")
    how = encodings(rows.to_batches(), rows.schema)
    for first in (0, 9000):
        file.write(rows.slice(first, 9000 if not first else None), how)
    assert file.close().rows == N
    return str(tmp_path / "x.parquet")


def test_every_reader_reads_the_same_values(path: str) -> None:
    polars = pytest.importorskip("polars")
    rows = table()
    want = [rows.column(name).to_pylist() for name in rows.schema.names]
    assert [c.to_pylist() for c in pq.read_table(path).columns] == want
    assert list(polars.read_parquet(path).to_dict(as_series=False).values()) == want
    found = duckdb.sql(f"FROM '{path}'").fetchall()
    assert [list(column) for column in zip(*found, strict=True)] == want
    group = pq.read_metadata(path).row_group(0)
    used = {c.path_in_schema: c.encodings for c in map(group.column, range(group.num_columns))}
    assert {n for n, e in used.items() if "DELTA_BINARY_PACKED" in e} == {
        name for name in rows.schema.names if name.startswith("delta")
    }


def test_differences_are_smaller_than_what_was_there_before(path: str, tmp_path: Path) -> None:
    rows = table()
    before = ParquetFile(str(tmp_path / "y.parquet"), rows.schema, "snappy")
    coded = encodings(rows.to_batches(), rows.schema).coded
    before.write(rows, Encodings(coded))
    before.close()

    def size(name: str, of: str) -> int:
        group = pq.read_metadata(name).row_group(0)
        columns = map(group.column, range(group.num_columns))
        found = {c.path_in_schema: c.total_compressed_size for c in columns}
        return int(found[of])

    for name in ("delta_near", "delta_date", "delta_decimal"):
        assert size(path, name) * 2 < size(str(tmp_path / "y.parquet"), name), name
