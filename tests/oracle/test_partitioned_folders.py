"""Folders named `key=value` that we write are read alike by plain DuckDB and by pyarrow."""

from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset
import pytest

import millpond
from millpond.errors import MillpondError
from millpond.formats.scan import NO_VALUE

# DuckDB 1 writes `key=NULL`, and takes the name that Hive and Spark give NULL for a text.
KNOWS_NULL = not duckdb.__version__.startswith("1.")
VALUES = {
    "text": ["a/b", "a=b", "50%", 'say "x"', "it's", "é 漢字 🦆", "..", ".", None, "", " ", "a\\b"],
    "day": [date(2026, 1, 1), date(1969, 12, 31), None],
    "number": [0, -1, 1 << 40, None],
    "yes": [True, False, None],
    "price": [Decimal("1.50"), Decimal("-0.05"), None],
}
TYPES = {
    "text": pa.string(),
    "day": pa.date32(),
    "number": pa.int64(),
    "yes": pa.bool_(),
    "price": pa.decimal128(9, 2),
}


@pytest.mark.parametrize("shape", ["auto", "staged"])
@pytest.mark.parametrize("key", VALUES)
def test_other_readers_find_the_rows_and_their_keys(tmp_path: Path, key: str, shape: str) -> None:
    values = [value for value in VALUES[key] for _ in range(3)]
    table = pa.table({"a": range(len(values)), key: pa.array(values, TYPES[key])})
    root = tmp_path / "deep" / "out"
    with millpond.init(shape=shape, progress=False) as sp:
        sp.from_arrow(table).write_parquet(root, partition_by=[key])
        ours = sp.read_parquet(root).sort("a").select("a", key).to_arrow()
    files = list(root.glob("*/*.parquet"))
    # Each value has its folder, just below the root; none leads anywhere else.
    assert len({file.parent for file in files}) == len(VALUES[key])
    assert {path.name for path in tmp_path.rglob("*.parquet")} == {file.name for file in files}
    assert sorted(tmp_path.rglob("*.parquet")) == sorted(files)

    expected = [{"a": a, key: value} for a, value in enumerate(values)]
    kind = {"text": "VARCHAR", "day": "DATE", "number": "BIGINT", "yes": "BOOLEAN"}.get(
        key, "DECIMAL(9, 2)"
    )
    hive = "hive_partitioning = true, hive_types_autocast = false"
    read = f"read_parquet('{root}/*/*.parquet', {hive})"
    text = key if KNOWS_NULL else f"nullif({key}, '{NO_VALUE}')"
    found = duckdb.sql(f"SELECT a, {text}::{kind} AS {key} FROM {read}")
    assert by_a(found.arrow(), key) == expected
    # As text: Arrow makes no decimals of the names of folders.
    by_name = pa.dataset.partitioning(pa.schema({key: pa.string()}), flavor="hive")
    theirs = pa.dataset.dataset(
        [str(file) for file in files],
        partitioning=by_name,
        partition_base_dir=str(root),
        format="parquet",
    ).to_table()
    typed = theirs.set_column(1, key, theirs.column(key).cast(TYPES[key]))
    assert by_a(typed, key) == expected
    # We give the types that DuckDB finds by itself.
    known = [str(file) for file in files if KNOWS_NULL or NO_VALUE not in str(file)]
    by_itself = duckdb.sql(f"SELECT a, {key} FROM read_parquet({known})").arrow()
    there = ours if KNOWS_NULL else ours.filter(ours.column(key).is_valid())
    assert by_a(there, key) == by_a(by_itself, key)
    assert ours.column(key).null_count == 3 * VALUES[key].count(None)


def by_a(found: Any, key: str) -> list[dict[str, Any]]:
    table = found if isinstance(found, pa.Table) else found.read_all()
    rows: list[dict[str, Any]] = table.select(["a", key]).sort_by("a").to_pylist()
    return rows


@pytest.mark.parametrize("shape", ["auto", "staged"])
@pytest.mark.parametrize("format", ["parquet", "csv", "json"])
def test_keys_may_have_any_name(tmp_path: Path, format: str, shape: str) -> None:
    """Folders write them as `a%20b=…`, which DuckDB takes for the name itself."""
    keys = ["Order Day", "日本 50%/="]
    items = [{"a": i, keys[0]: ["x", "y/z", None][i % 3], keys[1]: i % 2} for i in range(12)]
    with millpond.init(shape=shape, progress=False) as sp:
        getattr(sp.from_items(items), f"write_{format}")(tmp_path / "out", partition_by=keys)
        ours = getattr(sp, f"read_{format}")(tmp_path / "out")
        assert ours.columns == ["a", *keys]
        assert ours.sort("a").take_all() == items
        assert ours.filter('"Order Day" = \'y/z\' AND "日本 50%/=" = 1').count() == 2
        assert (
            ours.repartition(3, hash_by=keys[1]).group_by(*keys).agg("count(*) AS n").count() == 6
        )
        assert ours.random_shuffle(seed=1).sort("a").take_all() == items
        # What another writer encoded, or put into the files as well.
        by_duckdb = tmp_path / "other"
        duckdb.sql(
            f"COPY (SELECT 1 AS a, 'z' AS \"Order Day\") TO '{by_duckdb}' "
            '(FORMAT parquet, PARTITION_BY "Order Day", WRITE_PARTITION_COLUMNS)'
        )
        assert sp.read_parquet(by_duckdb).take_all() == [{"a": 1, "Order Day": "z"}]


@pytest.mark.parametrize("format", ["parquet", "csv"])
def test_a_text_that_is_no_name_of_a_folder_is_one_clear_error(tmp_path: Path, format: str) -> None:
    """File systems end names at 255 bytes, and escaped, a letter may take twelve."""
    with millpond.init(progress=False) as sp:
        for i, (name, text) in enumerate(
            [("k", "x" * 231), ("k", "🦆" * 20), ("k" * 60, "x" * 200)]
        ):
            frame = sp.from_items([{name: text, "v": 1}, {name: "y", "v": 2}])
            with pytest.raises(MillpondError, match=r"takes more than 230 bytes|is longer than"):
                getattr(frame, f"write_{format}")(tmp_path / str(i), partition_by=name)
        assert not [
            path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".json"
        ]
        for i, text in enumerate(["x" * 230, "é" * 38, "🦆" * 19]):
            frame = sp.from_items([{"k": text, "v": 1}])
            root = tmp_path / f"fits{i}"
            getattr(frame, f"write_{format}")(root, partition_by="k")
            assert getattr(sp, f"read_{format}")(root).take_all() == [{"v": 1, "k": text}]
