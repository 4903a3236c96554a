"""Where we differ from smallpond, on purpose: the table of the docs, row by row."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from millpond.errors import MillpondError, OptionError, TargetNotEmpty
from millpond.events import StageFinished
from millpond.options import options
from millpond.session import Session


@pytest.fixture(scope="module", params=["auto", "staged"])
def sp(request: pytest.FixtureRequest) -> Iterator[Session]:
    with Session(options(shape=request.param, split_bytes=500, threads=2)) as session:
        yield session


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    target = tmp_path_factory.mktemp("given") / "rows.parquet"
    rows = {"a": list(range(300)), "k": [i % 7 for i in range(300)], "wide": ["w" * 90] * 300}
    pq.write_table(pa.table(rows), target, row_group_size=50)
    return str(target)


def test_limit_counts_all_rows_not_those_of_a_partition(sp: Session, path: str) -> None:
    assert sp.read_parquet(path).repartition(4).limit(10).map("a").count() == 10


def test_by_rows_writes_each_row_once_in_new_files(sp: Session, path: str, tmp_path: Path) -> None:
    written = sp.read_parquet(path).repartition(2, by_rows=True).write_parquet(tmp_path / "o")

    inodes = {Path(file).stat().st_ino for file in written.files}
    assert (written.rows, len(written.files)) == (300, 2)
    assert Path(path).stat().st_ino not in inodes
    assert all(Path(file).stat().st_nlink == 1 for file in written.files)
    assert [pq.read_metadata(file).num_rows for file in written.files] == [150, 150]


def test_columns_chosen_in_read_parquet_are_what_is_written(
    sp: Session, path: str, tmp_path: Path
) -> None:
    frame = sp.read_parquet(path, columns=["k", "a"]).repartition(3, hash_by="k")

    frame.write_parquet(tmp_path / "o")

    file = next((tmp_path / "o").glob("*.parquet"))
    assert pq.read_schema(file).names == ["k", "a"]


def test_columns_that_nobody_reads_do_not_move(sp: Session, path: str) -> None:
    moved: list[int] = []
    sp.listen(lambda e: moved.append(e.size_bytes) if isinstance(e, StageFinished) else None)
    spread = sp.read_parquet(path).repartition(3, hash_by="k")

    counted = sp.partial_sql("SELECT k, count(*) AS n FROM {0} GROUP BY k", spread).take_all()

    assert len(counted) == 7
    assert sum(moved) < 300 * 90


def test_more_cpus_than_there_are_is_an_error_at_once(sp: Session, path: str) -> None:
    with pytest.raises(OptionError, match="cpus=64"):
        sp.read_parquet(path).map_batches(lambda batch: batch, cpus=64)


def test_a_second_write_is_refused(sp: Session, path: str, tmp_path: Path) -> None:
    sp.read_parquet(path).write_parquet(tmp_path / "o")

    with pytest.raises(TargetNotEmpty):
        sp.read_parquet(path).write_parquet(tmp_path / "o")
    assert sp.read_parquet(str(tmp_path / "o")).count() == 300


def test_a_csv_header_stays_a_header_after_a_repartition(sp: Session, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,s\n" + "".join(f"{i},x\n" for i in range(50)))

    frame = sp.read_csv(str(tmp_path / "a.csv"))

    for spread in (frame.repartition(3), frame.repartition(3, hash_by="s")):
        assert sorted(row["id"] for row in spread.take_all()) == list(range(50))


def test_pandas_rows_are_spread(sp: Session) -> None:
    pd = pytest.importorskip("pandas")
    spread = sp.from_pandas(pd.DataFrame({"a": range(90)})).repartition(3)

    sizes = sp.partial_sql("SELECT count(*) AS n FROM {0}", spread).take_all()

    assert sizes == [{"n": 30}] * 3


def test_csv_and_json_can_be_hash_partitioned(sp: Session, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("k,v\n1,2\n1,3\n2,4\n")
    (tmp_path / "a.json").write_text('{"k": 1}\n{"k": 1}\n{"k": 2}\n')

    for frame in (sp.read_csv(tmp_path / "a.csv"), sp.read_json(tmp_path / "a.json")):
        spread = frame.repartition(4, hash_by="k")
        grouped = sp.partial_sql("SELECT k, count(*) AS n FROM {0} GROUP BY k", spread)
        assert grouped.sort("k").take_all() == [{"k": 1, "n": 2}, {"k": 2, "n": 1}]


def test_null_is_a_key_and_keys_are_tuples(sp: Session) -> None:
    rows = [{"a": "x##y", "b": "z"}, {"a": "x", "b": "y##z"}, {"a": None, "b": None}] * 5
    spread = sp.from_items(rows).repartition(5, hash_by=["a", "b"])

    grouped = sp.partial_sql("SELECT a, b, count(*) AS n FROM {0} GROUP BY a, b", spread)

    assert [row["n"] for row in grouped.take_all()] == [5, 5, 5]


def test_one_and_one_point_nought_meet_in_a_join(sp: Session) -> None:
    whole = sp.from_items([{"k": i} for i in range(50)]).repartition(4, by_rows=True)
    floats = sp.from_items([{"k": float(i), "x": i} for i in range(50)]).repartition(
        4, by_rows=True
    )

    assert whole.join(floats, "k").count() == 50


def test_frames_derived_from_a_computed_one_reuse_it(sp: Session, path: str) -> None:
    computed = sp.read_parquet(path).map("a, random() AS r").compute()

    assert computed.filter("r >= 0").take_all() == computed.take_all()


def test_random_shuffle_is_a_function_of_seed_and_input(sp: Session, path: str) -> None:
    frame = sp.read_parquet(path).select("a")

    def shuffled(given: Any, seed: int) -> list[int]:
        return [row["a"] for row in given.random_shuffle(seed).take_all()]

    assert shuffled(frame, 1) == shuffled(frame.repartition(7), 1)
    assert shuffled(frame, 1) != shuffled(frame, 2)
    assert sorted(shuffled(frame, 1)) == list(range(300)) != shuffled(frame, 1)


def test_frames_that_may_not_lie_together_warn(sp: Session, path: str) -> None:
    frame = sp.read_parquet(path)
    query = "SELECT a.a FROM {0} a JOIN {1} b USING (k)"
    by_a, by_k = frame.repartition(3, hash_by="a"), frame.repartition(3, hash_by="k")

    with pytest.warns(UserWarning, match="co-partitioned") as told:
        sp.partial_sql(query, by_a, by_k)
    assert told[0].filename == __file__  # The user's line, not one of ours.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sp.partial_sql(query, by_a, by_k, co_partitioned=True)
        sp.partial_sql(query, by_k, by_k)
        sp.partial_sql("SELECT a.a FROM {0} a JOIN {1} b ON a.a = b.k", by_a, by_k)
    expected = duckdb.sql(f"SELECT count(*) FROM '{path}' a JOIN '{path}' b USING (k)").fetchall()
    assert by_a.join(by_k, "k").count() == expected[0][0]


def test_braces_are_not_doubled(sp: Session, path: str) -> None:
    frame = sp.partial_sql("SELECT {'a': a} AS s, '{}' AS t FROM {0}", sp.read_parquet(path))

    assert frame.sort("s.a").take(1) == [{"s": {"a": 0}, "t": "{}"}]


def test_memory_is_bounded_and_spilling_is_on() -> None:
    with Session(options(memory_limit="200MB", threads=2)) as sp:
        settings = sp.sql(
            "SELECT current_setting('memory_limit') AS m, current_setting('temp_directory') AS d"
        ).take_all()[0]
    assert settings["m"].endswith("MiB")
    assert float(settings["m"].split()[0]) <= 200
    assert settings["d"]


@pytest.mark.slow
def test_an_edited_function_is_another_function(sp: Session, path: str) -> None:
    frames = [
        sp.read_parquet(path).map(eval(f"lambda row: {{'b': row['a'] + {n}}}")) for n in (1, 2)
    ]

    assert [frame.sort("b").take(1)[0]["b"] for frame in frames] == [1, 2]


def test_partition_numbers_out_of_range_are_errors(sp: Session, path: str) -> None:
    with pytest.raises(MillpondError, match="3"):
        sp.read_parquet(path).repartition(3, by="a % 4").count()
