"""The order of samples: pinned, a bijection, and as random as it claims."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millpond.loader.order import (
    BlockOrder,
    Feistel,
    HashOrder,
    Order,
    derive_key,
    label_distance,
    permutation,
    splitmix64,
    splitmix64_array,
)


def test_splitmix64_is_the_published_function() -> None:
    assert splitmix64(0) == 0xE220A8397B1DCDAF
    some = np.array([0, 1, 2**64 - 1], np.uint64)
    assert splitmix64_array(some).tolist() == [splitmix64(int(x)) for x in some]


# A change of any number below breaks every stored state: it needs a new state version.
def test_the_orders_are_pinned() -> None:
    first = np.arange(5, dtype=np.int64)
    assert derive_key(1, 2) == 15671754871817308195
    assert Feistel.of(10**12, 7).rows(first).tolist() == [
        637976064856,
        725529197776,
        727468698350,
        524476797139,
        364987988925,
    ]
    assert HashOrder.of(10, 3).table.tolist() == [3, 0, 6, 4, 8, 2, 5, 1, 9, 7]
    block = BlockOrder.of(100, 8, 4, 9).rows(np.arange(12, dtype=np.int64))
    assert block.tolist() == [39, 91, 67, 73, 70, 72, 79, 93, 65, 74, 34, 92]
    assert Order("global", seed=7).epoch(20, 3).rows(first).tolist() == GLOBAL_7_3
    assert Order("block", 7, 4, 2).epoch(20, 3).rows(first).tolist() == BLOCK_7_3


@pytest.mark.parametrize(("n", "kind"), [(65_536, HashOrder), (65_537, Feistel)])
def test_where_one_kind_of_order_ends_and_the_other_begins_is_pinned(n: int, kind: type) -> None:
    assert isinstance(permutation(n, 7), kind)


GLOBAL_7_3 = [14, 2, 3, 17, 15]
BLOCK_7_3 = [14, 9, 12, 10, 11]


@given(st.integers(1, 2**63 - 1), st.integers(0, 2**64 - 1), st.data())
def test_the_network_and_its_inverse_undo_each_other(n: int, key: int, data: st.DataObject) -> None:
    feistel = Feistel.of(n, key)
    at = np.array(data.draw(st.lists(st.integers(0, n - 1), max_size=20)), np.int64)
    rows = feistel.rows(at)
    assert ((rows >= 0) & (rows < n)).all()
    assert feistel.positions(rows).tolist() == at.tolist()


@settings(max_examples=40)
@given(st.integers(1, 1500), st.integers(0, 99), st.integers(1, 70), st.integers(1, 9))
def test_every_order_visits_every_row_once(n: int, key: int, rows: int, window: int) -> None:
    at = np.arange(n, dtype=np.int64)
    for order in (Feistel.of(n, key), HashOrder.of(n, key), BlockOrder.of(n, rows, window, key)):
        seen = order.rows(at)
        assert sorted(seen.tolist()) == at.tolist()
        assert order.positions(seen).tolist() == at.tolist()


def test_an_order_is_the_same_however_it_is_asked() -> None:
    feistel = permutation(1_000_003, 5)
    at = np.arange(20_000, dtype=np.int64)
    whole = feistel.rows(at)
    assert np.array_equal(whole, np.concatenate([feistel.rows(at[:77]), feistel.rows(at[77:])]))


def test_epochs_and_seeds_differ() -> None:
    at = np.arange(1000, dtype=np.int64)
    orders = [
        Order("global", seed).epoch(1000, epoch).rows(at) for seed in (0, 1) for epoch in (0, 1, 2)
    ]
    assert len({tuple(order.tolist()) for order in orders}) == 6


def distances(order: np.ndarray, lag: int) -> float:
    """How far the distances of rows `lag` positions apart are from even, in standard errors."""
    counts = np.bincount((order[lag:] - order[:-lag]) % order.size * 64 // order.size, minlength=64)
    expected = (order.size - lag) / 64
    return float((((counts - expected) ** 2 / expected).sum() - 63) / math.sqrt(126))


def worst_lag(feistel: Feistel) -> float:
    order = feistel.rows(np.arange(feistel.n, dtype=np.int64))
    b = feistel.b
    return max(distances(order, lag) for lag in (1, 2, 64, b, 2 * b, 7 * b, feistel.n // 2))


@pytest.mark.parametrize("n", [1_000_003, 2**20])
def test_rows_at_any_distance_are_unrelated(n: int) -> None:
    # Chance exceeds 5 standard errors (63 degrees of freedom) in one of 10^4 such tests.
    assert worst_lag(Feistel.of(n, 11)) < 5


@pytest.mark.parametrize("n", [1_000_003, 2**20])
def test_four_rounds_fail_where_six_pass(n: int) -> None:
    # So the test above can fail: it is what keeps the rounds at six.
    assert max(worst_lag(Feistel.of(n, key, rounds=4)) for key in (0, 1)) > 15


def test_small_orders_are_uniform_over_all_permutations() -> None:
    counts: dict[tuple[int, ...], int] = {}
    for key in range(6000):
        table = tuple(HashOrder.of(3, derive_key(key)).table.tolist())
        counts[table] = counts.get(table, 0) + 1
    chi2 = sum((c - 1000) ** 2 / 1000 for c in counts.values())
    assert len(counts) == 6
    assert chi2 < 25.7  # 5 degrees of freedom: once in 10,000.


def test_sorted_classes_are_mixed_as_a_true_shuffle_mixes_them() -> None:
    n, classes, window = 1_000_000, 100, 5000
    labels = permutation(n, 3).rows(np.arange(n, dtype=np.int64)) // (n // classes)
    counts = np.stack([np.bincount(w, minlength=classes) for w in labels.reshape(-1, window)])
    expected = window / classes
    chi2 = ((counts - expected) ** 2 / expected).sum() / (1 - window / n)
    freedom = (n // window) * (classes - 1)
    assert abs(chi2 - freedom) / math.sqrt(2 * freedom) < 4.5


def test_the_estimate_for_block_order_is_what_is_seen() -> None:
    n, classes, block, window, looked = 1_000_000, 100, 256, 256, 10_000
    order = BlockOrder.of(n, block, window, 5)
    labels = order.rows(np.arange(n, dtype=np.int64)) // (n // classes)
    seen = [
        np.abs(np.bincount(w, minlength=classes) / looked - 1 / classes).sum() / 2
        for w in labels.reshape(-1, looked)
    ]
    assert np.mean(seen) == pytest.approx(label_distance(classes, window, looked), rel=0.1)


def test_a_window_of_a_block_order_reads_few_blocks() -> None:
    order = BlockOrder.of(100_000, 100, 10, 5)
    at = np.arange(1000, dtype=np.int64)
    first, last = (int(x[0]) for x in order.windows(at[:1]))
    assert first == 0
    rows = order.rows(np.arange(first, last, dtype=np.int64))
    assert set((rows // 100 * 100).tolist()) == set(order.block_starts(first, last).tolist())
    assert last - first == 1000


@settings(max_examples=40)
@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 8), st.integers(1, 300))
def test_each_block_behind_the_first_window_is_asked_for_ahead(
    n: int, block: int, window: int, step: int
) -> None:
    order = BlockOrder.of(n, block, window, 3)
    asked: set[int] = set()
    for first in range(0, n, step):
        at = np.arange(first, min(n, first + step), dtype=np.int64)
        asked |= set(order.blocks_ahead(first, first + at.size).tolist())
        later = at[order.windows(at)[0] > 0]
        assert set((order.rows(later) // block * block).tolist()) <= asked
