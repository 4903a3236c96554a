"""A disk that fills in the middle: one clear error, and nothing half-done left behind."""

import os
import subprocess
import tempfile
from pathlib import Path

import duckdb
import pytest

from millpond.errors import DiskFull, StorageError
from millpond.options import options
from millpond.session import Session
from tests.support.sessions import Counted


def files_below(folder: Path) -> list[Path]:
    return [Path(root) / name for root, _, names in os.walk(folder) for name in names]


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["fused", "staged"])
@pytest.mark.parametrize("format", ["parquet", "arrow"])
def test_a_target_that_fills(small_disk: Path, shape: str, format: str) -> None:
    with Counted(shape=shape) as run:
        many = run.session.from_items(list(range(10))).flat_map("unnest(range(60000)) AS i")
        wide = many.map("i, hash(i) AS h, 'x' || hash(i, 1) AS s")
        with pytest.raises(DiskFull, match=r"(?i)no space"):
            getattr(wide, f"write_{format}")(str(small_disk / "out"))
        assert os.statvfs(small_disk).f_bfree == os.statvfs(small_disk).f_blocks  # None is open.
    assert files_below(small_disk) == []


@pytest.mark.slow
def test_a_target_of_many_files_that_fills(small_disk: Path) -> None:
    with Counted(shape="auto") as run:
        many = run.session.from_items(list(range(10))).flat_map("unnest(range(60000)) AS i")
        parts = many.map("i, md5(i::VARCHAR) AS s").repartition(5, hash_by="i")
        assert "one pass" in parts.write_parquet_lazy("/nowhere").explain(physical=True)
        with pytest.raises(DiskFull, match=r"(?i)no space"):
            parts.write_parquet(str(small_disk / "out"))
    assert files_below(small_disk) == []


@pytest.mark.slow
def test_a_target_of_a_random_order_that_fills(small_disk: Path, tmp_path: Path) -> None:
    with Session(options(threads=2, split_bytes=2_000_000, progress=False)) as sp:
        many = sp.from_items(list(range(10))).flat_map("unnest(range(20000)) AS i")
        many = many.map("i, md5(i::VARCHAR) AS s, md5(i::VARCHAR) AS t")
        many.write_parquet(str(tmp_path / "in"), compression="uncompressed",
                           dictionary_size_limit=1)  # fmt: skip
        before = {file: file.stat().st_mtime_ns for file in files_below(tmp_path / "in")}
        frame = sp.read_parquet(str(tmp_path / "in")).random_shuffle(1)
        assert "in one pass" in frame.write_parquet_lazy("/nowhere").explain(physical=True)
        with pytest.raises(DiskFull, match=r"(?i)no space"):
            frame.write_parquet(str(small_disk / "out"), compression="uncompressed")
        assert not list(Path(sp._work.scratch).rglob("*.part"))
    assert files_below(small_disk) == []
    after = {file: file.stat().st_mtime_ns for file in files_below(tmp_path / "in")}
    assert before == after


@pytest.mark.slow
def test_a_data_root_that_fills(small_disk: Path) -> None:
    with Counted(shape="staged", data_root=str(small_disk / "root")) as run:
        many = run.session.from_items(list(range(10))).flat_map("unnest(range(60000)) AS i")
        with pytest.raises(DiskFull, match=r"(?i)no space"):
            many.map("i, hash(i) AS h").repartition(4, hash_by="h").partial_sort("h").to_arrow()
    assert [file for file in files_below(small_disk) if file.suffix == ".part"] == []


def test_a_data_root_that_cannot_be_written_is_an_error_that_says_so(
    small_disk: Path, tmp_path: Path
) -> None:
    """From the start, or in the middle of a session, whose tasks write there."""
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="A part of the path is a file where a folder is needed"):
        Session(options(data_root=str(tmp_path / "file")))
    given = options(data_root=str(small_disk / "root"), threads=2, shape="staged", verify="parts")
    remount = ["mount", "-o", "remount,ro", str(small_disk)]
    with Session(given) as sp:
        frame = sp.from_items(list(range(10))).repartition(2, by_rows=True).map("item AS x")
        assert frame.count() == 10
        subprocess.run(remount, check=True)
        with pytest.warns(UserWarning, match="read-only"), pytest.raises(StorageError) as failed:
            frame.map("x + 1 AS x").count()
        assert "mounted read-only; choose another place" in str(failed.value)
    with pytest.raises(StorageError, match="mounted read-only"):
        Session(options(data_root=str(small_disk / "other")))


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["auto", "staged"])
def test_scratch_that_fills_under_a_sort(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: str
) -> None:
    source, out = tmp_path / "in.parquet", tmp_path / "out"
    rows = "SELECT md5(i::VARCHAR) AS s, md5(s) AS t, md5(t) AS u FROM range(500000) AS r(i)"
    duckdb.sql(f"COPY ({rows}) TO '{source}' (FORMAT parquet, COMPRESSION uncompressed)")
    before = source.stat().st_mtime_ns
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk))
    with Session(options(threads=2, memory_limit="70MB", shape=shape, progress=False)) as sp:
        frame = sp.read_parquet(str(source)).sort("s")
        plan = frame.write_parquet_lazy("/nowhere").explain(physical=True)
        assert ("range by range" in plan) == (shape == "auto")
        with pytest.raises(DiskFull, match=r"(?i)no space"):
            frame.write_parquet(str(out))
        assert [f for f in files_below(small_disk) if f.suffix == ".part"] == []
    assert [f for f in files_below(small_disk) if not f.name.endswith(".lock")] == []
    assert not out.exists() or files_below(out) == []
    assert source.stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_disk_that_fills_with_computed_rows(small_disk: Path) -> None:
    """The result is still held in memory, and too large to be kept there."""
    given = options(data_root=str(small_disk), threads=2, memory_limit="128MB", shape="fused")
    with Session(given) as sp:
        many = sp.from_items(list(range(10))).flat_map("item, unnest(range(220000)) AS i")
        with pytest.raises(DiskFull, match=r"keep .*(?i:no space)"):
            many.compute()
        assert not many.is_computed()
        assert [file for file in files_below(small_disk) if file.suffix == ".arrow"] == []
        assert many.limit(2).compute().count() == 2
