"""From a frame to shards: the same rows make the same shards, in the frame's order."""

from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

import millpond
from millpond import events
from millpond.errors import OptionError, SchemaMismatch, TargetNotEmpty
from millpond.formats.shard_values import canonical, value_bytes
from millpond.options import options
from millpond.physical.planner import plan_stages
from millpond.physical.stages import ToPart
from millpond.plan.sinks import dataset_sink
from millpond.session import Session
from tests.support.sessions import Counted

# Nulls at several depths, and values of no fixed length: all that a cut might leave a trace in.
SOME_OF_ALL = """
SELECT i AS id, CASE WHEN i % 7 <> 0 THEN 'row ' || i END AS "Zeile ✓",
       CASE WHEN i % 5 <> 0 THEN i * 1.5::DOUBLE END AS x, CASE WHEN i % 3 <> 0 THEN i % 2 = 0 END AS b,
       [CASE WHEN j % 3 <> 0 THEN j::INTEGER END FOR j IN range(i % 23)] AS tokens,
       CASE WHEN i % 11 <> 0 THEN {a: i, b: CASE WHEN i % 13 <> 0 THEN 'z' || i END} END AS s,
       MAP {'k' || (i % 3): i} AS m, (CASE WHEN i % 4 <> 0 THEN '[' || i || ', 2]' END)::INTEGER[2] AS pair
FROM range(6011) AS t(i)
"""  # noqa: E501


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("source") / "rows.parquet")
    duckdb.sql(f"COPY ({SOME_OF_ALL}) TO '{path}' (ROW_GROUP_SIZE 2048)")
    return path


SIZES = [{"rows_per_shard": 1001}, {"shard_bytes": "60KB"}, {"shard_bytes": "60KB", "align": 8192}]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_shards_are_the_same_bytes_however_the_rows_were_cut(
    source: str, tmp_path: Path, size: dict[str, Any]
) -> None:
    expected = duckdb.sql(f"FROM '{source}' WHERE id % 17 <> 3").to_arrow_table()
    seen = set()
    for n in (1, 2, 7):
        with Counted(shape="auto") as run:
            frame = run.session.read_parquet(source).filter("id % 17 <> 3")
            frame = frame.repartition(n, by_rows=True) if n > 1 else frame
            made = frame.write_dataset(tmp_path / str(n), **size)
            assert run.finished[max(run.finished)] == len(made.files) > 3  # A task writes one.
        seen.add(tuple(Path(file).read_bytes() for file in made.files))
        ds = millpond.open_dataset(tmp_path / str(n))
        assert ds[list(range(len(ds)))].to_pylist() == expected.to_pylist()
    assert len(seen) == 1


def test_the_order_is_the_frames(tmp_path: Path) -> None:
    with Counted(shape="auto") as run:
        frame = run.session.from_items(list(range(3000))).random_shuffle(seed=3)
        frame.write_dataset(tmp_path / "set", rows_per_shard=271)
        shuffled = frame.to_arrow()
    ds = millpond.open_dataset(tmp_path / "set")
    assert ds[list(range(3000))].column("item").to_pylist() == shuffled["item"].to_pylist()
    assert [shard.rows for shard in _index(tmp_path / "set").shards] == [271] * 11 + [19]


def test_bytes_of_values_add_up_however_rows_are_cut(source: str) -> None:
    (batch,) = duckdb.sql(f"FROM '{source}'").to_arrow_table().combine_chunks().to_batches()
    for first in (0, 1, 13, 2050, 6011):
        parts = batch.slice(0, first), batch.slice(first)
        assert sum(map(value_bytes, parts)) == value_bytes(batch)
        for column, part in zip(batch.columns, parts[1].columns, strict=True):
            assert canonical(part).equals(column.slice(first))


def test_a_run_that_is_done_is_found_done(source: str, tmp_path: Path) -> None:
    for tasks in (1, 0):
        with Counted(shape="auto", data_root=str(tmp_path / "root")) as run:
            frame = run.session.read_parquet(source)
            made = frame.write_dataset(tmp_path / "set", rows_per_shard=1000)
            assert (run.tasks > 0) == (tasks > 0)
            assert (made.rows, len(made.files)) == (6011, 7)
            with pytest.raises(TargetNotEmpty):  # The second of one script is another one.
                frame.write_dataset(tmp_path / "set", rows_per_shard=1000)


def test_the_first_of_two_writes_stands(source: str, tmp_path: Path) -> None:
    """The other one begins to write before the first is done, and ends after it."""
    path = str(tmp_path / "set")
    with Counted(shape="auto") as slow, Counted(shape="auto") as fast:
        rows = slow.session.read_parquet(source)

        def overtake(event: events.Event) -> None:
            if isinstance(event, events.StageFinished) and event.stage == 1:
                fast.session.from_items([1, 2]).write_dataset(path)

        slow.session.listen(overtake)
        with pytest.raises(TargetNotEmpty):
            rows.write_dataset(path, rows_per_shard=2000)
    assert len(millpond.open_dataset(path)) == 2
    assert len([file for file in Path(path).rglob("*") if file.is_file()]) == 2


def test_what_cannot_be_written_is_said_before_anything_runs(tmp_path: Path) -> None:
    with Counted(shape="auto") as run:
        frame = run.session.from_items([1, 2])
        for bad in (
            {"rows_per_shard": 0}, {"rows_per_shard": 1.5}, {"shard_bytes": 0}, {"align": 100},
            {"shard_bytes": "many"}, {"align": 8196},
        ):  # fmt: skip
            with pytest.raises(OptionError, match="|".join(bad)):
                frame.write_dataset(tmp_path / "set", **bad)
        with pytest.raises(SchemaMismatch, match="xxh3:a"):
            frame.map('item AS "xxh3:a"').write_dataset(tmp_path / "set")
        with pytest.raises(OptionError, match="path is empty"):
            frame.write_dataset("")
        (tmp_path / "notes.txt").write_text("mine")
        with pytest.raises(TargetNotEmpty):
            frame.write_dataset(tmp_path)
        assert run.tasks == 0
    assert [file.name for file in tmp_path.rglob("*")] == ["notes.txt"]


def _index(path: Path) -> Any:
    from millpond.formats.shard_index import read_index

    return read_index((path / "dataset.json").read_bytes(), str(path))


@pytest.mark.parametrize(
    "values",
    [
        [True] * 40,
        [True, None, False, True, None] * 8,
        [1, None, 3, 4] * 10,
        ["a", None, "bc"] * 13,
    ],
    ids=["all", "some", "numbers", "text"],
)
def test_a_slice_has_the_bytes_of_a_fresh_array(values: list[Any]) -> None:
    whole = pa.array(values)
    for first, n in ((0, 5), (3, 5), (8, 16), (7, 9), (20, 13)):
        part, fresh = (
            canonical(whole.slice(first, n)),
            canonical(pa.array(values[first : first + n])),
        )
        found, want = ([b and b.to_pybytes() for b in a.buffers()] for a in (part, fresh))
        assert found == want
        assert part.to_pylist() == values[first : first + n]


def test_parts_of_a_set_share_so_much_of_the_page_cache(tmp_path: Path) -> None:
    with Session(options(threads=2, split_bytes=1 << 20, progress=False)) as sp:
        for n in (1, 7):
            rows = sp.from_items(list(range(1000))).repartition(n, by_rows=True)
            sink = dataset_sink(rows.plan, str(tmp_path / "set"), None, 1 << 28, None)
            before, _ = plan_stages(sink, sp._work.settings()).stages[-2:]
            assert isinstance(before.output, ToPart)
            assert before.output.sized
            assert before.output.cached_bytes == (256 << 20) // n
