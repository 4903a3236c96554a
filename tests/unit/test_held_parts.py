"""Small parts stay in memory where the process that wrote them reads them."""

import os
from pathlib import Path

import pytest

from millpond.options import options
from millpond.session import Session
from millpond.worker.held import PART_BYTES, HeldParts


def test_ranges_of_a_held_part_are_those_of_its_file(tmp_path: Path) -> None:
    path, data = str(tmp_path / "run" / "0.part"), os.urandom(1000)
    held = HeldParts(PART_BYTES)
    assert held.hold(path, memoryview(data))
    ranges = [(0, 10), (990, 100), (1000, 5)]
    found = held.read(path, ranges)
    assert found is not None
    assert [bytes(each) for each in found] == [data[a : a + n] for a, n in ranges]
    assert not (tmp_path / "run").exists()

    held.write([path, str(tmp_path / "run" / "1.part")])

    assert Path(path).read_bytes() == data
    assert held.read(path, ranges) is None


def test_no_more_is_held_than_may_be_until_some_is_forgotten(tmp_path: Path) -> None:
    held = HeldParts(100)
    assert held.hold(f"{tmp_path}/a/0", memoryview(bytes(60)))
    assert not held.hold(f"{tmp_path}/a/1", memoryview(bytes(60)))
    assert held.hold(f"{tmp_path}/ab/0", memoryview(bytes(40)))

    assert held.forget(f"{tmp_path}/a")

    assert held.read(f"{tmp_path}/a/0", [(0, 1)]) is None
    assert held.read(f"{tmp_path}/ab/0", [(0, 1)]) is not None
    assert held.hold(f"{tmp_path}/b/0", memoryview(bytes(60)))
    assert not held.forget(f"{tmp_path}/none")


def test_a_large_part_is_a_file() -> None:
    assert not HeldParts(10 * PART_BYTES).hold("/x", memoryview(bytes(PART_BYTES + 1)))


def part_files(sp: Session) -> list[str]:
    parts = sp._work.worker_options.parts
    return [name for _, _, names in os.walk(parts) for name in names]


def test_threads_make_no_file_and_leave_nothing() -> None:
    with Session(options(threads=2, shape="staged")) as sp:
        seen: list[str] = []
        sp._work.listeners.append(lambda event: seen.extend(part_files(sp)))
        frame = sp.from_items(list(range(100))).repartition(4, hash_by="item")
        counts = sp.partial_sql("SELECT count(*) AS n FROM {0}", frame).take_all()
        held = sp._work.worker.held

        assert sum(row["n"] for row in counts) == 100
        assert not seen
        assert not held._parts
        assert held._size_bytes == 0


def test_worker_processes_and_what_follows_them_read_them(tmp_path: Path) -> None:
    with Session(options(threads=2, shape="staged")) as sp:
        frame = sp.from_items(list(range(100))).repartition(4, hash_by="item")
        made = frame.map_partitions(lambda rows: rows.slice(0, 1)).repartition(2, hash_by="item")
        assert len(sp.partial_sql("SELECT * FROM {0}", made).take_all()) == 4


def test_a_run_that_fails_holds_nothing() -> None:
    with Session(options(threads=2, shape="staged")) as sp:
        frame = sp.from_items(list(range(100))).repartition(4, hash_by="item")
        with pytest.raises(Exception, match="bad luck"):
            sp.partial_sql("SELECT error('bad luck') FROM {0}", frame).take_all()
        assert not sp._work.worker.held._parts


def test_with_a_data_root_parts_are_files(tmp_path: Path) -> None:
    with Session(options(data_root=str(tmp_path), threads=2, shape="staged")) as sp:
        frame = sp.from_items([{"k": i} for i in range(100)]).repartition(4, hash_by="k")
        assert len(sp.partial_sql("FROM {0}", frame).take_all()) == 100
        assert part_files(sp)
