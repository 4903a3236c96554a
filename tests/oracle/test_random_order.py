"""A random order is a function of seed and input: the same in every shape, and uniform."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from millpond.dataframe import DataFrame
from millpond.options import options
from millpond.session import Session

pytestmark = pytest.mark.slow
ROWS = 4_000
SHAPES = {
    "fused": ("fused", 0), "staged": ("staged", 0), "staged, 1": ("staged", 1),
    "staged, 2": ("staged", 2), "staged, 7": ("staged", 7), "staged, 64": ("staged", 64),
}  # fmt: skip
PIPELINES: dict[str, Callable[[DataFrame], DataFrame]] = {
    "rows of files": lambda f: f.random_shuffle(5),
    "rows that are left": lambda f: f.filter("a % 3 = 0").random_shuffle(5),
    "rows of rows": lambda f: f.flat_map("unnest([a, -a]) AS a, s").random_shuffle(5),
    "sorted rows": lambda f: f.sort("s").random_shuffle(5),
    "rows of a join": lambda f: f.join(f.select("a"), "a").random_shuffle(5),
    "equal rows without order": lambda f: f.repartition(3, hash_by="s").select("s")
    .random_shuffle(5),
    "groups": lambda f: f.group_by("s").agg("count(*) AS a").random_shuffle(5),
    "columns of rows without order": lambda f: f.repartition(3, hash_by="s").random_shuffle(5)
    .select("a"),
    "a sample": lambda f: f.sample(0.2, seed=3),
    "a sample of groups": lambda f: f.group_by("a").agg("count(*) AS s").sample(0.2, seed=3)
    .sort("a"),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("rows")
    for i in range(4):
        a = np.arange(i * ROWS // 4, (i + 1) * ROWS // 4)
        rows = pa.table({"a": a, "s": [f"s{x % 7}" for x in a]})
        pq.write_table(rows, path / f"{i}.parquet", row_group_size=200)
    return str(path)


def rows_of(pipeline: str, shape: str, folder: str) -> list[tuple[object, ...]]:
    kind, n = SHAPES[shape]
    with Session(options(shape=kind, split_bytes=16_000, threads=2, verify="rows",
                         progress=False)) as sp:  # fmt: skip
        frame = sp.read_parquet(folder)
        made = PIPELINES[pipeline](frame.repartition(n) if n else frame)
        return [tuple(row.values()) for row in made.take_all()]


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_the_same_rows_in_the_same_order_in_every_shape(pipeline: str, folder: str) -> None:
    expected = rows_of(pipeline, "fused", folder)

    assert expected
    for shape in SHAPES:
        assert rows_of(pipeline, shape, folder) == expected, shape


def order(seed: int, n: int = 20_000) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    with Session(options(shape="staged", threads=2, progress=False)) as sp:
        frame = sp.from_arrow(pa.table({"a": np.arange(n)})).repartition(4)
        return frame.random_shuffle(seed).to_arrow().column("a").to_numpy()


def test_positions_are_uniform_and_do_not_follow_the_origin() -> None:
    found, n, blocks = order(1), 20_000, 20

    assert (np.sort(found) == np.arange(n)).all()
    # Where a block of the input goes: chi-square with 19 x 19 degrees of freedom.
    counts, _, _ = np.histogram2d(np.arange(n), found, bins=blocks)
    chi = float(((counts - n / blocks**2) ** 2 / (n / blocks**2)).sum())
    freedom = (blocks - 1) ** 2
    assert abs(chi - freedom) < 5 * np.sqrt(2 * freedom)
    # Position against origin: correlation is normal with deviation 1 / sqrt(n).
    assert abs(np.corrcoef(np.arange(n), found)[0, 1]) < 5 / np.sqrt(n)


def test_neighbours_come_from_anywhere() -> None:
    found, n = order(2), 20_000
    apart = np.abs(np.diff(found)) / n

    # The distance of two uniform places: mean 1/3, variance 1/18.
    assert abs(apart.mean() - 1 / 3) < 5 * np.sqrt(1 / 18 / n)
    assert (np.diff(found) == 1).sum() < 10  # About one in all is expected.


def test_another_seed_is_another_order() -> None:
    one, other = order(1), order(2)

    assert (one == other).sum() < 10
    assert abs(np.corrcoef(one, other)[0, 1]) < 5 / np.sqrt(20_000)


def test_a_sample_moves_no_rows(folder: str, tmp_path: Path) -> None:
    with Session(options(shape="staged", split_bytes=4_000, progress=False)) as sp:
        frame = sp.read_parquet(folder)

        said = frame.sample(0.1, seed=1).explain(physical=True)
        found = sum(frame.sample(0.1, seed=seed).count() for seed in range(20)) / 20

    assert "stage 1" not in said
    assert abs(found - 0.1 * ROWS) < 5 * np.sqrt(0.09 * ROWS / 20)


@pytest.mark.parametrize("shape", ["auto", "staged"])
@pytest.mark.parametrize("limit", ["8GB", "160MB"])
def test_written_files_hold_the_order_whether_rows_fit_into_memory_or_not(
    limit: str, shape: str, tmp_path: Path
) -> None:
    n, split_bytes = 300_000, 2_000_000
    rows = pa.table({"a": np.arange(n), "s": [f"{x % 5} {'x' * 150}" for x in range(n)],
                     "l": [None if x % 3 else [x] for x in range(n)]})  # fmt: skip
    # Not compressed: 50 MB, of which 32 MB wait in memory at the smaller limit.
    pq.write_table(rows, tmp_path / "in.parquet", row_group_size=20_000, compression="none",
                   use_dictionary=False)  # fmt: skip
    with Session(options(shape="fused", threads=2, progress=False)) as sp:
        expected = sp.read_parquet(str(tmp_path / "in.parquet")).random_shuffle(3).to_arrow()
    with Session(options(shape=shape, threads=2, memory_limit=limit, progress=False,
                         split_bytes=split_bytes)) as sp:  # fmt: skip
        # Lists are written by DuckDB's encoder, plain columns by Arrow's.
        for i, columns in enumerate([("a", "s", "l"), ("a", "s")]):
            shuffled = sp.read_parquet(str(tmp_path / "in.parquet")).select(*columns)
            shuffled = shuffled.repartition(2, by_rows=True) if shape == "staged" else shuffled
            out = tmp_path / f"out{i}"
            told = shuffled.random_shuffle(3).write_parquet_lazy(str(out)).explain(physical=True)
            assert ("in one pass, in memory" in told) == (shape == "auto" and i == 1)
            made = shuffled.random_shuffle(3).write_parquet(str(out))
            found = pa.concat_tables([pq.read_table(f) for f in sorted(out.glob("*.parquet"))])
            assert made.rows == n
            assert found.to_pylist() == expected.select(list(columns)).to_pylist()
        assert not list(Path(sp._work.scratch).rglob("*.part"))
