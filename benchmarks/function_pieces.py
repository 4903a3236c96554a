"""What the pieces of Python functions cost: those that decisions 0070, 0100 and 0102 weigh.

    python benchmarks/function_pieces.py [--rows 10000000] [--rounds 7]

Milliseconds of processor (of the user, of the system) and of wall clock, medians, for the
columns that `map_batches` reads in benchmarks/functions.py: an integer and a float, in Parquet
as DuckDB writes it (Snappy). DuckDB has its two threads and a stream of 32 MB, as a session
has. Then nanoseconds a row, on one thread, for what stands between two functions of rows.

    scan                DuckDB sums both columns
    stream              DuckDB gives batches, which are dropped: their memory is used again
    stream, fresh       the same with glibc's own settings, which give freed buffers back
    result              the stream, the function, and all that it gives is held
    result, kept        the same, and freed memory is kept (docs/decisions/0102…)
    in a thread         the same, the stream read by a thread of its own
    ranges              six statements over ranges of rows, the next one read meanwhile
    small buffer        `stream` with 4 MB
    arrow               pyarrow decodes row group by row group on one thread, all dropped
    arrow, integers     the same for the integers alone
    plain, integers     the same of a file without compression
    snappy              pyarrow uncompresses as many bytes, no more
    polars              Polars reads both columns
"""

import argparse
import queue
import resource
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from millpond.engine.freed_memory import freed_memory_kept
from millpond.engine.rows import table_rows

BATCH = 122_880
COLUMNS = ["id", "price"]


def rooted(batch: pa.RecordBatch) -> pa.Table:
    price = batch.column("price").to_numpy(zero_copy_only=False)
    return pa.table({"id": batch.column("id"), "root": np.sqrt(price)})


class DuckDB:
    """One instance as a session opens it."""

    def __init__(self, path: str, buffer: str) -> None:
        self.connection = duckdb.connect(config={"threads": 2})
        self.connection.execute(f"SET streaming_buffer_size = '{buffer}'")
        self.sql = f"SELECT id, price FROM '{path}'"

    def scan(self) -> None:
        self.connection.sql(f"SELECT sum(id), sum(price) FROM ({self.sql})").fetchall()

    def stream(self) -> Iterator[pa.RecordBatch]:
        relation = self.connection.sql(self.sql)
        make = getattr(relation, "to_arrow_reader", None) or relation.fetch_arrow_reader
        yield from make(BATCH)

    def ranges(self, rows: int, n: int) -> Iterator[pa.RecordBatch]:
        each = -(-rows // n // BATCH) * BATCH
        for first in range(0, rows, each):
            where = f"WHERE file_row_number BETWEEN {first} AND {first + each - 1}"
            relation = self.connection.sql(f"{self.sql} {where}")
            make = getattr(relation, "to_arrow_table", None) or relation.fetch_arrow_table
            yield from make().to_batches()


def ahead(rows: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    found: queue.Queue[pa.RecordBatch | None] = queue.Queue(32)

    def read() -> None:
        for batch in rows:
            found.put(batch)
        found.put(None)

    thread = threading.Thread(target=read)
    thread.start()
    while (batch := found.get()) is not None:
        yield batch
    thread.join()


def drop(rows: Iterator[Any]) -> None:
    for _ in rows:
        pass


def held(rows: Iterator[pa.RecordBatch]) -> None:
    found = [rooted(batch) for batch in rows]
    assert found


def groups(path: str, columns: list[str]) -> Iterator[pa.Table]:
    file = pq.ParquetFile(path)
    for i in range(file.num_row_groups):
        yield file.read_row_group(i, columns=columns, use_threads=False)


def snappy(path: str) -> Callable[[], None]:
    """Uncompress a page of the integers, as often as there are row groups."""
    meta, codec = pq.read_metadata(path), pa.Codec("snappy")
    values = np.arange(meta.row_group(0).num_rows).tobytes()
    packed = codec.compress(values)

    def go() -> None:
        for _ in range(meta.num_row_groups):
            codec.decompress(packed, decompressed_size=len(values))

    return go


def spent(run: Callable[[], object], rounds: int) -> tuple[float, float, float]:
    """Medians in milliseconds: user, system, wall clock. The first call is not counted."""
    every = []
    for _ in range(rounds + 1):
        before, begin = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        run()
        wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_SELF)
        every.append((after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime, wall))
    user, system, wall = (statistics.median(each) * 1e3 for each in zip(*every[1:], strict=True))
    return user, system, wall


def pieces(folder: str, rows: int, rounds: int) -> None:
    path, plain = f"{folder}/a.parquet", f"{folder}/plain.parquet"
    made = f"SELECT range AS id, (hash(range) % 10000) / 100.0 AS price FROM range({rows})"
    duckdb.sql(f"COPY ({made}) TO '{path}'")
    duckdb.sql(f"COPY (SELECT id FROM '{path}') TO '{plain}' (COMPRESSION uncompressed)")
    usual, small = DuckDB(path, "32MB"), DuckDB(path, "4MB")
    fresh: list[tuple[str, Callable[[], object]]] = [
        ("scan", usual.scan),
        ("stream, fresh", lambda: drop(usual.stream())),
        ("result", lambda: held(usual.stream())),
        ("arrow", lambda: drop(groups(path, COLUMNS))),
        ("arrow, integers", lambda: drop(groups(path, ["id"]))),
        ("plain, integers", lambda: drop(groups(plain, ["id"]))),
        ("snappy", snappy(path)),
        ("polars", lambda: pl.read_parquet(path, columns=COLUMNS)),
    ]
    kept: list[tuple[str, Callable[[], object]]] = [
        ("stream", lambda: drop(usual.stream())),
        ("result, kept", lambda: held(usual.stream())),
        ("in a thread", lambda: held(ahead(usual.stream()))),
        ("ranges", lambda: held(ahead(usual.ranges(rows, 6)))),
        ("small buffer", lambda: drop(small.stream())),
    ]
    print(f"{'':18}{'user':>8}{'system':>8}{'wall':>8}  ms")
    for how, those in ((nullcontext(), fresh), (freed_memory_kept(), kept)):
        measured(how, those, rounds)


def measured(
    how: AbstractContextManager[None], those: list[tuple[str, Callable[[], object]]], rounds: int
) -> None:
    with how:
        for name, run in those:
            user, system, wall = spent(run, rounds)
            print(f"{name:18}{user:8.0f}{system:8.0f}{wall:8.0f}")


def between_rows(rounds: int, n: int = 100_000) -> None:
    """What decision 0100 saves."""
    table = pa.table({"id": range(n), "price": np.random.rand(n), "tag": ["tag"] * n})
    rows = table.to_pylist()
    keys, kinds = [*rows[0]], [int, float, str]

    def looked_at() -> None:
        for row in rows:
            assert [*row] == keys
        for key, kind in zip(keys, kinds, strict=True):
            assert {*map(type, [row[key] for row in rows])} == {kind}

    print(f"{'':18}{'ns a row':>8}")
    for name, run in (
        ("rows to Arrow", lambda: pa.Table.from_pylist(rows, table.schema)),
        ("Arrow to rows", lambda: table_rows(table)),
        ("a look at rows", looked_at),
    ):
        user, system, _ = spent(run, rounds)
        print(f"{name:18}{(user + system) * 1e6 / n:8.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--rounds", type=int, default=7)
    told = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pieces(folder, told.rows, told.rounds)
    between_rows(told.rounds)


if __name__ == "__main__":
    main()
