"""Ten thousand partitions: no file, buffer or open descriptor for each of them."""

import threading

import pytest

from millpond.options import options
from millpond.session import Session
from tests.support.open_files import open_at

ROWS = 200_000


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.parametrize("by", ["hash", "one number"])
def test_ten_thousand_partitions_of_few_rows_each(by: str) -> None:
    n, most, ended = 10_000, [0], threading.Event()
    with Session(options(shape="staged", threads=2, memory_limit="512MB", progress=False)) as sp:
        rows = sp.from_items(list(range(4))).repartition(4)
        frame = rows.flat_map(f"unnest(range({ROWS // 4})) * 4 + item AS i")
        frame = frame.repartition(n, hash_by="i") if by == "hash" else frame.repartition(n, by="7")

        def watch() -> None:
            while not ended.wait(0.02):
                most[0] = max(most[0], open_at("/"))

        watcher = threading.Thread(target=watch)
        before = open_at("/")
        watcher.start()
        try:
            sizes = sp.partial_sql("SELECT count(*) AS n, sum(i)::BIGINT AS s FROM {0}", frame)
            found = sizes.to_arrow()
        finally:
            ended.set()
            watcher.join()
    assert found.num_rows == n
    assert sum(found["n"].to_pylist()) == ROWS
    assert sum(x or 0 for x in found["s"].to_pylist()) == ROWS * (ROWS - 1) // 2
    assert by == "hash" or found["n"].to_pylist()[7] == ROWS
    assert most[0] - before < 100
