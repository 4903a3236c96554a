"""Finished tasks are found again by content, if what they left is still there."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from runtime_values import sink, source

from millpond.errors import StorageError
from millpond.physical.stages import OutputFile, PartRef, Stage, TaskId, TaskResult, ToFile
from millpond.runtime.journal import StoredJournal, records, segment
from millpond.storage import LocalStorage, Staged
from tests.unit.part_files import numbers_batch, write_part

STAGE = source(4, 3, n=2, fingerprint="scan flights")


def is_staged(staged: Staged, checksum: str) -> bool:
    local = Path(staged.local)
    return local.exists() and local.stat().st_size == staged.size_bytes


def journal(root: Path, session: str = "one") -> StoredJournal:
    return StoredJournal(LocalStorage(), str(root), session, is_staged)


def wrote(root: Path, partition: int, attempt: int = 0) -> TaskResult:
    """A result whose part is on disk: two partitions of two rows and one row."""
    path = root / "parts" / f"{partition}.a{attempt}.part"
    path.parent.mkdir(exist_ok=True)
    part = write_part(path, [(numbers_batch(1, 2, 3), [0, 1, 0])], 2)
    part = replace(part, stage=4, task=partition, attempt=attempt)
    return TaskResult(TaskId(4, partition, attempt), part, rows=3, size_bytes=part.size_bytes)


def remember(root: Path, *results: TaskResult, session: str = "one", n_tasks: int = 3) -> None:
    writing = journal(root, session)
    for result in results:
        writing.record(STAGE, n_tasks, result)
    writing.flush()


def rename(path: Path, name: str) -> None:
    """Let the record of a segment name another part, as who forges one would."""
    (record,) = records(path.read_bytes())
    record["part"]["path"] = name
    path.write_bytes(segment([record]))


def found(root: Path, stage: Stage = STAGE) -> dict[int, TaskResult]:
    reused = journal(root, "reader").find(stage)
    return dict(reused.results) if reused else {}


def test_another_session_finds_the_results_with_their_counts(tmp_path: Path) -> None:
    remember(tmp_path, wrote(tmp_path, 0), wrote(tmp_path, 2, attempt=1))
    kept = found(tmp_path, replace(STAGE, id=7))
    assert [result.task for result in kept.values()] == [TaskId(7, 0), TaskId(7, 2, 1)]
    part = kept[0].part
    assert part is not None
    assert (part.stage, part.task, part.rows) == (7, 0, 3)
    assert np.frombuffer(kept[0].partition_rows, "<i8").tolist() == [2, 1]


def test_another_fingerprint_finds_nothing(tmp_path: Path) -> None:
    remember(tmp_path, wrote(tmp_path, 0))
    assert found(tmp_path, replace(STAGE, fingerprint="scan flights, edited")) == {}


def test_sessions_add_up_and_never_overwrite_each_other(tmp_path: Path) -> None:
    one, two = journal(tmp_path, "one"), journal(tmp_path, "two")
    one.record(STAGE, 3, wrote(tmp_path, 0))
    two.record(STAGE, 3, wrote(tmp_path, 1))
    one.flush()
    two.flush()
    assert set(found(tmp_path)) == {0, 1}
    assert len(list((tmp_path / "journal").iterdir())) == 2


def test_two_sessions_of_one_name_are_an_error(tmp_path: Path) -> None:
    remember(tmp_path, wrote(tmp_path, 0))
    with pytest.raises(StorageError, match="its own name"):
        remember(tmp_path, wrote(tmp_path, 1))


def test_a_reader_sees_what_is_written_after_its_first_look(tmp_path: Path) -> None:
    reading = journal(tmp_path, "reader")
    assert reading.find(STAGE) is None
    remember(tmp_path, wrote(tmp_path, 0))
    assert reading.find(STAGE) is not None


def test_records_are_written_after_a_second_or_a_thousand_of_them(tmp_path: Path) -> None:
    writing, result = journal(tmp_path), wrote(tmp_path, 0)
    writing.record(STAGE, 3, result)
    writing.tick(now_s=0.0)
    assert found(tmp_path) == {}
    writing.tick(now_s=1e9)
    assert set(found(tmp_path)) == {0}
    for _ in range(1_000):
        writing.record(STAGE, 3, result)
    assert len(list((tmp_path / "journal").iterdir())) == 2


def test_the_last_record_whose_part_is_there_counts(tmp_path: Path) -> None:
    first, second = wrote(tmp_path, 0), wrote(tmp_path, 0, attempt=1)
    remember(tmp_path, first, second)
    assert found(tmp_path)[0].task.attempt == 1
    assert second.part is not None
    Path(second.part.path).unlink()
    assert found(tmp_path)[0].task.attempt == 0


def test_a_stage_of_another_size_is_not_mixed_in(tmp_path: Path) -> None:
    remember(tmp_path, wrote(tmp_path, 0), wrote(tmp_path, 1), session="of three")
    remember(tmp_path, wrote(tmp_path, 4), session="of five", n_tasks=5)
    reused = journal(tmp_path, "reader").find(STAGE)
    assert reused is not None
    assert (reused.n_tasks, set(reused.results)) == (3, {0, 1})


def test_a_part_whose_index_was_changed_is_not_reused(tmp_path: Path) -> None:
    result = wrote(tmp_path, 0)
    remember(tmp_path, result)
    assert result.part is not None
    path = Path(result.part.path)
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    assert found(tmp_path) == {}


@pytest.mark.parametrize("name", ["../outside.part", "/etc/passwd", "parts/../../x", "link/0.part"])
def test_names_that_lead_out_of_the_root_are_not_followed(tmp_path: Path, name: str) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (root / "link").symlink_to(outside)
    result = wrote(root, 0)
    remember(root, result)
    (path,) = (root / "journal").iterdir()
    assert result.part is not None
    for copy in (tmp_path / "outside.part", tmp_path / "x", outside / "0.part"):
        copy.write_bytes(Path(result.part.path).read_bytes())
    rename(path, name)
    assert found(root) == {}


class Kept:
    """The folders that dead sessions left on a machine: each is found, and reads are noted."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.read = folder, list[str]()

    def name_of(self, part: PartRef) -> tuple[str, str]:
        return "svc-parts", "run/0.part"

    def take_up(self, folder: str) -> tuple[str, str]:
        return "n1", str(self.folder / folder)

    def fetch(self, ref: PartRef, ranges: Sequence[tuple[int, int]]) -> Sequence[bytes]:
        self.read.append(ref.path)
        data = Path(ref.path).read_bytes()
        return [data[at : at + n] for at, n in ranges]


@pytest.mark.parametrize(
    ("name", "followed"),
    [("run/0.part", True), ("../0.part", False), ("run/../../0.part", False), ("./0.part", False),
     ("/0.part", False), ("run//0.part", False)],
)  # fmt: skip
def test_names_that_lead_out_of_a_kept_folder_are_not_followed(
    tmp_path: Path, name: str, followed: bool
) -> None:
    """There is a whole part at each of these names: only what they are may speak against them."""
    kept = Kept(tmp_path / "kept")
    result = wrote(tmp_path, 0)
    assert result.part is not None
    data = Path(result.part.path).read_bytes()
    for place in ("kept/svc-parts/run/0.part", "kept/svc-parts/0.part", "kept/0.part", "0.part"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_bytes(data)
    writing = journal(tmp_path)
    writing.kept = kept
    writing.record(STAGE, 3, replace(result, part=replace(result.part, node="n1")))
    writing.flush()
    (path,) = (tmp_path / "journal").iterdir()
    rename(path, name)
    reading = journal(tmp_path, "reader")
    reading.kept = kept
    reused = reading.find(STAGE)
    assert (reused is not None) == followed
    assert bool(kept.read) == followed


def test_the_rows_that_a_resumed_task_read_are_counted_as_in_the_run_that_read_them(
    tmp_path: Path,
) -> None:
    """Conservation adds them up: a part resumed without them would look like rows lost."""
    remember(tmp_path, replace(wrote(tmp_path, 0), rows_in=5))
    assert found(tmp_path)[0].rows_in == 5


@pytest.mark.parametrize(
    "line",
    [b"", b"{", b"[]", b'{"version": 1}', b"\x80\x04K\x01.", b'{"version": 1000}', b"[" * 10**5],
)
def test_segments_that_are_none_are_passed_over(tmp_path: Path, line: bytes) -> None:
    remember(tmp_path, wrote(tmp_path, 0))
    (tmp_path / "journal" / "other-000000.jsonl").write_bytes(line + b"\n")
    told = json.dumps(
        {"version": 6, "checksum": hashlib.blake2b(line + b"\n", digest_size=16).hexdigest()}
    )
    (tmp_path / "journal" / "other-000001.jsonl").write_bytes(line + b"\n" + told.encode() + b"\n")
    assert set(found(tmp_path)) == {0}


def test_a_segment_that_ends_early_or_in_which_a_bit_changed_tells_nothing(tmp_path: Path) -> None:
    """A count of rows that was not written would fail each later run, by conservation."""
    remember(tmp_path, wrote(tmp_path, 0), wrote(tmp_path, 1))
    whole = journal(tmp_path, "reader").find(STAGE)
    (path,) = (tmp_path / "journal").iterdir()
    data = path.read_bytes()
    for n in range(len(data) - 1):  # Without its last line end it is whole.
        assert records(data[:n]) == []
    for at in range(len(data) - 1):
        changed = bytearray(data)
        changed[at] ^= 1 << at % 7
        assert records(bytes(changed)) == []
    path.write_bytes(data[:-20])
    assert found(tmp_path) == {}
    path.write_bytes(data)
    assert journal(tmp_path, "reader").find(STAGE) == whole


ODD = [None, True, -1, 1.5, 10**30, "x", [], [[]], {}, float("nan")]


def test_records_of_odd_values_are_passed_over(tmp_path: Path) -> None:
    result = wrote(tmp_path, 0)
    remember(tmp_path, result)
    (path,) = (tmp_path / "journal").iterdir()
    (record,) = records(path.read_bytes())
    parts = [each.part for each in found(tmp_path).values()]
    for place in (record, record["part"]):
        for name, kept in list(place.items()):
            for odd in ODD:
                place[name] = odd
                path.write_bytes(segment([record]))
                told = [each.part for each in found(tmp_path).values() if each.part]
                assert [part.path for part in told] in ([], [part.path for part in parts if part])
            place[name] = kept
    path.write_bytes(segment([record]))
    assert [each.part for each in found(tmp_path).values()] == parts


def test_a_part_on_a_nodes_own_disk_is_not_recorded(tmp_path: Path) -> None:
    result = wrote(tmp_path, 0)
    assert result.part is not None
    remember(tmp_path, replace(result, part=replace(result.part, node="n1")))
    assert found(tmp_path) == {}


# ---- output files --------------------------------------------------------------------


def staged_result(folder: Path) -> tuple[Stage, TaskResult]:
    stage = sink(5, 4, fingerprint="write")
    stage = replace(stage, output=ToFile("parquet", str(folder), "{partition:05d}.parquet"))
    storage = LocalStorage()
    staged = storage.stage(str(folder / "00000.parquet"), "5-0-0")
    Path(staged.local).write_bytes(b"rows")
    file = OutputFile(storage.seal(staged), rows=9)
    return stage, TaskResult(TaskId(5, 0), files=(file,), rows=9)


def test_a_staged_file_is_found_until_it_is_gone(tmp_path: Path) -> None:
    stage, result = staged_result(tmp_path / "out")
    writing = journal(tmp_path / "root")
    writing.record(stage, 1, result)
    writing.flush()
    assert found(tmp_path / "root", stage)[0].files == result.files
    Path(result.files[0].staged.local).unlink()
    assert found(tmp_path / "root", stage) == {}
