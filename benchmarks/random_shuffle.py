"""A random order of wide rows, Parquet to Parquet: Millpond and DuckDB in turns.

    python benchmarks/random_shuffle.py [--size 3GB] [--memory-limit 8GB] [--pairs 3]

Rows are an id and 1 KiB of random bytes, so nothing compresses. Millpond runs
`read_parquet().random_shuffle(seed).write_parquet()`, DuckDB `COPY (… ORDER BY random())`;
both write uncompressed Parquet with the same threads and the same memory limit. Each run
is a process of its own, its imports included; wall clock and CPU seconds are those of the
process and its children, memory is the peak of its anonymous pages. Afterwards the ids
that Millpond wrote are checked: all there, once, and not in their old order.

Before each run the files of the one before are removed and the disk is waited for, unmeasured.

Measured on 2 cores, duckdb 2.0, 3 GB at 8 GB, alone, medians of 3 pairs: wall 5.4 s against 8.7 s
(0.55), CPU 7.9 s against 11.1 s (0.59), peak anonymous memory 3.8 GB against 5.7 GB. Before Arrow
read the files, without the wait for the disk: 7.0 s against 12.0 s (0.60), 8.9 s against 15.6 s
(0.57). By parts (two passes, ranges gathered, 2 pairs) it was 1.03 and 0.87: the disk's time
for 9 GB instead of 3 GB. What is left is the disk's time for the output, which DuckDB leaves to
the page cache, fresh memory for the rows that wait, and half a second of imports.
At 2 GB, 2 pairs: wall 9.1 s against 15.1 s (0.61), CPU 11.4 s against 20.3 s (0.56), 1.6 GB
against 2.1 GB.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from pairs import Spent, compare, save, table, timed

from millpond.options import size as bytes_of

WIDTH, ROWS_EACH = 1024, 250_000


def generate(folder: Path, size: int) -> None:
    """Parquet files of 250,000 rows each."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng, n = np.random.default_rng(1), size // (WIDTH + 8)
    for i, first in enumerate(range(0, n, ROWS_EACH)):
        rows = min(ROWS_EACH, n - first)
        data = pa.py_buffer(rng.bytes(rows * WIDTH))
        wide = pa.FixedSizeBinaryArray.from_buffers(pa.binary(WIDTH), rows, [None, data])
        ids = pa.array(np.arange(first, first + rows))
        made = pa.table({"id": ids, "payload": wide.cast(pa.binary())})
        pq.write_table(made, folder / f"{i:04d}.parquet", compression="none",
                       use_dictionary=False, row_group_size=ROWS_EACH // 4)  # fmt: skip


def run(peer: str, source: Path, out: Path, limit: str) -> None:
    cores = os.cpu_count() or 1
    if peer == "millpond":
        import millpond

        with millpond.init(threads=cores, memory_limit=limit, progress=False) as sp:
            frame = sp.read_parquet(str(source)).random_shuffle(seed=1)
            frame.write_parquet(str(out), compression="uncompressed")
        return
    import duckdb

    config = {"threads": cores, "memory_limit": limit, "temp_directory": str(out) + ".spill"}
    query = f"SELECT * FROM '{source}/*.parquet' ORDER BY random()"
    options = "FORMAT parquet, COMPRESSION uncompressed"
    duckdb.connect(config=config).execute(f"COPY ({query}) TO '{out}' ({options})")


def process(peer: str, source: Path, out: Path, limit: str, peaks: dict[str, int]) -> None:
    """One run in a process of its own; notes its peak of anonymous memory."""
    child = subprocess.Popen([sys.executable, __file__, "--run", peer, str(source), str(out),
                              "--memory-limit", limit])  # fmt: skip
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.05):
            peaks[peer] = max(peaks.get(peer, 0), anonymous_bytes(child.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = child.wait()
    ended.set()
    watcher.join()
    assert code == 0, f"{peer} failed"


def clear(out: Path) -> None:
    """No files of an earlier run, and a disk that nobody writes to: DuckDB leaves 3 GB in the page
    cache, which the system would write while we are measured."""
    for old in (out, Path(f"{out}.spill")):
        shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
    os.sync()


def anonymous_bytes(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return sum(int(x.split()[1]) * 1024 for x in text.splitlines() if x.startswith("RssAnon"))


def check(out: Path, n: int) -> None:
    import numpy as np
    import pyarrow.parquet as pq

    files = sorted(out.glob("*.parquet"))
    ids = np.concatenate([pq.read_table(f, columns=["id"]).column("id").to_numpy() for f in files])
    assert (np.sort(ids) == np.arange(n)).all(), "rows are missing, or double"
    assert abs(np.corrcoef(ids, np.arange(n))[0, 1]) < 5 / np.sqrt(n), "the order is not random"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="3GB")
    parser.add_argument("--memory-limit", default="8GB")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--folder")
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run:
        peer, source, out = given.run
        run(peer, Path(source), Path(out), given.memory_limit)
        return
    size = bytes_of("size", given.size)
    folder = Path(tempfile.mkdtemp(prefix="random-", dir=given.folder))
    peaks: dict[str, int] = {}
    try:
        source = folder / "in"
        source.mkdir()
        generate(source, size)

        def side(peer: str) -> Callable[[], Spent]:
            run = timed(lambda: process(peer, source, folder / peer, given.memory_limit, peaks))

            def once() -> Spent:
                clear(folder / peer)
                return run()

            return once

        started = time.strftime("%Y-%m-%d %H:%M")
        row = compare(f"{given.size} at {given.memory_limit}", side("duckdb"), side("millpond"),
                      given.pairs)  # fmt: skip
        check(folder / "millpond", size // (WIDTH + 8))
        table([row], "duckdb")
        print("peak memory, MB:", {peer: size // 10**6 for peer, size in peaks.items()})
        name = f"random_shuffle_{given.size}_{given.memory_limit}"
        save(name, [row], peaks=peaks, started=started)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
