"""`lineitem` into 64 hash partitions as Parquet: Millpond, DuckDB and Polars in turns.

    python benchmarks/partition.py [--sf 10] [--pairs 5] [--peers millpond,duckdb,polars]

All three read one Parquet file of TPC-H (written once by `tpchgen-cli`, of the extra `bench`,
into --data) and write 64 files (snappy) by a hash of `l_orderkey`; nobody is asked to keep the
rows of a file in order. Millpond is the public call, within `--memory-limit`; DuckDB's `COPY …
PARTITION_BY` and Polars' `PartitionBy` may take 16 GB. Every run is a process of its own, its
imports included, with as many threads as there are cores; the order changes each round. After
each run the rows are counted, and after the first one the keys of two files are checked not to
meet. Printed are medians, and the medians of the ratios of each round.

Measured at SF 10 on 2 cores (1 round, no other work): Millpond 28.1 CPU s, 16.2 s and 1.4 GB,
Polars 46.8 (0.60), 26.1 s (0.62) and 3.1 GB. In another hour DuckDB took 84.9 CPU s, 43.9 s and
14.2 GB, and Polars 43.1 and 22.6 s. Before integers were written as differences it was 38.8 CPU s,
before texts of few values travelled as codes 56.8; see decision 0114.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import apart
import duckdb

PEERS = ("millpond", "duckdb", "polars")
N = 64
BARS = {("duckdb", "cpu_s"): 0.55, ("duckdb", "wall_s"): 0.6,
        ("polars", "cpu_s"): 0.8, ("polars", "wall_s"): 0.9}  # fmt: skip


def run(peer: str, source: Path, out: Path, limit: str) -> None:
    """Partition with one of the peers, in this process."""
    cores = os.cpu_count() or 1
    if peer == "millpond":
        import millpond

        with millpond.init(threads=cores, memory_limit=limit, progress=False) as sp:
            parts = sp.read_parquet(str(source)).repartition(N, hash_by="l_orderkey")
            parts.write_parquet(str(out))
    elif peer == "duckdb":
        config = {"threads": cores, "memory_limit": "16GB", "temp_directory": f"{out}.spill",
                  "preserve_insertion_order": False}  # fmt: skip
        query = f"SELECT *, hash(l_orderkey) % {N} AS part FROM '{source}'"
        options = "FORMAT parquet, COMPRESSION snappy, PARTITION_BY (part)"
        duckdb.connect(config=config).execute(f"COPY ({query}) TO '{out}' ({options})")
    else:
        import polars as pl

        rows = pl.scan_parquet(source).with_columns(part=pl.col("l_orderkey").hash() % N)
        target = pl.PartitionBy(str(out), key="part", include_key=False)
        rows.sink_parquet(target, compression="snappy", mkdir=True, maintain_order=False)


def data(folder: Path, scale: float) -> Path:
    """The table, written if it is not there."""
    path = folder / "lineitem.parquet"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        program = Path(sysconfig.get_path("scripts")) / "tpchgen-cli"
        if not program.exists():
            raise SystemExit("tpchgen-cli is missing: pip install 'millpond[bench]'")
        command = [program, "parquet", "-s", f"{scale:g}", "--tables=lineitem"]
        subprocess.run([*command, "--output-dir", folder], check=True)
    return path


def check(source: Path, out: Path, thorough: bool) -> int:
    """The number of files; all rows are there, and no key is in two files."""
    files = sorted(out.rglob("*.parquet"))
    counts = "SELECT sum(num_rows)::BIGINT FROM parquet_file_metadata({})"
    names = [str(file) for file in files]
    found = [duckdb.sql(counts.format(some)).fetchall()[0] for some in (names, [str(source)])]
    if found[0] != found[1]:
        raise SystemExit(f"{out}: {found[0]} rows of {found[1]}")
    if thorough:
        by_file = "SELECT l_orderkey, count(DISTINCT filename) AS n FROM read_parquet({}, \
            filename = true, hive_partitioning = false) WHERE l_orderkey % 97 = 0 GROUP BY 1"
        most = duckdb.sql(f"SELECT max(n) FROM ({by_file.format(names)})").fetchall()[0]
        sums = "SELECT sum(hash(l_orderkey, l_comment, l_shipdate, l_extendedprice)::HUGEINT) \
            FROM read_parquet({}, hive_partitioning = false)"
        totals = [duckdb.sql(sums.format(some)).fetchall()[0] for some in (names, [str(source)])]
        if most != (1,) or totals[0] != totals[1]:
            raise SystemExit(f"{out}: a key is in {most} files; sums {totals}")
    return len(files)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--sf", type=float, default=10)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("--memory-limit", default="2GB")
    parser.add_argument("--data", type=Path, help="where lineitem.parquet is, or is written")
    parser.add_argument("--folder", type=Path, help="where the output may lie; twice the data")
    parser.add_argument("--run", choices=PEERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    source = data(args.data or Path(tempfile.gettempdir()) / f"millpond-tpch-{args.sf:g}", args.sf)
    if args.run:
        run(args.run, source, args.folder, args.memory_limit)
        return
    peers = tuple(args.peers.split(","))
    found: dict[str, list[dict[str, float]]] = {peer: [] for peer in peers}
    folder = Path(tempfile.mkdtemp(prefix="millpond-partition-", dir=args.folder))
    try:
        for turn in range(args.pairs):
            first = turn % len(peers)
            for peer in peers[first:] + peers[:first]:
                out = folder / "out"
                command = [sys.executable, __file__, "--run", peer, "--sf", f"{args.sf:g}"]
                command += ["--data", str(source.parent), "--folder", str(out)]
                told = apart.spent([*command, "--memory-limit", args.memory_limit])
                told["files"] = check(source, out, thorough=turn == 0)
                told["mb"] = sum(f.stat().st_size for f in out.rglob("*.parquet")) / 1e6
                found[peer].append(told)
                shutil.rmtree(out)
    finally:
        shutil.rmtree(folder)
    for peer, runs in found.items():
        told = {name: round(statistics.median(r[name] for r in runs), 2) for name in runs[0]}
        for name in ("wall_s", "cpu_s"):
            ours = found.get("millpond", [])
            ratios = [o[name] / r[name] for o, r in zip(ours, runs, strict=False)]
            bar = BARS.get((peer, name))
            if ratios and bar:
                told |= {f"millpond_{name[:-2]}_ratio": round(statistics.median(ratios), 3),
                         f"{name[:-2]}_bar": bar}  # fmt: skip
        print(json.dumps({"peer": peer, "sf": args.sf, "pairs": len(runs)} | told))


if __name__ == "__main__":
    main()
