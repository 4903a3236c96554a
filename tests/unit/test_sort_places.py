"""A fused sort of Parquet files keeps ties in input order by the places of their rows."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import millpond


@pytest.mark.parametrize("key", ["k", "k desc nulls first"])
def test_ties_keep_the_order_of_files_and_rows(tmp_path: Path, key: str) -> None:
    places = list(range(9000))
    for file in range(3):
        some = places[file * 3000 : file * 3000 + 3000]
        keys = [None if i % 5 == 0 else i % 3 for i in some]
        table = pa.table({"k": pa.array(keys, pa.int64()), "i": some})
        pq.write_table(table, tmp_path / f"{file}.parquet", row_group_size=500)
    with millpond.init(threads=2) as sp:
        frame = sp.read_parquet(str(tmp_path)).filter("i % 7 > 0").sort(key)
        assert "row_number" not in frame.explain(physical=True)
        found = frame.to_arrow().column("i").to_pylist()

    def rank(i: int) -> int:
        if i % 5 == 0:
            return -1 if "desc" in key else 9
        return -(i % 3) if "desc" in key else i % 3

    # Stable: Python's sort keeps equal ranks in input order.
    if "desc" in key:
        expected = sorted((i for i in places if i % 7), key=lambda i: (i % 5 != 0, rank(i)))
    else:
        expected = sorted((i for i in places if i % 7), key=rank)
    assert found == expected
