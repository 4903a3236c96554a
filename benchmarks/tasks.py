"""What a task costs beside its work: 500 tiny tasks of the staged shape.

    python benchmarks/tasks.py [--tasks 500] [--pairs 5]

100,000 rows are cut by rows into N partitions, mapped in SQL, and counted in each; the
same with 1 partition is the other side. What a task costs is the difference divided by
the tasks that are more. `exchange` does the same with a hash partition into N, each of whose
readers reads its segment of the one part.

`duckdb` is the floor: bare DuckDB runs the same statement over the same runs of rows, in two
threads with a cursor for each, and gives an Arrow stream.

Found (2026-11-22, DuckDB 2.0, 2 cores, nothing else running), milliseconds a task: 1.0 of
wall clock by rows and in the exchange (the aim is 2), 1.4 of processor; bare DuckDB 0.66 of
wall clock, 1.2 of processor. What is kept between tasks for it: docs/decisions/0101.
"""

import argparse
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import duckdb
from pairs import Compared, compare, save, timed

import millpond

ROWS = 100_000


def by_rows(sp: millpond.Session, path: str, n: int) -> None:
    counted(sp, sp.read_parquet(path).repartition(n, by_rows=True))


def by_hash(sp: millpond.Session, path: str, n: int) -> None:
    counted(sp, sp.read_parquet(path).repartition(n, hash_by="id"))


def counted(sp: millpond.Session, frame: millpond.DataFrame) -> None:
    """Count in each partition: `count` alone would not observe them."""
    counts = sp.partial_sql("SELECT count(*) AS n FROM {0}", frame.map("id * 2 AS twice"))
    assert sum(row["n"] for row in counts.take_all()) == ROWS


def bare(_: millpond.Session, path: str, n: int) -> None:
    """No parts, no verification, no runtime."""
    with duckdb.connect(config={"threads": 2}) as connection:
        rows = connection.sql(f"FROM '{path}/*.parquet'")
        table = getattr(rows, "to_arrow_table", rows.arrow)()

        def task(i: int) -> int:
            first, end = ROWS * i // n, ROWS * (i + 1) // n
            with connection.cursor() as cursor:
                cursor.register("rows_in", table.slice(first, end - first))
                found = cursor.sql(
                    "SELECT count(*) AS n FROM (SELECT id * 2 AS twice FROM rows_in)"
                )
                make = getattr(found, "to_arrow_reader", None) or found.fetch_arrow_reader
                return int(make(122_880).read_all().column("n")[0].as_py())

        with ThreadPoolExecutor(2) as pool:
            assert sum(pool.map(task, range(n))) == ROWS


CASES: dict[str, Callable[[millpond.Session, str, int], None]] = {
    "by rows": by_rows,
    "exchange": by_hash,
    "duckdb": bare,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tasks", type=int, default=500)
    parser.add_argument("--pairs", type=int, default=5)
    told = parser.parse_args()
    rows: list[Compared] = []
    with tempfile.TemporaryDirectory() as folder, millpond.init(progress=False) as sp:
        path = str(Path(folder) / "rows")
        sp.sql(f"SELECT range AS id FROM range({ROWS})").write_parquet(path)
        for name, case in CASES.items():
            case(sp, path, told.tasks)
            one, many = (timed(partial(case, sp, path, n)) for n in (1, told.tasks))
            rows.append(compare(name, one, many, told.pairs))
    print(f"{'':10} {'wall':>9} {'processor':>10}   ms a task, of {told.tasks}")
    for row in rows:
        wall, cpu = (1000 * more / (told.tasks - 1) for more in (row.more_s, row.more_cpu_s))
        print(f"{row.name:10} {wall:9.2f} {cpu:10.2f}")
    save("tasks", rows, tasks=told.tasks)


if __name__ == "__main__":
    main()
