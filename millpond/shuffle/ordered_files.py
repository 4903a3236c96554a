"""Rows in order to Parquet files, one after the other: as many at once as there are threads.

Arrow's encoder takes half the CPU of DuckDB's, and none to read a file again for its checksum,
but one thread a file. See benchmarks/sort_peers.py.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import pyarrow as pa

from millpond.engine import parquet
from millpond.engine.parquet import Made


def write_ordered(
    batches: Iterator[pa.RecordBatch],
    begun: Callable[[], str],
    schema: pa.Schema,
    *,
    codec: str,
    keys: Sequence[str],
    each_bytes: int,
    threads: int,
    check: Callable[[], None] = lambda: None,
) -> list[Made]:
    """Write files of `each_bytes` of rows, and one at least; `begun` gives the path of the next.

    The rows of a file for each thread, and of one more, are in memory. `check` is called
    often; it raises to make an end.
    """
    made: list[Made] = []
    under_way: deque[Future[Made]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="write-files") as pool:
        for rows in _cut(batches, each_bytes):
            check()
            if len(under_way) == threads:
                made.append(under_way.popleft().result())
            path = begun()
            under_way.append(pool.submit(parquet.write_file, rows, path, schema, codec, keys))
        made += (later.result() for later in under_way)
    return made


def _cut(batches: Iterator[pa.RecordBatch], each_bytes: int) -> Iterator[Iterator[pa.RecordBatch]]:
    """The batches of each file, which are forgotten as they are taken."""
    held, size, some = deque[pa.RecordBatch](), 0, False
    for batch in batches:
        if size >= each_bytes:
            yield _taken(held)
            held, size = deque(), 0
        held.append(batch)
        size, some = size + batch.nbytes, True
    if held or not some:
        yield _taken(held)


def _taken(held: deque[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    while held:
        yield held.popleft()
