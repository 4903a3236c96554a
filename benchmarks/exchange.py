"""The exchange alone: a DuckDB fragment in, partitioned segments out, and back to rows.

    python benchmarks/exchange.py [--rows 6000000] [--partitions 64] [--pairs 5] [--folder DIR]
    python benchmarks/exchange.py --conservation [--pairs 5]

Rows like TPC-H's `lineitem` (16 columns, about 138 Arrow bytes each) are made once as
Parquet in a folder that is removed at the end. Each measurement runs in a process of
its own with one DuckDB thread; MB are 10^6 bytes of Arrow data as DuckDB gives it. The
steps nest, so differences of neighbours are what a step costs:

    scan     DuckDB reads the Parquet file and gives batches with a partition number
    order    … and they are put in partition order, run by run (no file)
    write    … and written as a part
    read     all partitions of that part, one after the other, verified
    both     write and read in one measurement
    unsafe   the same without checksums: what conservation costs

`--conservation` runs `both` and `unsafe` in turns and prints the median of the ratios of
their CPU seconds, pair by pair; the bar is 1.03.

Measured on 2 cores that other work shared (load 2 to 12), so in CPU seconds per GB of Arrow
bytes, medians of 3, 64 partitions: scan 1.1, order 1.5 (0.35 where memory is warm: it waits
for memory, not for compute), write 0.35, read 0.3; scan to segments 300 to 350 MB per CPU
second in 0.4 GB. Before parts went past the page cache with reused memory, writing cost
2.4 (once 3) and reading 1.5. With 1000 partitions 210 MB per CPU second. Without checksums
`both` took 1.04 times as long (7 pairs): the cost of conservation is lost in the noise.
"""

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SQL_ROWS = """
SELECT (i // 4)::BIGINT AS l_orderkey, (hash(i) % 2000000)::BIGINT AS l_partkey,
    (hash(i + 1) % 100000)::BIGINT AS l_suppkey, (i % 7)::BIGINT AS l_linenumber,
    (hash(i + 2) % 50)::DECIMAL(15, 2) AS l_quantity,
    ((hash(i + 3) % 10000000) / 100)::DECIMAL(15, 2) AS l_extendedprice,
    ((hash(i + 4) % 11) / 100)::DECIMAL(15, 2) AS l_discount,
    ((hash(i + 5) % 9) / 100)::DECIMAL(15, 2) AS l_tax,
    ['A', 'N', 'R'][(1 + hash(i + 6) % 3)::BIGINT] AS l_returnflag,
    ['F', 'O'][(1 + hash(i + 7) % 2)::BIGINT] AS l_linestatus,
    DATE '1992-01-01' + (hash(i + 8) % 2500)::INTEGER AS l_shipdate,
    DATE '1992-01-31' + (hash(i + 9) % 2500)::INTEGER AS l_commitdate,
    DATE '1992-02-15' + (hash(i + 10) % 2500)::INTEGER AS l_receiptdate,
    ['DELIVER IN PERSON', 'COLLECT COD', 'NONE', 'TAKE BACK RETURN'][(1 + hash(i + 11) % 4)::BIGINT]
        AS l_shipinstruct,
    ['AIR', 'MAIL', 'SHIP', 'RAIL', 'TRUCK', 'FOB', 'REG AIR'][(1 + hash(i + 12) % 7)::BIGINT]
        AS l_shipmode,
    left(md5((i * 3)::VARCHAR), (10 + hash(i + 13) % 23)::INTEGER) AS l_comment
FROM range({rows}) AS t(i)
"""
SQL_READ = """
SELECT *, (((hash(l_orderkey) >> 32) * {n}) >> 32)::UINTEGER AS partition
FROM read_parquet('{path}')
"""


def measure(step: str, folder: Path, n: int) -> dict[str, float]:
    """One step in this process: seconds, CPU seconds and MB/s."""
    import duckdb

    from millpond.shuffle import part
    from millpond.shuffle.write import PartWriter

    if step == "unsafe":
        part.checksum = lambda pieces, place: 1  # type: ignore[assignment]
        part.segment_is_whole = lambda segment, data: True  # type: ignore[assignment]
    base = duckdb.connect(config={"threads": 1})
    base.execute("SET arrow_lossless_conversion = true")
    reader = base.sql(SQL_READ.format(n=n, path=folder / "rows.parquet")).to_arrow_reader(122_880)
    wall, cpu, size, rows = time.perf_counter(), time.process_time(), 0, 0
    writer = None
    for batch in reader:
        size, rows = size + batch.nbytes, rows + batch.num_rows
        columns = batch.select(range(batch.num_columns - 1))
        if step == "scan":
            continue
        if writer is None:
            writer = PartWriter(str(folder / "x.part"), n, columns.schema)
            if step == "order":
                writer._write_segment = lambda partition, run: (0, 0, 0, 1)  # type: ignore
        writer.add(columns, batch.column(batch.num_columns - 1).to_numpy())
    written = writer.close() if writer else None
    told = {"mb": size / 1e6, "rows": rows}
    if step in ("read", "both", "unsafe"):
        assert written
        if step == "read":
            wall, cpu = time.perf_counter(), time.process_time()
        assert read_all(folder / "x.part", n, written, columns.schema) == rows
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return told | {"wall_s": wall, "cpu_s": cpu, "mb_per_cpu_s": size / 1e6 / cpu, "peak_gb": peak}


def read_all(path: Path, n: int, written: Any, schema: Any) -> int:
    """Read every partition of a part; the number of rows."""
    from millpond.physical.stages import PartRef, PartRows
    from millpond.schema import Schema
    from millpond.shuffle.read import read_part_rows
    from millpond.storage.direct import read_direct

    ref = PartRef(
        0, 0, 0, "", str(path), written.size_bytes, n, written.n_runs, written.index_offset,
        written.index_checksum, written.rows,
    )  # fmt: skip

    def ranges(ref: PartRef, wanted: Sequence[tuple[int, int]]) -> list[memoryview]:
        return read_direct(ref.path, wanted)

    return sum(
        batch.num_rows
        for partition in range(n)
        for batch in read_part_rows(
            PartRows(0, Schema(()), first_partition=partition, parts=(ref,)), schema, ranges
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rows", type=int, default=6_000_000)
    parser.add_argument("--partitions", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--steps", default="scan,order,write,read")
    parser.add_argument("--folder", type=Path, help="where the data may lie; about 2 GB")
    parser.add_argument("--conservation", action="store_true", help="what checksums cost")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        print(json.dumps(measure(args.step, args.folder, args.partitions)))
        return
    import duckdb

    folder = Path(tempfile.mkdtemp(prefix="millpond-exchange-", dir=args.folder))
    try:
        rows = SQL_ROWS.format(rows=args.rows)
        duckdb.sql(f"COPY ({rows}) TO '{folder}/rows.parquet' (FORMAT parquet)")
        found: dict[str, list[dict[str, float]]] = {}
        steps = ["both", "unsafe"] if args.conservation else args.steps.split(",")
        for turn in range(args.pairs):
            # Who goes second finds warmer caches: they take turns.
            for step in steps[::-1] if args.conservation and turn % 2 else steps:
                command = [sys.executable, __file__, "--step", step, "--folder", str(folder)]
                command += ["--partitions", str(args.partitions)]
                out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                found.setdefault(step, []).append(json.loads(out))
        for step, runs in found.items():
            middle = {name: round(statistics.median(r[name] for r in runs), 3) for name in runs[0]}
            print(json.dumps({"step": step, "partitions": args.partitions, **middle}))
        if args.conservation:
            pairs = zip(found["both"], found["unsafe"], strict=True)
            ratio = statistics.median(a["cpu_s"] / b["cpu_s"] for a, b in pairs)
            print(json.dumps({"conservation_cpu_ratio": round(ratio, 3), "bar": 1.03}))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
