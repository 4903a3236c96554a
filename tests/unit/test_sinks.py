"""Sinks: one file or a folder, every format read back, and a target that stays as it was."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from millpond.errors import MillpondError, OptionError, SchemaMismatch, TargetNotEmpty, TaskError
from millpond.options import options
from millpond.session import Session
from millpond.storage.commit import collect
from millpond.storage.local import LocalStorage
from millpond.storage.manifest import newest_manifest


@pytest.fixture(params=["auto", "staged"])
def sp(request: pytest.FixtureRequest) -> Iterator[Session]:
    with Session(options(shape=request.param, split_bytes=1_000, threads=2)) as session:
        yield session


def names(folder: Path) -> list[str]:
    """The files of the user, without the ids of the commits in their names."""
    found = (p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    shown = (p for p in found if not any(part.startswith((".", "_")) for part in p.parts))
    return sorted(re.sub(r"\.mp-[0-9a-f]{16}", "", str(p)) for p in shown)


def numbers(sp: Session, n: int = 1_000) -> Any:
    return sp.from_arrow(pa.table({"x": list(range(n)), "s": [f"é{i}" for i in range(n)]}))


def test_a_path_with_the_ending_of_the_format_is_one_file(sp: Session, tmp_path: Path) -> None:
    for ending in (".parquet", ".csv", ".csv.gz", ".json", ".jsonl.zst", ".arrow"):
        target = tmp_path / f"out{ending}"
        write = getattr(
            numbers(sp), f"write_{'json' if 'json' in ending else ending.split('.')[1]}"
        )

        written = write(target)

        assert written.files == (str(target),)
        assert written.rows == 1_000
    assert len(names(tmp_path)) == 6
    assert sp.read_csv(tmp_path / "out.csv.gz").take(2) == [
        {"x": 0, "s": "é0"},
        {"x": 1, "s": "é1"},
    ]
    assert sp.read_json(tmp_path / "out.jsonl.zst").count() == 1_000
    assert sp.read_arrow(tmp_path / "out.arrow").sort("x desc").take(1) == [{"x": 999, "s": "é999"}]
    assert duckdb.sql(f"SELECT x FROM '{tmp_path}/out.parquet'").fetchall()[-1] == (999,)


@pytest.mark.parametrize("format", ["parquet", "csv", "json", "arrow"])
def test_partitions_that_were_asked_for_are_files(sp: Session, tmp_path: Path, format: str) -> None:
    frame = numbers(sp).repartition(3)
    target = tmp_path / f"out.{format}"

    written = getattr(frame, f"write_{format}")(target)

    assert names(target) == [f"part-0000{i}.{format}" for i in range(3)]
    assert written.rows == 1_000
    assert getattr(sp, f"read_{format}")(target).take_all() == frame.take_all()


@pytest.mark.parametrize("format", ["parquet", "csv", "json"])
@pytest.mark.parametrize("by", [None, "k", ["k", "s"]])
@pytest.mark.parametrize("n", [0, 1_000])
def test_rows_are_counted(sp: Session, tmp_path: Path, format: str, by: Any, n: int) -> None:
    table = pa.table({"x": range(n), "k": [None, "a\nb", "it's", "\0"] * (n // 4), "s": ["é"] * n})
    frame = sp.from_arrow(table.cast(pa.schema({"x": "int64", "k": "string", "s": "string"})))
    for target, write in ((tmp_path / "one", frame), (tmp_path / "some", frame.repartition(3))):
        write_to = getattr(write, f"write_{format}")
        keys = {} if by is None else {"partition_by": by}
        assert write_to(target, **keys).rows == n
        assert write_to(target, **keys, mode="append").rows == n
        files = newest_manifest(LocalStorage(), str(target)).files
        read = getattr(sp, f"read_{format}")
        for file in files if n else ():
            assert file.rows == read(target / file.path).count()


def test_a_fresh_folder_has_plain_names_and_later_commits_bear_an_id(
    sp: Session, tmp_path: Path
) -> None:
    target, split = tmp_path / "out", numbers(sp, 10).repartition(2)
    first = split.write_parquet(target)
    plain = {"part-00000.parquet", "part-00001.parquet"}
    assert {p.name for p in target.iterdir()} == {"_manifest", *plain}
    assert {os.path.basename(file) for file in first.files} == plain
    assert (first.rows, first.bytes) == (10, sum(os.path.getsize(f) for f in first.files))

    second = split.write_parquet(target, mode="append")
    assert not plain & {os.path.basename(file) for file in second.files}
    third = split.write_parquet(target, mode="overwrite")
    assert sorted(map(str, target.glob("*.parquet"))) == sorted(third.files)

    split.write_parquet(tmp_path / "by", partition_by="s")
    assert len(list((tmp_path / "by").glob("s=*/part-0000?-?.parquet"))) == 10


def test_what_a_killed_first_write_left_is_in_nobodys_way(sp: Session, tmp_path: Path) -> None:
    target = tmp_path / "out"
    numbers(sp, 10).write_parquet(target)
    (target / "_manifest" / "00000001.json").unlink()  # As if it died before this one.

    assert len(collect(LocalStorage(), str(target), grace_s=-60)) == 1
    (target / "part-00000.parquet").write_bytes(b"half")
    numbers(sp, 4).write_parquet(target)
    assert sp.read_parquet(target).count() == 4


def test_error_overwrite_and_append(sp: Session, tmp_path: Path) -> None:
    target = tmp_path / "out"
    numbers(sp, 10).repartition(3).write_parquet(target)

    with pytest.raises(TargetNotEmpty, match="mode='overwrite'"):
        numbers(sp).write_parquet(target)
    for n in (2, 3):
        numbers(sp, n).repartition(2).write_parquet(target, mode="append")
    assert [row["x"] for row in sp.read_parquet(target).take_all()] == [*range(10), 0, 1, 0, 1, 2]

    numbers(sp, 4).repartition(2).write_parquet(target, mode="overwrite")
    assert names(target) == ["part-00000.parquet", "part-00001.parquet"]
    assert sp.read_parquet(target).count() == 4


def test_overwriting_what_the_frame_reads(sp: Session, tmp_path: Path) -> None:
    target = tmp_path / "out.parquet"
    numbers(sp, 10).write_parquet(target)

    sp.read_parquet(target).filter("x > 6").write_parquet(target, mode="overwrite")

    assert [row["x"] for row in sp.read_parquet(target).take_all()] == [7, 8, 9]


def test_a_failing_write_leaves_the_target_as_it_was(sp: Session, tmp_path: Path) -> None:
    target = tmp_path / "out"
    numbers(sp, 10).repartition(2).write_parquet(target)
    before = names(tmp_path)

    def broken(row: dict[str, Any]) -> dict[str, Any]:
        if row["x"] == 900:
            raise ValueError("no nine hundred")
        return {"x": row["x"]}

    frame = numbers(sp).repartition(4).map(broken, schema={"x": "BIGINT"})
    for mode in ("overwrite", "append"):
        with pytest.raises(TaskError, match="no nine hundred"):
            frame.write_parquet(target, mode=mode)
    assert names(tmp_path) == before
    assert sp.read_parquet(target).count() == 10


def test_no_rows_are_a_file_with_columns(sp: Session, tmp_path: Path) -> None:
    none = numbers(sp).filter("x < 0")

    assert none.write_parquet(tmp_path / "none.parquet").rows == 0
    assert none.write_csv(tmp_path / "none.csv").rows == 0
    assert sp.read_parquet(tmp_path / "none.parquet").columns == ["x", "s"]
    assert (tmp_path / "none.csv").read_text() == "x,s\n"


def test_fixed_records_there_and_back(sp: Session, tmp_path: Path) -> None:
    frame = numbers(sp).map("format('{:05d}', x) AS key, repeat('v', 3) AS value")

    frame.write_fixed(tmp_path / "out.bin", {"key": 5, "value": 3})

    back = sp.read_fixed(tmp_path / "out.bin", {"key": 5, "value": 3})
    assert back.take(1) == [{"key": b"00000", "value": b"vvv"}]
    back.sort("key desc").write_fixed(tmp_path / "sorted.bin")
    assert (tmp_path / "sorted.bin").read_bytes()[:16] == b"00999vvv00998vvv"
    with pytest.raises(MillpondError, match="has 5 bytes"):
        frame.write_fixed(tmp_path / "bad.bin", {"key": 4, "value": 3})
    with pytest.raises(SchemaMismatch, match="'x' is BIGINT"):
        numbers(sp).write_fixed(tmp_path / "bad.bin", {"x": 8, "s": 3})


def test_options_of_the_formats(sp: Session, tmp_path: Path) -> None:
    told = {"kv_metadata": {"made by": "it's me"}, "field_ids": {"x": 7}}
    numbers(sp, 3).write_parquet(tmp_path / "a.parquet", compression="zstd", **told)
    numbers(sp, 3).write_csv(tmp_path / "a.csv", delim="|", header=False)
    numbers(sp, 3).write_json(tmp_path / "a.json", array=True)

    codec = f"SELECT DISTINCT compression FROM parquet_metadata('{tmp_path}/a.parquet')"
    assert duckdb.sql(codec).fetchall() == [("ZSTD",)]
    kept = f"SELECT decode(key), decode(value) FROM parquet_kv_metadata('{tmp_path}/a.parquet')"
    assert ("made by", "it's me") in duckdb.sql(kept).fetchall()
    ids = f"SELECT field_id FROM parquet_schema('{tmp_path}/a.parquet') WHERE name = 'x'"
    assert duckdb.sql(ids).fetchall() == [(7,)]
    assert (tmp_path / "a.csv").read_text().startswith("0|é0\n")
    assert sp.read_json(tmp_path / "a.json").count() == 3
    with pytest.raises(MillpondError, match=r"(?i)colour"):
        numbers(sp).write_parquet(tmp_path / "b.parquet", colour="red")
    with pytest.raises(OptionError, match="colour"):
        numbers(sp).write_arrow(tmp_path / "b.arrow", colour="red")
    with pytest.raises(OptionError, match="'sometimes'"):
        numbers(sp).write_parquet(tmp_path / "b.parquet", mode="sometimes")
    assert len(names(tmp_path)) == 3


def test_lazy_writes_happen_together(sp: Session, tmp_path: Path) -> None:
    lazy = [numbers(sp, i).write_parquet_lazy(tmp_path / f"{i}.parquet") for i in (1, 2)]
    assert names(tmp_path) == []

    sp.wait(*lazy)

    assert names(tmp_path) == ["1.parquet", "2.parquet"]
    sp.wait(sp.from_items([{"k": 1, "a": 2}]).write_parquet_lazy(tmp_path / "by", partition_by="k"))
    assert names(tmp_path / "by") == ["k=1/part-00000-0.parquet"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_target_is_one_clear_error(sp: Session, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)

    with pytest.raises(MillpondError, match="closed"):
        numbers(sp).write_parquet(tmp_path / "closed" / "a.parquet")


def test_a_target_below_a_file_is_one_clear_error(sp: Session, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")

    with pytest.raises(MillpondError, match="file"):
        numbers(sp).write_parquet(tmp_path / "file" / "a.parquet")
    with pytest.raises(MillpondError, match="file"):
        numbers(sp).write_parquet(tmp_path / "file", mode="append")


def test_a_folder_keeps_one_format(sp: Session, tmp_path: Path) -> None:
    target = tmp_path / "out"
    numbers(sp).write_parquet(target)
    with pytest.raises(OptionError, match=r"holds parquet files, such as 'part-00000.*parquet'"):
        numbers(sp).write_csv(target, mode="append")
    numbers(sp).write_csv(target, mode="overwrite")
    numbers(sp).write_csv(target, mode="append")
    assert sp.read_csv(target).count() == 2 * numbers(sp).count()


def test_a_target_that_holds_files_is_refused_before_anything_is_computed(
    sp: Session, tmp_path: Path
) -> None:
    def computed(row: dict[str, Any]) -> dict[str, Any]:
        raise AssertionError("rows were computed for a target that cannot take them")

    target = tmp_path / "out"
    numbers(sp, 10).write_parquet(target)
    with pytest.raises(TargetNotEmpty):
        numbers(sp, 10).map(computed, schema={"x": "BIGINT"}).write_parquet(target)
