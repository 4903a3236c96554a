"""Sorting records, or a wide table by text: Millpond, DuckDB and Polars in turns.

    python benchmarks/sort_peers.py [--size 1GB] [--pairs 5] [--memory-limit 16GB]
    python benchmarks/sort_peers.py --lineitem [--sf 10] [--pairs 5] [--memory-limit 4GB]

Millpond reads and writes plain record files (`read_fixed`, `sort`, `write_fixed`). DuckDB
and Polars have no such format: they read the same keys and values from one Parquet file
and write Parquet, both uncompressed, which spares them the copying of records and costs
them an encoding that random bytes make cheap. Every run is a process of its own, its
imports included, with as many threads as there are cores; the order changes each round.
Printed are medians, and the median of the ratios of each round to Millpond.

With `--lineitem` all three sort that table of TPC-H (written once by `tpchgen-cli` into
--data) by (l_shipdate, l_comment), from Parquet to Parquet; the limit is Millpond's and
DuckDB's, Polars knows none. Millpond keeps equal keys in input order, the others need not.

Measured on 2 cores without other work, duckdb 2.0, polars 2.1: 2 GB of records, 3 rounds, wall
3.4 s against DuckDB's 10.6 s (0.32) and Polars' 14.2 s (0.24), CPU 4.5 s against 17.7 (0.25) and
21.8 (0.21), peak memory 2.4 GB against 4.5 and 3.5.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

import apart
import graysort
import partition

PEERS = ("millpond", "duckdb", "polars")
KEY, VALUE = graysort.KEY, graysort.RECORD - graysort.KEY


def run_lineitem(peer: str, source: Path, out: Path, limit: int) -> None:
    """Sort the table with one of the peers."""
    cores, keys = os.cpu_count() or 1, ["l_shipdate", "l_comment"]
    if peer == "millpond":
        import millpond

        with millpond.init(threads=cores, memory_limit=limit, progress=False) as sp:
            sp.read_parquet(str(source)).sort(keys).write_parquet(str(out))
    elif peer == "duckdb":
        import duckdb

        config = {"threads": cores, "memory_limit": f"{limit}B", "temp_directory": f"{out}.spill"}
        query = f"SELECT * FROM '{source}' ORDER BY {', '.join(keys)}"
        duckdb.connect(config=config).execute(f"COPY ({query}) TO '{out}' (FORMAT parquet)")
    else:
        import polars as pl

        pl.scan_parquet(source).sort(keys).sink_parquet(out, compression="snappy")


def check_lineitem(source: Path, out: Path) -> None:
    """All rows are there, each with all of its values, in order."""
    import duckdb

    files = sorted(map(str, out.glob("*.parquet"))) if out.is_dir() else [str(out)]
    count = "SELECT sum(num_rows)::BIGINT FROM parquet_file_metadata({})"
    if (
        duckdb.sql(count.format(files)).fetchall()
        != duckdb.sql(count.format([str(source)])).fetchall()
    ):
        raise SystemExit(f"{out}: rows are missing")
    values = "SELECT sum(hash(rows)::HUGEINT) FROM read_parquet({}) rows"
    sums = [duckdb.sql(values.format(some)).fetchall() for some in (files, [str(source)])]
    if sums[0] != sums[1]:
        raise SystemExit(f"{out}: rows are others")
    keys = "SELECT (l_shipdate, l_comment) AS k FROM read_parquet({})"
    before = f"SELECT k, lag(k) OVER () AS p FROM ({keys.format(files)})"
    if duckdb.sql(f"SELECT count(*) FROM ({before}) WHERE p > k").fetchall() != [(0,)]:
        raise SystemExit(f"{out}: out of order")


def run(peer: str, folder: Path, limit: int) -> int:
    """Sort with one of the peers; the number of rows."""
    cores, source, out = os.cpu_count() or 1, folder / "rows.parquet", folder / "sorted"
    if peer == "millpond":
        import millpond

        with millpond.init(threads=cores, memory_limit=limit, progress=False) as sp:
            records = sp.read_fixed(str(folder / "in"), {"key": KEY, "value": VALUE})
            return records.sort("key").write_fixed(str(out)).rows
    if peer == "duckdb":
        import duckdb

        config = {"threads": cores, "memory_limit": f"{limit}B", "temp_directory": str(folder)}
        query = f"SELECT * FROM '{source}' ORDER BY key"
        options = "FORMAT parquet, COMPRESSION uncompressed"
        copied = duckdb.connect(config=config).execute(f"COPY ({query}) TO '{out}' ({options})")
        return int(copied.fetchall()[0][0])
    import polars as pl

    pl.scan_parquet(source).sort("key").sink_parquet(out, compression="uncompressed")
    return int(pl.scan_parquet(out).select(pl.len()).collect().item())


def timed(peer: str, folder: Path, args: argparse.Namespace) -> dict[str, float]:
    """Seconds, CPU seconds and peak memory of a new process that sorts with `peer`."""
    out = folder / "sorted"
    command = [sys.executable, __file__, "--run", peer, "--folder", str(folder)]
    if args.lineitem:
        command += ["--lineitem", "--sf", f"{args.sf:g}", "--data", str(args.data)]
    told = apart.spent([*command, "--memory-limit", str(args.memory_limit)])
    if args.lineitem and args.check:
        check_lineitem(args.data / "lineitem.parquet", out)
    shutil.rmtree(out) if out.is_dir() else out.unlink()
    return told


def prepare(folder: Path, n: int) -> None:
    """The same records as record files and as Parquet."""
    import duckdb
    import pyarrow as pa
    import pyarrow.parquet as pq

    graysort.write_set(folder / "in", n, 4, "", os.cpu_count() or 1)
    schema = pa.schema({"key": pa.binary(), "value": pa.binary()})
    path = folder / "rows.parquet"
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
        for first in range(0, n, graysort.RANGE):
            rows = graysort.generate(first, min(graysort.RANGE, n - first))
            columns = [
                pa.FixedSizeBinaryArray.from_buffers(
                    pa.binary(width), len(rows), [None, pa.py_buffer(rows[:, part].copy())]
                )
                for part, width in ((slice(0, KEY), KEY), (slice(KEY, None), VALUE))
            ]
            writer.write_batch(pa.record_batch([c.cast(pa.binary()) for c in columns], schema))
    assert duckdb.sql(f"SELECT count(*) FROM '{path}'").fetchall() == [(n,)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--size", type=graysort.size_bytes, default="1GB")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--memory-limit", type=graysort.size_bytes)
    parser.add_argument("--folder", type=Path, help="where the data may lie: 4 times its size")
    parser.add_argument("--run", choices=PEERS, help=argparse.SUPPRESS)
    parser.add_argument("--lineitem", action="store_true", help="sort that table, not records")
    parser.add_argument("--sf", type=float, default=10)
    parser.add_argument("--data", type=Path, help="where lineitem.parquet is, or is written")
    parser.add_argument("--check", action="store_true", help="look at the order of the table")
    args = parser.parse_args()
    if args.memory_limit is None:
        args.memory_limit = 4 * 10**9 if args.lineitem else 16 * 10**9
    args.data = args.data or Path(tempfile.gettempdir()) / f"millpond-tpch-{args.sf:g}"
    if args.run and args.lineitem:
        out = args.folder / "sorted"
        run_lineitem(args.run, args.data / "lineitem.parquet", out, args.memory_limit)
        return
    if args.run:
        run(args.run, args.folder, args.memory_limit)
        return
    folder = Path(tempfile.mkdtemp(prefix="millpond-sort-", dir=args.folder))
    found: dict[str, list[dict[str, float]]] = {peer: [] for peer in PEERS}
    try:
        if args.lineitem:
            partition.data(args.data, args.sf)
        else:
            prepare(folder, args.size // graysort.RECORD)
        for turn in range(args.pairs):
            for peer in PEERS[turn % 3 :] + PEERS[: turn % 3]:
                found[peer].append(timed(peer, folder, args))
    finally:
        shutil.rmtree(folder)
    work = {"lineitem": args.sf} if args.lineitem else {"size": args.size}
    for peer, runs in found.items():
        told = {name: round(statistics.median(r[name] for r in runs), 2) for name in runs[0]}
        for name in ("wall_s", "cpu_s"):
            ratios = [ours[name] / r[name] for ours, r in zip(found["millpond"], runs, strict=True)]
            told[f"millpond_{name[:-2]}_ratio"] = round(statistics.median(ratios), 3)
        print(json.dumps({"peer": peer, **work, "limit": args.memory_limit} | told))


if __name__ == "__main__":
    main()
