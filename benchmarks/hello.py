"""From nothing to a first result: a whole process, import to answer, against bare DuckDB.

    python benchmarks/hello.py [--pairs 5]

100,000 rows of prices in one Parquet file; each side is a process of its own:

    partitions   three partitions by hash of the ticker, lowest and highest price in each
                 (bare DuckDB: the same three queries by hash of the ticker)
    group-by     the same in one global query
    import       `import duckdb` against `import millpond`

Found (2026-11-22, DuckDB 2.0, Python 3.11, 2 cores, nothing else running, medians of 5 pairs):
beyond bare DuckDB 0.14 s of wall clock for group-by, 0.23 s for partitions (0.17 s for both in
a faster hour); `import millpond` 23 ms. Half of it is to make our dataclasses; with partitions,
a sixth is to import pyarrow.compute.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from pairs import Compared, Spent, compare, save, table

MAKE = """
COPY (SELECT 'T' || (i * 7919 % 500) AS ticker, (hash(i) % 100000) / 100.0 AS price
      FROM range(100000) AS t(i)) TO '{path}'
"""
QUERY = "SELECT ticker, min(price) AS low, max(price) AS high FROM {0} GROUP BY ticker"
OURS = {
    "partitions": """
import millpond
with millpond.init(progress=False) as sp:
    prices = sp.read_parquet("{path}").repartition(3, hash_by="ticker")
    assert sp.partial_sql("{query}", prices).to_arrow().num_rows == 500
""",
    "group-by": """
import millpond
with millpond.init(progress=False) as sp:
    prices = sp.read_parquet("{path}").group_by("ticker")
    assert prices.agg("min(price) AS low", "max(price) AS high").to_arrow().num_rows == 500
""",
    "import": "import millpond",
}
BARE = {
    "partitions": """
import duckdb
tables = []
for i in range(3):
    part = "(FROM '{path}' WHERE hash(ticker) % 3 = " + str(i) + ")"
    r = duckdb.sql("{query}".replace("{0}", part))
    tables.append(r.to_arrow_table() if hasattr(r, "to_arrow_table") else r.fetch_arrow_table())
assert sum(t.num_rows for t in tables) == 500
""",
    "group-by": """
import duckdb
r = duckdb.sql("{query}".replace("{0}", "'{path}'"))
assert (r.to_arrow_table() if hasattr(r, "to_arrow_table") else r.fetch_arrow_table()).num_rows
""",
    "import": "import duckdb",
}


def process(code: str, folder: str) -> Spent:
    """Wall and processor seconds of a Python process that runs `code`."""
    # Byte code is kept, as it is for every installed package, wherever this runs.
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    begin = time.perf_counter()
    started = subprocess.Popen(
        [sys.executable, "-c", code], env={**env, "PYTHONPYCACHEPREFIX": folder}
    )
    _, status, used = os.wait4(started.pid, 0)
    wall = time.perf_counter() - begin
    started.returncode = os.waitstatus_to_exitcode(status)
    if started.returncode:
        raise SystemExit(f"failed:\n{code}")
    return wall, used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=5)
    pairs = parser.parse_args().pairs
    rows: list[Compared] = []
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "prices.parquet")
        import duckdb

        duckdb.sql(MAKE.format(path=path))

        def filled(code: str) -> str:
            return code.replace("{query}", QUERY).replace("{path}", path)

        for name in OURS:
            bare, ours = filled(BARE[name]), filled(OURS[name])
            sides = [bare, ours]
            for code in sides:  # Byte code is compiled, files are in memory.
                process(code, folder)
            spent = [partial(process, code, folder) for code in sides]
            rows.append(compare(name, *spent, pairs))
    table(rows, "duckdb")
    save("hello", rows)


if __name__ == "__main__":
    main()
