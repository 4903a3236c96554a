"""Records come out in the order of their keys, equal keys in input order."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millpond.engine import record_sort
from millpond.engine.record_sort import gather, sort_order


def expected(rows: np.ndarray, key: slice) -> list[int]:
    return sorted(range(len(rows)), key=lambda i: rows[i, key].tobytes())


@settings(max_examples=80, deadline=None)
@given(
    n=st.integers(0, 60),
    width=st.integers(1, 30),
    letters=st.sampled_from([1, 2, 256]),
    seed=st.integers(0, 2**32 - 1),
    data=st.data(),
)
def test_any_key_within_any_record(
    n: int, width: int, letters: int, seed: int, data: st.DataObject
) -> None:
    rows = np.random.default_rng(seed).integers(0, letters, (n, width), np.uint8)
    start = data.draw(st.integers(0, width - 1))
    key = slice(start, data.draw(st.integers(start + 1, width)))
    assert sort_order(rows, key).tolist() == expected(rows, key)


@pytest.mark.parametrize("large_tie", [2, 50, 10_000])
@pytest.mark.parametrize("constant", [0, 3, 6, 9, 10])
def test_keys_that_share_their_first_bytes(
    monkeypatch: pytest.MonkeyPatch, large_tie: int, constant: int
) -> None:
    monkeypatch.setattr(record_sort, "_LARGE_TIE", large_tie)
    rows = np.random.default_rng(1).integers(0, 256, (3000, 20), np.uint8)
    rows[::2, :constant] = 7
    rows[::3, :10] = 8  # One heavy key.
    key = slice(0, 10)
    assert sort_order(rows, key).tolist() == expected(rows, key)


def test_rows_are_gathered_in_pieces() -> None:
    rows = np.arange(60, dtype=np.uint8).reshape(20, 3)
    order = np.random.default_rng(2).permutation(20)
    pieces = [piece.copy() for piece in gather(rows, order, np.empty((7, 3), np.uint8))]
    assert [len(piece) for piece in pieces] == [7, 7, 6]
    assert (np.concatenate(pieces) == rows[order]).all()


def test_sorts_side_by_side_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_sort, "_LARGE_SORT", 100)
    monkeypatch.setattr(record_sort, "_PACK_ROWS", 64)
    rows = np.random.default_rng(3).integers(0, 3, (1000, 12), np.uint8)
    with ThreadPoolExecutor(2) as pool:
        assert sort_order(rows, slice(0, 10), pool.map).tolist() == expected(rows, slice(0, 10))
