"""A key that fills several partitions is cut inside; ties stay in input order."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from millpond.dataframe import DataFrame
from millpond.events import Event, TaskFinished
from millpond.options import options
from millpond.session import Session

pytestmark = pytest.mark.slow
ROWS, FILES = 80_000, 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("heavy")
    rng = np.random.default_rng(0)
    keys = np.where(rng.random(ROWS) < 0.9, 7, rng.integers(0, 1000, ROWS))
    for i in range(FILES):
        own = slice(i * ROWS // FILES, (i + 1) * ROWS // FILES)
        rows = {
            "k": keys[own],
            "i": np.arange(ROWS)[own],
            "z": pa.nulls(ROWS // FILES, pa.string()),
        }
        pq.write_table(pa.table(rows), path / f"{i}.parquet")
    return path


def open_session(*, optimize: bool = True) -> Session:
    return Session(
        options(shape="staged", split_bytes=1, threads=2, verify="rows", progress=False,
                optimize=optimize)
    )  # fmt: skip


@pytest.mark.parametrize("by", ["k", "k desc nulls first", "z", "k % 2, z"])
@pytest.mark.parametrize("moved", [False, True], ids=["from files", "in any order"])
def test_the_partitions_of_a_skewed_sort_are_even(by: str, moved: bool, folder: Path) -> None:
    finished: list[TaskFinished] = []

    def listen(event: Event) -> None:
        if isinstance(event, TaskFinished):
            finished.append(event)

    with open_session(optimize=not moved) as sp:
        sp.listen(listen)
        frame = sp.read_parquet(str(folder))
        keys = {"hash_by": "i"} if moved else {}
        rows = frame.repartition(FILES, **keys).sort(by).to_arrow()

    last = max(event.stage for event in finished)
    sizes = [event.rows for event in finished if event.stage == last]
    assert len(sizes) == FILES
    assert max(sizes) < 1.3 * ROWS / FILES
    if not moved:
        whole = pq.read_table(folder).to_pydict()
        values = {"k": whole["k"], "k desc nulls first": [-k for k in whole["k"]],
                "z": [0] * ROWS, "k % 2, z": [k % 2 for k in whole["k"]]}  # fmt: skip
        expected = np.array(whole["i"])[np.argsort(np.array(values[by]), kind="stable")]
        assert (rows.column("i").to_numpy() == expected).all()
    assert rows.num_rows == ROWS


@pytest.mark.parametrize("by", ["k", "z", "i desc"])
def test_partitions_are_even_where_some_row_groups_are_sampled(
    by: str, folder: Path, tmp_path: Path
) -> None:
    rows = pq.read_table(folder)
    pq.write_table(rows, tmp_path / "one.parquet", row_group_size=500)  # 160; 32 are read.
    split_bytes = (tmp_path / "one.parquet").stat().st_size // 8
    finished: list[TaskFinished] = []

    def listen(event: Event) -> None:
        if isinstance(event, TaskFinished):
            finished.append(event)

    with Session(options(shape="staged", split_bytes=split_bytes, progress=False)) as sp:
        sp.listen(listen)
        frame = sp.read_parquet(str(tmp_path / "one.parquet")).repartition(FILES)
        given = frame.sort(by).to_arrow().column("i").to_pylist()

    last = max(event.stage for event in finished)
    sizes = [event.rows for event in finished if event.stage == last]
    assert len(sizes) == FILES
    assert max(sizes) < 1.3 * ROWS / FILES
    keys = {"k": "k", "z": "i", "i desc": "i"}
    order = np.argsort(rows.column(keys[by]).to_numpy(), kind="stable")
    expected = np.array(rows.column("i"))[order[::-1] if by == "i desc" else order]
    assert given == expected.tolist()


def test_functions_below_a_sort_run_once_a_row(folder: Path, tmp_path: Path) -> None:
    log = str(tmp_path / "calls")

    def noted(batch: pa.Table) -> pa.Table:
        with open(log, "a") as file:
            file.write(f"{batch.num_rows}\n")
        return batch

    with open_session() as sp:
        frame: DataFrame = sp.read_parquet(str(folder)).map_batches(
            noted, schema={"k": "BIGINT", "i": "BIGINT", "z": "VARCHAR"}
        )
        assert frame.sort("k").to_arrow().num_rows == ROWS

    assert sum(map(int, Path(log).read_text().split())) == ROWS


def test_keys_of_a_megabyte_that_begin_alike(tmp_path: Path) -> None:
    common = "x" * 1_000_000
    keys = [f"{common}{i % 5}" for i in range(20)]
    for i in range(4):
        rows = {"k": keys[i * 5 : i * 5 + 5], "i": list(range(i * 5, i * 5 + 5))}
        pq.write_table(pa.table(rows), tmp_path / f"{i}.parquet")

    with open_session() as sp:
        rows = sp.read_parquet(str(tmp_path)).sort("k desc").map("i").take_all()

    assert [row["i"] for row in rows] == sorted(range(20), key=lambda i: -(i % 5))
