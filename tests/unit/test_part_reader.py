"""A reader gives exactly the rows asked for, or names the parts that are bad."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from millpond.physical.stages import PartRef
from millpond.shuffle.index import PartsUnreadable, Ranges, part_counts
from millpond.shuffle.read import Answer, Elsewhere, read_part_rows
from tests.unit.part_files import from_disk, numbers_batch, read, wanted, write_part

SCHEMA = pa.schema({"n": pa.int64()})


@pytest.fixture
def parts(tmp_path: Path) -> list[PartRef]:
    """Three parts of 3 partitions and 2 runs; part t holds 100 t + 0 … 11, row i in i % 3."""
    return [
        write_part(
            tmp_path / f"{task}.part",
            [
                (
                    numbers_batch(*range(100 * task + first, 100 * task + first + 6)),
                    np.arange(6) % 3,
                )
                for first in (0, 6)
            ],
            3,
            budget_bytes=48,
            task=task,
        )
        for task in range(3)
    ]


def numbers(*refs: PartRef, **narrowing: int) -> list[int]:
    return read(wanted(*refs, **narrowing), SCHEMA).column("n").to_pylist()


def test_rows_come_by_part_then_run(parts: list[PartRef]) -> None:
    assert [ref.n_runs for ref in parts] == [2, 2, 2]
    assert numbers(*parts, first_partition=1) == [
        *(1, 4, 7, 10),
        *(101, 104, 107, 110),
        *(201, 204, 207, 210),
    ]


def test_several_partitions_come_by_part_then_run_then_partition(parts: list[PartRef]) -> None:
    assert numbers(parts[2], n_partitions=2) == [200, 203, 201, 204, 206, 209, 207, 210]


def test_partitions_past_the_last_have_no_rows(parts: list[PartRef]) -> None:
    assert numbers(parts[0], first_partition=2, n_partitions=5) == [2, 5, 8, 11]
    assert numbers(parts[0], first_partition=3, n_partitions=5) == []


def test_a_narrow_read_takes_some_parts(parts: list[PartRef]) -> None:
    assert numbers(*parts, first_part=1, n_parts=1) == [100, 103, 106, 109]
    assert numbers(*parts, first_part=2) == [200, 203, 206, 209]


@pytest.mark.parametrize("skip", range(13))
@pytest.mark.parametrize("n", [None, 0, 1, 5, 100])
def test_a_run_of_rows_is_cut_exactly(parts: list[PartRef], skip: int, n: int | None) -> None:
    every = numbers(*parts)
    end = None if n is None else skip + n
    assert (
        read(wanted(*parts, skip_rows=skip, n_rows=n), SCHEMA).column(0).to_pylist()
        == (every[skip:end])
    )


def test_rows_outside_the_run_are_not_read(parts: list[PartRef]) -> None:
    asked: list[tuple[int, int, int]] = []

    def watched(ref: PartRef, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        asked.extend((ref.task, *r) for r in ranges if 64 <= r[0] < ref.index_offset)
        return from_disk(ref, ranges)

    list(read_part_rows(wanted(*parts, skip_rows=4, n_rows=4), SCHEMA, watched))
    assert {task for task, _, _ in asked} == {1}


def test_adjacent_segments_are_one_read(parts: list[PartRef]) -> None:
    asked: list[tuple[int, int]] = []

    def watched(ref: PartRef, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        asked.extend(r for r in ranges if 64 <= r[0] < ref.index_offset)
        return from_disk(ref, ranges)

    list(read_part_rows(wanted(parts[0], n_partitions=3), SCHEMA, watched))
    assert asked == [(64, parts[0].index_offset - 64)]


def test_a_small_budget_reads_the_same(parts: list[PartRef]) -> None:
    one = read(wanted(*parts), SCHEMA, from_disk, ahead_bytes=1, threads=1)
    assert one.column("n").to_pylist() == numbers(*parts)


def test_a_flipped_bit_is_found_at_every_byte(tmp_path: Path) -> None:
    ref = write_part(tmp_path / "x", [(numbers_batch(1, 2, 3), [0, 2, 2])], 3)
    whole = (tmp_path / "x").read_bytes()
    rows = wanted(ref, n_partitions=3)

    for at in range(len(whole)):
        torn = bytearray(whole)
        torn[at] ^= 1 << at % 8

        def flipped(
            ref: PartRef, ranges: Sequence[tuple[int, int]], torn: bytes = bytes(torn)
        ) -> list[bytes]:
            return [torn[offset : offset + length] for offset, length in ranges]

        with pytest.raises(PartsUnreadable) as caught:
            list(read_part_rows(rows, SCHEMA, flipped, threads=1))
        assert (caught.value.damaged, caught.value.refs) == (True, (ref,)), at


def test_a_flipped_bit_is_found_in_an_index_that_is_read_in_part(tmp_path: Path) -> None:
    n = 4000  # Too many entries to read them all.
    path = tmp_path / "x"
    ref = write_part(path, [(numbers_batch(1, 2, 3), [5, 5, 7])], n)
    whole = path.read_bytes()

    for at in range(ref.index_offset + 5 * 32, ref.index_offset + 8 * 32):
        torn = bytearray(whole)
        torn[at] ^= 1 << at % 8
        path.write_bytes(torn)
        with pytest.raises(PartsUnreadable) as caught:
            numbers(ref, first_partition=5, n_partitions=3)
        assert caught.value.damaged
    path.write_bytes(whole)
    assert numbers(ref, first_partition=5, n_partitions=3) == [1, 2, 3]


def test_a_damaged_segment_of_another_partition_harms_nobody(parts: list[PartRef]) -> None:
    path = Path(parts[0].path)
    whole = bytearray(path.read_bytes())
    whole[64] ^= 1
    path.write_bytes(whole)

    assert numbers(parts[0], first_partition=1) == [1, 4, 7, 10]
    with pytest.raises(PartsUnreadable, match="partition 0, run 0: bad checksum"):
        numbers(parts[0])


def test_all_lost_parts_are_named_at_once(parts: list[PartRef]) -> None:
    Path(parts[0].path).unlink()
    Path(parts[2].path).unlink()

    with pytest.raises(PartsUnreadable) as caught:
        numbers(*parts)
    assert caught.value.refs == (parts[0], parts[2])
    assert not caught.value.damaged


def test_all_damaged_parts_are_named_at_once(parts: list[PartRef]) -> None:
    for ref in parts[1:]:
        path = Path(ref.path)
        path.write_bytes(path.read_bytes()[:-1])

    with pytest.raises(PartsUnreadable) as caught:
        numbers(*parts)
    assert (caught.value.refs, caught.value.damaged) == ((parts[1], parts[2]), True)


def test_parts_that_go_while_they_are_read_are_all_named(parts: list[PartRef]) -> None:
    gone = False

    def failing(ref: PartRef, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        if gone and ref.task != 1:
            raise ConnectionResetError("the node is gone")
        return from_disk(ref, ranges)

    batches = read_part_rows(wanted(*parts), SCHEMA, failing, ahead_bytes=1, threads=1)
    assert next(batches).num_rows == 2
    gone = True
    with pytest.raises(PartsUnreadable, match="the node is gone") as caught:
        list(batches)
    assert set(caught.value.refs) == {parts[0], parts[2]}


def test_a_reader_may_stop_early(parts: list[PartRef]) -> None:
    batches = read_part_rows(wanted(*parts), SCHEMA, from_disk)
    assert next(batches).column("n").to_pylist() == [0, 3]
    batches.close()  # type: ignore[attr-defined]


def is_torn(ref: PartRef) -> bool:
    try:
        part_counts(ref, from_disk)
    except PartsUnreadable as error:
        return error.refs == (ref,)
    return False


def test_the_counts_of_a_torn_part_are_not_believed(parts: list[PartRef]) -> None:
    path = Path(parts[0].path)
    whole = path.read_bytes()
    assert not is_torn(parts[0])

    for torn in (
        whole[:-1],
        whole + b"\0",
        whole[:-40] + b"\1" + whole[-39:],
        b"",
        b"X" + whole[1:],
    ):
        path.write_bytes(torn)
        assert is_torn(parts[0])
    path.unlink()
    assert is_torn(parts[0])


def test_a_reference_to_another_shape_is_not_the_part(parts: list[PartRef]) -> None:
    assert is_torn(replace(parts[0], n_partitions=2, n_runs=3))


# ---- parts on other nodes ------------------------------------------------------------


class Nodes:
    """Part t lies on node t % 2 but for part 2, which is near; each call is noted."""

    def __init__(self, lost: frozenset[int] = frozenset()) -> None:
        self.calls: list[tuple[str, list[int]]] = []
        self._lost = lost

    def elsewhere(self) -> Elsewhere:
        return Elsewhere(lambda ref: "" if ref.task == 2 else f"n{ref.task % 2}", self._read)

    def _read(self, node: str, wanted: Sequence[tuple[PartRef, Ranges]]) -> list[Answer]:
        self.calls.append((node, [ref.task for ref, _ in wanted]))
        return [
            OSError("no such file") if ref.task in self._lost else from_disk(ref, ranges)
            for ref, ranges in wanted
        ]


@pytest.fixture
def seven(tmp_path: Path) -> list[PartRef]:
    rows = [(task, numbers_batch(task, 10 + task)) for task in range(7)]
    return [write_part(tmp_path / f"{t}", [(batch, [0, 0])], 1, task=t) for t, batch in rows]


def test_one_call_brings_the_indexes_and_one_the_rows_of_many_parts(seven: list[PartRef]) -> None:
    nodes = Nodes()
    rows = read_part_rows(wanted(*seven), SCHEMA, from_disk, elsewhere=nodes.elsewhere())
    table = pa.Table.from_batches(rows, SCHEMA)
    assert table.column("n").to_pylist() == [n for t in range(7) for n in (t, 10 + t)]
    assert sorted(nodes.calls) == [*[("n0", [0, 4, 6])] * 2, *[("n1", [1, 3, 5])] * 2]


def test_of_parts_read_together_only_the_lost_ones_are_named(seven: list[PartRef]) -> None:
    nodes = Nodes(lost=frozenset({3, 4}))
    with pytest.raises(PartsUnreadable) as caught:
        list(read_part_rows(wanted(*seven), SCHEMA, from_disk, elsewhere=nodes.elsewhere()))
    assert [ref.task for ref in caught.value.refs] == [3, 4]
    assert not caught.value.damaged
