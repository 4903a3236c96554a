"""Range partitioning agrees with a comparison of whole keys, whatever the keys are."""

from bisect import bisect_right

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millpond.engine.kernels import partition_numbers, random_places, range_partition
from millpond.errors import MillpondError

# Few letters and many zeros: prefixes of each other, and words that differ in length only.
keys = st.one_of(
    st.binary(max_size=20),
    st.text("\0a", max_size=40).map(str.encode),
    st.builds(lambda head, tail: head + tail, st.just(b"same" * 40), st.binary(max_size=9)),
)


def by_bisect(rows: list[bytes], bounds: list[bytes]) -> list[int]:
    return [bisect_right(bounds, row) for row in rows]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(keys, max_size=30),
    bounds=st.lists(keys, max_size=12).map(sorted),
    shared=st.booleans(),
    kind=st.sampled_from([pa.binary(), pa.large_binary()]),
)
def test_a_row_goes_past_the_bounds_that_are_not_above_it(
    rows: list[bytes], bounds: list[bytes], shared: bool, kind: pa.DataType
) -> None:
    rows = rows + bounds if shared else rows
    numbers = range_partition(pa.array(rows, kind), pa.array(bounds, pa.binary()))
    assert numbers.tolist() == by_bisect(rows, bounds)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.one_of(keys, st.binary(min_size=10, max_size=10)), max_size=30),
    bounds=st.lists(st.binary(min_size=10, max_size=10), min_size=1, max_size=12).map(sorted),
)
def test_bounds_far_apart(rows: list[bytes], bounds: list[bytes]) -> None:
    numbers = range_partition(pa.array(rows, pa.binary()), pa.array(bounds, pa.binary()))
    assert numbers.tolist() == by_bisect(rows, bounds)
    wide = [row.ljust(10, b"\0")[:10] for row in rows + bounds]
    column, edges = pa.array(wide, pa.binary(10)), pa.array(bounds, pa.binary(10))
    assert range_partition(column, edges).tolist() == by_bisect(wide, bounds)
    assert range_partition(column[1:], edges).tolist() == by_bisect(wide[1:], bounds)


@settings(max_examples=50, deadline=None)
@given(
    rows=st.lists(st.binary(min_size=3, max_size=3), min_size=1, max_size=20),
    bounds=st.lists(st.binary(min_size=3, max_size=3), max_size=8).map(sorted),
    data=st.data(),
)
def test_a_slice_of_fixed_width_keys_is_read_from_its_own_place(
    rows: list[bytes], bounds: list[bytes], data: st.DataObject
) -> None:
    first = data.draw(st.integers(0, len(rows)))
    for kind in (pa.binary(3), pa.binary()):
        part = pa.array(rows, kind).slice(first)
        assert range_partition(part, pa.array(bounds, kind)).tolist() == by_bisect(
            rows[first:], bounds
        )


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(st.sampled_from([b"", b"a", b"b" * 9]), st.integers(0, 5))),
    bounds=st.lists(
        st.tuples(st.sampled_from([b"a", b"b" * 9, b"c"]), st.integers(0, 5)), max_size=8
    ).map(sorted),
)
def test_with_ordinals_rows_and_bounds_compare_as_pairs(
    rows: list[tuple[bytes, int]], bounds: list[tuple[bytes, int]]
) -> None:
    numbers = range_partition(
        pa.array([key for key, _ in rows], pa.binary()),
        pa.array([key for key, _ in bounds], pa.binary()),
        np.array([o for _, o in rows], np.uint64),
        np.array([o for _, o in bounds], np.uint64),
    )
    assert numbers.tolist() == [bisect_right(bounds, row) for row in rows]


def test_keys_of_a_megabyte_that_differ_in_the_last_byte() -> None:
    long = b"x" * (1 << 20)
    rows = [long + b"a", long, long + b"b", b"x"]
    assert range_partition(
        pa.array(rows, pa.binary()), pa.array([long, long + b"b"], pa.binary())
    ).tolist() == [1, 1, 2, 0]


def test_partition_numbers_are_taken_without_a_copy() -> None:
    column = pa.array([3, 1, 2], pa.uint16())
    numbers = partition_numbers(column, "repartition")
    assert numbers.tolist() == [3, 1, 2]
    assert numbers.ctypes.data == column.buffers()[1].address


def test_a_null_or_fractional_partition_number_is_an_error() -> None:
    with pytest.raises(MillpondError, match="1 rows have NULL"):
        partition_numbers(pa.array([1, None]), "repartition")
    with pytest.raises(MillpondError, match="must be an integer, not double"):
        partition_numbers(pa.array([1.5]), "repartition")


def test_a_random_order_breaks_ties_by_identity() -> None:
    keys = pa.array([5, 2, 5, 2, 2**64 - 1, 5], pa.uint64())
    identities = pa.array([3, 9, 1, -4, 0, 2], pa.int64())
    assert random_places(keys, identities).tolist() == [3, 1, 2, 5, 0, 4]
    assert random_places(keys[:2], identities[:2]).tolist() == [1, 0]
