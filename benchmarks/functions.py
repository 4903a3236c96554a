"""Python functions over rows and batches, against Polars and Ray Data.

    python benchmarks/functions.py [--rows 1000000] [--batch-rows 10000000] [--pairs 5]

A Parquet file of an integer, a float and a short text. All read it, call the same
function, and hold the result in memory:

    map          a function of one row, `dict -> dict`
                 (Polars: struct.map_elements, Ray Data: map)
    filter       a function of one row, `dict -> bool`
                 (Polars: filter by map_elements, Ray Data: filter)
    map_batches  a function of batches, numpy in and out, on `--batch-rows` rows
                 (Polars: LazyFrame.map_batches, Ray Data: map_batches); each with the size
                 of batches that it has by itself: 122,880 rows here, Polars all at once
    line         map, filter and flat_map with functions, one after the other, against the same
                 without the rule that joins them: each then reads and makes Arrow of its own
    large batches
                 the same as map_batches, with batches of 2**20 rows here and in Ray Data

Ray runs before the clock starts, and all are called once before they are measured. Our
functions run in worker processes, which a session starts at their first use: that is measured
apart, as `first`, against Polars' own `map` without a warm-up. A function of batches that
costs less than to move its rows is called in the session's process
(docs/decisions/0035-light-functions.md).

Found (2026-11-22, Polars 2.1, Ray 2, 2 cores; the line beside other work: 0.90 of the processor
seconds of the same functions apart): in rows/s 2.16 × Polars and 6.9 × Ray Data
for map, 1.41 × and 10 × for filter, 0.82 × Polars for a map with its start. map_batches, three
runs of 7 or 9 pairs: 0.99 × Polars (72 ms, 70 ms; 133 and 118 ms of processor), 1.37 × (85 and
116 ms; 154 and 159) and 1.29 ×, and 20 to 22 × Ray Data; large batches: 0.99 and 1.40 ×, 15 and
18 ×.
Where the time goes: function_pieces.py, docs/decisions/0070-where-a-light-function-spends.md.
"""

import argparse
import logging
import shutil
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import ray
import ray.data
from pairs import Compared, compare, save, table, timed

import millpond
from millpond import workplace
from millpond.optimize import RULES, row_functions_together

LARGE = 2**20
SCHEMA = {"id": "BIGINT", "price": "DOUBLE", "tag": "VARCHAR"}
TYPES = pl.Struct({"id": pl.Int64, "price": pl.Float64, "tag": pl.String})


def taxed(row: dict[str, Any]) -> dict[str, Any]:
    return {"id": row["id"], "price": row["price"] * 1.2, "tag": row["tag"].upper()}


def cheap(row: dict[str, Any]) -> bool:
    return bool(row["price"] < 50.0)


def doubled(row: dict[str, Any]) -> list[dict[str, Any]]:
    return [row, {**row, "id": -row["id"]}] if row["id"] % 2 else [row]


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


def our_batches(sp: millpond.Session, path: str, **size: int) -> int:
    frame = sp.read_parquet(path).select("id", "price")
    schema = {"id": "BIGINT", "root": "DOUBLE"}
    return frame.map_batches(rooted, schema=schema, format="numpy", **size).to_arrow().num_rows


def our_line(sp: millpond.Session, path: str) -> int:
    rows = sp.read_parquet(path).map(taxed, schema=SCHEMA).filter(cheap)
    return rows.flat_map(doubled, schema=SCHEMA).to_arrow().num_rows


def our_line_apart(sp: millpond.Session, path: str) -> int:
    workplace.RULES = tuple(rule for rule in RULES if rule is not row_functions_together)
    try:
        return our_line(sp, path)
    finally:
        workplace.RULES = RULES


def ray_map(path: str) -> int:
    return int(ray.data.read_parquet(path).map(taxed).materialize().count())


def ray_filter(path: str) -> int:
    return int(ray.data.read_parquet(path).filter(cheap).materialize().count())


def ray_batches(path: str, **size: int) -> int:
    rows = ray.data.read_parquet(path).select_columns(["id", "price"])
    return int(rows.map_batches(rooted, batch_format="numpy", **size).materialize().count())


Ours = Callable[[millpond.Session, str], int]
Theirs = Callable[[str], int]
CASES: dict[str, tuple[Ours, Theirs, Theirs]] = {
    "map": (our_map, polars_map, ray_map),
    "filter": (our_filter, polars_filter, ray_filter),
    "map_batches": (our_batches, polars_batches, ray_batches),
    "large batches": (
        partial(our_batches, batch_size=LARGE),
        polars_batches,
        partial(ray_batches, batch_size=LARGE),
    ),
}


def fresh(path: str) -> int:
    with millpond.init(progress=False) as sp:
        return our_map(sp, path)


def written(sp: millpond.Session, folder: str, rows: int) -> str:
    made = sp.sql(
        "SELECT range AS id, (hash(range) % 10000) / 100.0 AS price, 'tag ' || range % 97"
        f" AS tag FROM range({rows})"
    ).write_parquet(str(Path(folder) / str(rows)))
    return made.files[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--batch-rows", type=int, default=10_000_000)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    told = parser.parse_args()
    ray.init(include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="ray")
    compared: list[Compared] = []
    with tempfile.TemporaryDirectory() as folder, millpond.init(progress=False) as sp:
        for name in told.cases:
            rows = told.batch_rows if "batches" in name else told.rows
            path = written(sp, folder, rows)
            ours, *peers = CASES[name]
            for peer, theirs in zip(("polars", "ray"), peers, strict=True):
                assert theirs(path) == ours(sp, path), name
                sides = timed(partial(theirs, path)), timed(partial(ours, sp, path))
                found = compare(f"{name}, {peer}", *sides, told.pairs)
                rate = rows / found.ours_s / 1e6
                print(f"{name:13} {rate:6.2f} M rows/s, {1 / found.ratio:5.2f} x {peer}")
                compared.append(found)
            shutil.rmtree(Path(path).parent)
        path = written(sp, folder, told.rows)
        assert our_line(sp, path) == our_line_apart(sp, path)
        sides = timed(partial(our_line_apart, sp, path)), timed(partial(our_line, sp, path))
        compared.append(compare("line, apart", *sides, told.pairs))
        first = timed(partial(fresh, path))
        compared.append(compare("first, polars", timed(partial(polars_map, path)), first, 3))
    table(compared, "peer")
    save("functions", compared, row_rows=told.rows, batch_rows=told.batch_rows)


if __name__ == "__main__":
    main()
