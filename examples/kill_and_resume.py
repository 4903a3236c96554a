"""Kill a job in the middle, with SIGKILL, and run it again: it computes only what is missing.

    python examples/kill_and_resume.py

The job sorts generated orders by amount in tasks small enough to count. The first run is
killed without warning once some of its tasks are done; the second finds their results in
`data_root` by content and goes on. Then the rows are checked against plain DuckDB.
"""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import duckdb

import millpond
from millpond import events

N_ROWS, N_PARTITIONS = 400_000, 6
KILL_AFTER = 10


def job(folder: Path, kill_after: int | None) -> None:
    """One run; with `kill_after`, this process kills itself after so many tasks."""
    finished = reused = 0

    def count(event: events.Event) -> None:
        nonlocal finished, reused
        if isinstance(event, events.StagePlanned):
            reused += event.reused
        if isinstance(event, events.StageFinished) and kill_after and finished >= kill_after:
            print(finished, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        finished += isinstance(event, events.TaskFinished)

    os.environ["MILLPOND_SPLIT_BYTES"] = "200KB"
    with millpond.init(data_root=str(folder / "root"), shape="staged", progress=False) as sp:
        sp.listen(count)
        orders = sp.read_parquet(str(folder / "orders.parquet")).filter("amount > 5")
        by_user = orders.repartition(N_PARTITIONS, hash_by="user_id")
        totals = sp.partial_sql(
            "SELECT user_id, count(*) AS n, sum(amount) AS total FROM {0} GROUP BY user_id", by_user
        )
        totals.sort("total desc, user_id").write_parquet(str(folder / "totals"))
    print(finished, reused, flush=True)


def main(folder: Path) -> None:
    duckdb.sql(
        f"SELECT i AS id, hash(i) % 5000 AS user_id, (hash(i, 1) % 1000)::INTEGER AS amount"
        f" FROM range({N_ROWS}) AS t(i)"
    ).write_parquet(str(folder / "orders.parquet"), row_group_size=20_000)

    killed = run_again(folder, KILL_AFTER)
    before = int(killed.stdout.split()[0])
    print(f"killed with signal {-killed.returncode}: {before} tasks had finished")
    print(f"files at the target: {len(list(folder.glob('totals/*')))}")

    ended = run_again(folder, None)
    after, reused = (int(number) for number in ended.stdout.split())
    print(f"run again: {reused} tasks found, {after} computed")

    got = duckdb.sql(f"FROM read_parquet('{folder}/totals/*.parquet')").fetchall()
    expected = duckdb.sql(
        f"""SELECT user_id, count(*), sum(amount) AS total
            FROM '{folder}/orders.parquet' WHERE amount > 5
            GROUP BY user_id ORDER BY total DESC, user_id"""
    ).fetchall()
    same = "the same as" if got == expected else "NOT the same as"
    print(f"{len(got):,} rows, {same} plain DuckDB's")


def run_again(folder: Path, kill_after: int | None) -> subprocess.CompletedProcess[str]:
    """The job in a process of its own."""
    command = [sys.executable, __file__, str(folder), str(kill_after or 0)]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        job(Path(sys.argv[1]), int(sys.argv[2]) or None)
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
