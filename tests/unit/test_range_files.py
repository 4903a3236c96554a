"""Files that are ranges of an order: rows that wait in memory, and rows that wait on the disk."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from millpond.engine.kernels import integers
from millpond.engine.parquet import Made
from millpond.errors import Transient
from millpond.options import options
from millpond.physical.one_pass import held_bytes, shuffled_bytes
from millpond.session import Session
from millpond.shuffle import range_files
from millpond.shuffle.range_files import Numbered, Room, memory_kept, write_ranges

ROWS, FILES = 20_000, 5


def batches(numbers: np.ndarray) -> Iterator[pa.RecordBatch]:
    for first in range(0, len(numbers), 1000):
        some = np.arange(first, min(first + 1000, len(numbers)))
        texts = pa.array([f"row {i}" for i in some])
        given = [texts, pa.array(some), pa.array(numbers[some].astype(np.uint32))]
        yield pa.record_batch(given, names=["s", "identity", "file"])


def numbered(batch: pa.RecordBatch) -> Numbered:
    return batch.select([0, 1]), integers(batch.column(2))


def room(path: Path, held_bytes: int, large_bytes: int = 10_000) -> Room:
    return Room(held_bytes, 50_000, large_bytes, 3, str(path / "x.part"))


@pytest.mark.parametrize("held_bytes", [0, 200_000, 10**9])
@pytest.mark.parametrize("one_file", [False, True])
def test_each_file_gets_its_rows(tmp_path: Path, held_bytes: int, one_file: bool) -> None:
    numbers = np.zeros(ROWS, int) if one_file else np.arange(ROWS) * 7 // 3 % FILES
    found: dict[str, list[int]] = {}

    def keep(rows: Iterator[pa.RecordBatch], size_bytes: float, path: str) -> Made:
        some = pa.Table.from_batches(list(rows), pa.schema({"s": "string", "identity": "int64"}))
        found[path] = some["identity"].to_pylist()
        assert some["s"].to_pylist() == [f"row {i}" for i in found[path]]
        return Made(some.num_rows, "")

    names = [str(i) for i in range(FILES)]
    made = write_ranges(batches(numbers), names, numbered, keep, room(tmp_path, held_bytes))
    assert [file.rows for file in made] == np.bincount(numbers, minlength=FILES).tolist()
    for number, name in enumerate(names):
        assert found[name] == np.flatnonzero(numbers == number).tolist()  # As they came.
    assert not list(tmp_path.iterdir())


def test_no_row_is_no_part(tmp_path: Path) -> None:
    def keep(rows: Iterator[pa.RecordBatch], size_bytes: float, path: str) -> Made:
        return Made(len(list(rows)), "")

    made = write_ranges(iter(()), ["a", "b"], numbered, keep, room(tmp_path, 0))
    assert made == [Made(0, ""), Made(0, "")]


def test_a_flipped_bit_in_rows_that_waited_is_found(tmp_path: Path) -> None:
    def damage(rows: Iterator[pa.RecordBatch], size_bytes: float, path: str) -> Made:
        with open(tmp_path / "x.part", "r+b") as file:
            file.seek(5000)
            byte = file.read(1)[0]
            file.seek(5000)
            file.write(bytes([byte ^ 4]))
        return Made(sum(batch.num_rows for batch in rows), "")

    with pytest.raises(Transient, match=r"rows that waited .* bad checksum"):
        write_ranges(batches(np.zeros(ROWS, int)), ["a"], numbered, damage, room(tmp_path, 0))
    assert not list(tmp_path.iterdir())


def test_a_lost_row_is_an_error(tmp_path: Path) -> None:
    def lose(rows: Iterator[pa.RecordBatch], size_bytes: float, path: str) -> Made:
        return Made(sum(batch.num_rows for batch in rows) - 1, "")

    with pytest.raises(Exception, match="20000 rows were to be written, and 19999 were"):
        write_ranges(batches(np.zeros(ROWS, int)), ["a"], numbered, lose, room(tmp_path, 10**9))


def test_wide_rows_come_in_batches_of_some_megabytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import millpond.shuffle.range_files as module

    n, sizes = 32_000, list[int]()
    data = pa.py_buffer(np.random.default_rng(1).bytes(n * 1024))
    wide = pa.FixedSizeBinaryArray.from_buffers(pa.binary(1024), n, [None, data])
    (tmp_path / "in").mkdir()
    for i in range(3):
        rows = pa.table({"id": np.arange(i * n, (i + 1) * n), "wide": wide.cast(pa.binary())})
        pq.write_table(rows, tmp_path / f"in/{i}.parquet", compression="none",
                       use_dictionary=False)  # fmt: skip
    write = module.write_ranges

    def seen(batches: Iterator[pa.RecordBatch], *more: object) -> list[Made]:
        def each() -> Iterator[pa.RecordBatch]:
            for batch in batches:
                sizes.append(batch.nbytes)
                yield batch

        return write(each(), *more)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "write_ranges", seen)
    with Session(options(threads=2, split_bytes=16 << 20, progress=False)) as sp:
        sp.read_parquet(str(tmp_path / "in")).random_shuffle(1).write_parquet(tmp_path / "out")
    assert sum(sizes) > 3 * n * 1024
    assert max(sizes) < 20 << 20
    found = pq.read_table(tmp_path / "out").column("id").to_numpy()
    assert (np.sort(found) == np.arange(3 * n)).all()


@pytest.mark.parametrize(
    ("waiting", "is_kept"),
    [
        (held_bytes(64, 2 * 10**9), True),
        (shuffled_bytes(2 * 10**9), True),
        (held_bytes(64, 10**9), False),
        (shuffled_bytes(10**9), False),
    ],
    ids=["files within 2 GB", "random order within 2 GB", "files within 1 GB", "random, 1 GB"],
)
def test_freed_memory_is_kept_where_memory_is_not_short(
    waiting: int, is_kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def kept() -> Iterator[None]:
        said.append("kept")
        yield

    said: list[str] = []
    monkeypatch.setattr(range_files, "freed_memory_kept", kept)
    monkeypatch.setattr(range_files, "reused_memory_kept", kept)
    with memory_kept(waiting):
        assert said == ["kept"] * 2 * is_kept
