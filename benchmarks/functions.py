"""Python functions over rows and batches, against Polars.

    python benchmarks/functions.py [--rows 1000000] [--pairs 5]

One Parquet file of an integer, a float and a short text. Both sides read it, call the
same function, and count what came out:

    map          a function of one row, `dict -> dict`   (Polars: struct.map_elements)
    filter       a function of one row, `dict -> bool`   (Polars: filter by map_elements)
    map_batches  a function of batches, numpy in and out (Polars: LazyFrame.map_batches)

Our functions run in worker processes, which a session starts at their first use: that is
measured apart, as `first`, against Polars' own `map` without a warm-up.

Found (2026-11-22, Polars 2.1, 2 cores, nothing else running): in rows/s 1.97 × Polars for
map and 1.35 × for filter (they use both cores), 0.82 × for a map with its start. A trivial
map_batches is far behind, 0.19 ×: 16 ms there, 100 ms here, for what a run costs and for
rows that travel between processes.
"""

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from pairs import Compared, compare, save, table, timed

import millpond

SCHEMA = {"id": "BIGINT", "price": "DOUBLE", "tag": "VARCHAR"}
TYPES = pl.Struct({"id": pl.Int64, "price": pl.Float64, "tag": pl.String})


def taxed(row: dict[str, Any]) -> dict[str, Any]:
    return {"id": row["id"], "price": row["price"] * 1.2, "tag": row["tag"].upper()}


def cheap(row: dict[str, Any]) -> bool:
    return bool(row["price"] < 50.0)


def rooted(batch: dict[str, Any]) -> dict[str, Any]:
    return {"id": batch["id"], "root": np.sqrt(batch["price"])}


def rooted_frame(frame: pl.DataFrame) -> pl.DataFrame:
    made = rooted({name: frame[name].to_numpy() for name in ("id", "price")})
    return pl.DataFrame(made)


def polars_map(path: str) -> int:
    rows = pl.scan_parquet(path).select(pl.struct("*").map_elements(taxed, TYPES).alias("r"))
    return rows.unnest("r").collect().height


def polars_filter(path: str) -> int:
    return pl.scan_parquet(path).filter(pl.struct("*").map_elements(cheap, pl.Boolean)).collect().height  # noqa: E501  # fmt: skip


def polars_batches(path: str) -> int:
    schema = {"id": pl.Int64, "root": pl.Float64}
    frame = pl.scan_parquet(path).select("id", "price")
    return frame.map_batches(rooted_frame, schema=schema).collect().height


def our_map(sp: millpond.Session, path: str) -> int:
    return sp.read_parquet(path).map(taxed, schema=SCHEMA).to_arrow().num_rows


def our_filter(sp: millpond.Session, path: str) -> int:
    return sp.read_parquet(path).filter(cheap).to_arrow().num_rows


def our_batches(sp: millpond.Session, path: str) -> int:
    frame = sp.read_parquet(path).select("id", "price")
    schema = {"id": "BIGINT", "root": "DOUBLE"}
    return frame.map_batches(rooted, schema=schema, format="numpy").to_arrow().num_rows


CASES: dict[str, tuple[Callable[[str], int], Callable[[millpond.Session, str], int]]] = {
    "map": (polars_map, our_map),
    "filter": (polars_filter, our_filter),
    "map_batches": (polars_batches, our_batches),
}


def fresh(path: str) -> int:
    with millpond.init(progress=False) as sp:
        return our_map(sp, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--pairs", type=int, default=5)
    told = parser.parse_args()
    compared: list[Compared] = []
    with tempfile.TemporaryDirectory() as folder, millpond.init(progress=False) as sp:
        made = sp.sql(
            "SELECT range AS id, (hash(range) % 10000) / 100.0 AS price, 'tag ' || range % 97"
            f" AS tag FROM range({told.rows})"
        ).write_parquet(str(Path(folder) / "rows"))
        (path,) = made.files
        for name, (theirs, ours) in CASES.items():
            assert theirs(path) == ours(sp, path), name
            sides = timed(partial(theirs, path)), timed(partial(ours, sp, path))
            compared.append(compare(name, *sides, told.pairs))
        first = timed(partial(fresh, path))
        compared.append(compare("first", timed(partial(polars_map, path)), first, told.pairs))
    table(compared, "polars")
    for row in compared:
        rate = told.rows / row.ours_s / 1e6
        print(f"{row.name:12} {rate:6.2f} M rows/s, {1 / row.ratio:5.2f} x Polars")
    save("functions", compared, rows_in=told.rows)


if __name__ == "__main__":
    main()
