"""The same work on Ray with two CPUs and on this machine's own runtime, in pairs.

    python benchmarks/ray_local.py [--rows 12000000 | --path LINEITEM] [--size 2GB] [--pairs 3]
                                   [--only files | records | partition | sort | again] [--staged]

Each side chooses its shape by itself; with `--staged` both cut all work into stages. `files`
spreads rows over 16 files by hash: rows like TPC-H's lineitem, of which scale factor 10 has 60
million, or those of the file at `--path`. `records` sorts `--size` of the sort benchmark's records
(`graysort.py`). `partition` spreads the rows over 16 partitions, and counts each. `sort` sorts a
third of them, with all their columns. `again` is a complete run with a data_root, run again: what
is there is found, and nothing computed. Both sessions are open and warm; Ray's cluster is one that
`init` started, on this machine, so what Ray costs is its processes and the way of the bytes
between them.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from graysort import KEY, RECORD, size_bytes, write_set
from pairs import compare, save, table, timed

import millpond

ROWS = """
SELECT i AS l_orderkey, hash(i) % 2000000 AS l_partkey, (hash(i, 1) % 50)::INTEGER AS l_quantity,
       (hash(i, 2) % 10000000 / 100)::DOUBLE AS l_extendedprice,
       DATE '1992-01-01' + (hash(i, 3) % 2500)::INTEGER AS l_shipdate,
       md5(i::VARCHAR) AS l_comment
FROM range({n}) AS t(i)
"""


def files(sp: millpond.Session, path: str, rows: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        spread = sp.read_parquet(path).repartition(16, hash_by="l_partkey")
        assert spread.write_parquet(folder + "/out").rows == rows


def records(sp: millpond.Session, path: str, rows: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = sp.read_fixed(path, {"key": KEY, "value": RECORD - KEY}).sort("key")
        assert found.write_fixed(folder + "/out").rows == rows


def partition(sp: millpond.Session, path: str, rows: int) -> None:
    spread = sp.read_parquet(path).repartition(16, hash_by="l_partkey")
    counts = sp.partial_sql("SELECT count(*) AS n, max(l_comment) AS c FROM {0}", spread)
    assert sum(row["n"] for row in counts.take_all()) == rows


def sort(sp: millpond.Session, path: str, rows: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        third = sp.read_parquet(path).filter("l_orderkey % 3 = 0")
        found = third.sort("l_comment").write_parquet(folder + "/out").rows
        assert rows / 3.1 < found < rows / 2.9


def again(path: str, folder: str) -> float:
    """Seconds of a complete run, run again by a new session."""
    for _ in range(2):
        with millpond.init(data_root=folder + "/root", progress=False, shape="staged") as sp:
            spread = sp.read_parquet(path).repartition(16, hash_by="l_partkey")
            start = time.perf_counter()
            spread.write_parquet(folder + "/out")
            seconds = time.perf_counter() - start
    return seconds


CASES: dict[str, Callable[[millpond.Session, str, int], None]] = {
    "files": files,
    "records": records,
    "partition": partition,
    "sort": sort,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=12_000_000)
    parser.add_argument("--path", help="a file like TPC-H's lineitem, instead of rows made here")
    parser.add_argument("--size", type=size_bytes, default="2GB", help="of all records")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--only", choices=[*CASES, "again"])
    parser.add_argument("--staged", action="store_true", help="the same shape on both sides")
    told = parser.parse_args()
    given: dict[str, Any] = {"threads": 2, "progress": False}
    given["shape"] = "staged" if told.staged else "auto"
    with (
        tempfile.TemporaryDirectory() as folder,
        millpond.init(**given) as local,
        millpond.init(**given, runtime="ray", allow_insecure=True) as on_ray,
    ):
        path, rows, n = told.path or str(Path(folder) / "rows"), [], 0
        if told.only != "records":
            if not told.path:
                local.sql(ROWS.format(n=told.rows)).write_parquet(path)
            n = local.read_parquet(path).count()
        for name in [name for name in CASES if told.only in (None, name)]:
            of, count = path, n
            if name == "records":
                of, count = str(Path(folder) / "records"), told.size // RECORD
                write_set(Path(of), count, 4, "", 2)
            case = CASES[name]
            case(on_ray, of, count)
            ours, theirs = (timed(partial(case, sp, of, count)) for sp in (on_ray, local))
            rows.append(compare(name, theirs, ours, told.pairs))
        seconds = again(path, folder) if told.only in (None, "again") else None
    if rows:
        table(rows, "local")
    if seconds is not None:
        print(f"again: {seconds:.2f} s")
    save("ray_local", rows, input_rows=n, again_s=seconds)


if __name__ == "__main__":
    main()
