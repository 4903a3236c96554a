"""The loader's promises one by one: the complaints known from others, bad input, bad samples."""

import gc
import json
import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from millpond.errors import (
    ColumnNotFound,
    MillpondError,
    OptionError,
    RowNotFound,
    RowsUnreadable,
    SchemaMismatch,
    SqlError,
    StateMismatch,
)
from millpond.loader.loader import Loader
from millpond.loader.mixture import mix
from millpond.loader.reader import Dataset, open_dataset
from millpond.loader.state import MAX_BYTES, Receipt
from millpond.loader.write import write_dataset
from tests.support.loader_sets import Make, ids


def test_a_second_epoch_has_another_order_and_the_same_rows(make: Make) -> None:
    loader = make(100).loader(7, shuffle="global", epochs=2)
    seen = ids(loader)
    first, second = seen[:100], seen[100:]
    assert sorted(first) == sorted(second) == list(range(100))
    assert first != second


def test_loops_go_on_with_the_next_epoch(make: Make) -> None:
    ds = make(30)
    loader = ds.loader(7, shuffle="global")
    assert ids(loader) + ids(loader) == ids(ds.loader(7, shuffle="global", epochs=2))


def test_an_epoch_after_a_restore_is_not_shortened(make: Make) -> None:
    ds = make(50)
    loader = ds.loader(8, shuffle="global", epochs=None)
    running = iter(loader)
    first = ids([next(running) for _ in range(3)])
    again = ds.loader(8, shuffle="global", epochs=None)
    again.load_state_dict(loader.state_dict())
    running = iter(again)
    rest = ids([next(running) for _ in range(4)])
    assert sorted(first + rest) == list(range(50))
    assert sorted(ids([next(running) for _ in range(7)])) == list(range(50))


@pytest.mark.parametrize("prefetch", [0, 1, 5, 100])
def test_batches_made_ahead_are_not_lost_at_a_checkpoint(make: Make, prefetch: int) -> None:
    ds = make(100)
    loader = ds.loader(4, shuffle="global", prefetch=prefetch)
    running = iter(loader)
    seen = ids([next(running) for _ in range(5)])
    state = loader.state_dict()
    again = ds.loader(4, shuffle="global", prefetch=prefetch)
    again.load_state_dict(state)
    assert sorted(seen + ids(again)) == list(range(100))


def test_a_state_at_the_end_has_nothing_left_but_the_next_loop_has(make: Make) -> None:
    ds = make(20)
    loader = ds.loader(10, shuffle="global")
    running = iter(loader)
    next(running), next(running)
    at_the_last_batch = loader.state_dict()
    assert next(running, None) is None
    again = ds.loader(10, shuffle="global")
    again.load_state_dict(at_the_last_batch)
    assert ids(again) == []
    assert ids(again) == ids(loader)


def test_packing_resumes_at_the_very_next_pack(make: Make) -> None:
    ds = make(60)
    options: dict[str, Any] = {"shuffle": "global", "pack": 16, "tokens": "tokens"}
    packs = [b["tokens"][0].tolist() for b in ds.loader(1, **options)]
    loader = ds.loader(1, **options)
    for i, _ in zip(range(5), loader, strict=False):
        again = ds.loader(1, **options)
        again.load_state_dict(loader.state_dict())
        assert [b["tokens"][0].tolist() for b in again] == packs[i + 1 :]


def test_a_state_loaded_inside_a_loop_counts_at_once(make: Make) -> None:
    ds = make(40)
    loader = ds.loader(5)
    start, seen = loader.state_dict(), []
    for batch in loader:
        seen.append(int(batch["id"][0]))
        if seen == [0, 5, 10]:
            loader.load_state_dict(start)
    assert seen == [0, 5, 10, 0, 5, 10, 15, 20, 25, 30, 35]


def test_two_loops_over_one_loader_are_refused(make: Make) -> None:
    loader = make(40).loader(5)
    first, second = iter(loader), iter(loader)
    next(second)
    with pytest.raises(MillpondError, match="another loop"):
        next(first)


def test_a_dropped_loop_leaves_no_thread(make: Make) -> None:
    loader = make(100).loader(1, prefetch=1)
    for _ in loader:
        break
    gc.collect()
    assert not [t for t in threading.enumerate() if t.name == "millpond-prefetch"]


@pytest.mark.slow
def test_a_process_may_end_in_the_middle_of_a_loop(make: Make) -> None:
    script = (
        "import sys\nfrom millpond.loader import open_dataset\n"
        "running = iter(open_dataset(sys.argv[1]).loader(1, shuffle='global', epochs=None))\n"
        "print(len(next(running)['id']))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, make(100).path], capture_output=True, check=False
    )
    assert ended.returncode == 0


def test_an_error_in_the_thread_is_raised_in_the_loop(make: Make) -> None:
    ds = make(100)
    Path(ds.path, "000001.arrow").unlink()
    with pytest.raises(RowsUnreadable, match="000001"):
        list(open_dataset(ds.path).loader(10, prefetch=2))


def test_a_loop_carried_into_a_forked_child_goes_on_there(make: Make) -> None:
    loader = make(100).loader(3, prefetch=1)
    running = iter(loader)
    seen = ids([next(running)])
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.write(writer, json.dumps(ids(running)).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert seen + json.loads(os.read(reader, 65536)) == list(range(100))
    os.close(reader), os.close(writer)


def _ids_of(ds: Dataset, queue: Any) -> None:
    queue.put(ids(ds.loader(7, shuffle="global", prefetch=2)))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_dataset_opens_in_a_process_started_anew(make: Make, method: str) -> None:
    ds = make(50)
    ds.select = None  # A test's own function cannot be found by a new process.
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    plain = open_dataset(ds.path)
    child = context.Process(target=_ids_of, args=(plain, queue))
    child.start()
    assert queue.get(timeout=60) == ids(plain.loader(7, shuffle="global"))
    child.join()


def test_drop_last_and_pad_say_what_they_do(make: Make) -> None:
    ds = make(50)
    assert ids(ds.loader(8, drop_last=True)) == list(range(48))
    padded = ds.loader(8, pad=True, rank=1, world=2)
    batches = list(padded)
    assert [len(b["id"]) for b in batches] == [8, 8, 8, 8]
    assert batches[-1]["id"].tolist() == [6, 7, 8, 9, 10, 11, 12, 13]
    assert [b.padded for b in batches] == [0, 0, 0, 8]
    assert padded.padded == 8
    assert "filled up" in padded.explain()


def test_a_batch_tells_where_it_stands(make: Make) -> None:
    loader = make(50).loader(8, shuffle="global", epochs=2)
    batches = list(loader)
    assert [b.step for b in batches] == list(range(14))
    assert [b.epoch for b in batches] == [0] * 7 + [1] * 7
    assert all(b.units.tolist() == b["id"].tolist() for b in batches)
    assert batches[6].positions.tolist() == [48, 49]
    assert len(loader) == 7


def test_locate_finds_every_row_past_and_future_across_a_change_of_world(make: Make) -> None:
    ds = make(100)
    loaders = [ds.loader(6, shuffle="global", rank=r, world=2) for r in range(2)]
    seen: dict[int, tuple[int, int, int]] = {}

    def note(loader: Loader, batch: Any) -> None:
        for slot, row in enumerate(batch["id"].tolist()):
            seen[row] = (batch.step, loader.geometry.rank, slot)

    running = [iter(loader) for loader in loaders]
    for _ in range(3):
        for loader, loop in zip(loaders, running, strict=True):
            note(loader, next(loop))
    more = [ds.loader(5, shuffle="global", rank=r, world=3) for r in range(3)]
    for loader in more:
        loader.load_state_dict(loaders[0].state_dict())
    found = {row: more[1].locate(row) for row in range(100)}
    for loader in more:
        for batch in loader:
            note(loader, batch)
    for row in range(100):
        at = found[row]
        assert at is not None
        assert (at.step, at.rank, at.slot) == seen[row]
        assert at.delivered == (seen[row][0] < 3)
    assert more[0].locate(5, epoch=1) is not None


def test_locate_knows_what_a_filter_leaves_out(make: Make) -> None:
    loader = make(30).loader(4, shuffle="global", filter="id % 2 = 0")
    assert loader.locate(3) is None
    where = loader.locate(4)
    assert where is not None
    batches = list(loader)
    assert where.step is not None
    assert batches[where.step]["id"][where.slot] == 4


def test_receipts_of_all_ranks_add_up_to_that_of_one_process(make: Make) -> None:
    ds = make(100)
    alone = ds.loader(9, shuffle="global", seed=3)
    list(alone)
    total = Receipt()
    for rank in range(4):
        loader = ds.loader(7, shuffle="global", seed=3, rank=rank, world=4)
        list(loader)
        total = total + loader.receipt()
    assert total == alone.receipt()
    other = ds.loader(9, shuffle="global", seed=4)
    list(other)
    assert other.receipt().samples == 100
    assert other.receipt() != alone.receipt()


def test_a_receipt_is_kept_in_the_state(make: Make) -> None:
    ds = make(100)
    loader = ds.loader(9, shuffle="global")
    running = iter(loader)
    next(running), next(running)
    again = ds.loader(4, shuffle="global")
    again.load_state_dict(json.loads(json.dumps(loader.state_dict())))
    list(again)
    list(running)
    assert again.receipt() == loader.receipt()


def test_a_state_is_small_after_many_changes(make: Make) -> None:
    ds = make(500)
    state = ds.loader(1, shuffle="global", filter="id < 400").state_dict()
    for batch in range(1, 60):
        loader = ds.loader(batch, shuffle="global", filter="id < 400", epochs=None)
        loader.load_state_dict(state)
        next(iter(loader))
        state = loader.state_dict()
        assert len(json.dumps(state)) <= MAX_BYTES


def test_a_mixture_counts_every_source_and_its_share(make: Make) -> None:
    a, b = make(60), make(20, first=1000)
    loader = mix({"a": a, "b": b}, {"a": 3, "b": 1}, seed=2).loader(8, shuffle="global")
    batches = list(loader)
    assert all(np.count_nonzero(batch.source == 1) == 2 for batch in batches)
    assert sorted(ids(batches)) == [*range(60), *range(1000, 1020)]
    assert "75.00%" in loader.explain()


def test_a_short_source_begins_again_in_another_order_or_ends_the_epoch(make: Make) -> None:
    a, b = make(60), make(10, first=1000)
    seen = ids(mix({"a": a, "b": b}, {"a": 1, "b": 1}).loader(10, shuffle="global"))
    again = [i - 1000 for i in seen if i >= 1000]
    assert len(seen) == 119  # The last row of a stands at position 118, before one of b.
    assert [sorted(again[k : k + 10]) for k in range(0, 50, 10)] == [list(range(10))] * 5
    assert again[:10] != again[10:20]
    stopped = mix({"a": a, "b": b}, {"a": 1, "b": 1}, exhausted="stop")
    assert len(ids(stopped.loader(10, shuffle="global"))) == 20


def test_a_mixture_is_located(make: Make) -> None:
    sets = {"a": make(60), "b": make(20, first=1000)}
    loader = mix(sets, {"a": 3, "b": 1}).loader(8, shuffle="global")
    where = loader.locate(7, source="b")
    batches = list(loader)
    assert where is not None
    assert where.step is not None
    assert batches[where.step]["id"][where.slot] == 1007
    with pytest.raises(OptionError, match="the sources are a, b"):
        loader.locate(7)
    with pytest.raises(IndexError, match="no row 20"):
        loader.locate(20, source="b")


# --- Bad samples ---------------------------------------------------------------------------


def damaged(make: Make) -> Dataset:
    ds = make(200)
    Path(ds.path, "000002.arrow").unlink()
    return open_dataset(ds.path)


@pytest.mark.parametrize("world", [1, 3])
def test_bad_samples_are_replaced_alike_on_every_rank(make: Make, world: int) -> None:
    ds = damaged(make)
    loaders = [
        ds.loader(11, shuffle="global", rank=r, world=world, on_error="skip") for r in range(world)
    ]
    steps = [list(loader) for loader in loaders]
    assert len({len(batches) for batches in steps}) == 1
    seen = [i for step in zip(*steps, strict=True) for i in ids(step)]
    assert len(seen) == 200
    assert not set(seen) & set(range(80, 120))
    assert set(seen) == set(range(80)) | set(range(120, 200))
    assert sum(loader.skipped for loader in loaders) == 40
    assert seen == ids(ds.loader(7, shuffle="global", on_error="skip"))


def test_bad_packs_are_replaced_whole(make: Make) -> None:
    ds = make(200)
    options: dict[str, Any] = {"pack": 32, "tokens": "tokens", "shuffle": "global"}
    good = len(list(ds.loader(1, **options)))
    Path(ds.path, "000002.arrow").unlink()
    loader = open_dataset(ds.path).loader(1, on_error="skip", **options)
    packs = [batch["tokens"][0] for batch in loader]
    assert len(packs) == good
    assert not any(((pack >= 80) & (pack < 120)).any() for pack in packs)
    assert 0 < loader.skipped < good


def test_bad_samples_are_counted_in_the_state(make: Make) -> None:
    ds = damaged(make)
    loader = ds.loader(50, on_error="skip")
    list(loader)
    again = ds.loader(50, on_error="skip")
    again.load_state_dict(loader.state_dict())
    assert again.skipped == 40


# --- Bad input -----------------------------------------------------------------------------

Bad = Callable[[Dataset], Any]


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda ds: ds.loader(0), OptionError, "batch_size=0"),
        (lambda ds: ds.loader(4, rank=2, world=2), OptionError, "rank=2, world=2"),
        (lambda ds: ds.loader(4, world=31), OptionError, "30 samples for 31 ranks"),
        (lambda ds: ds.loader(40, drop_last=True), OptionError, "less than one step"),
        (lambda ds: ds.loader(4, columns=["ide"]), ColumnNotFound, "Did you mean 'id'"),
        (lambda ds: ds.loader(4, columns=[1]), ColumnNotFound, "no column 1"),
        (lambda ds: ds.loader(4, columns=[]), OptionError, "at least one column"),
        (lambda ds: ds.loader(4, filter="id < 0"), OptionError, "filter selects no row"),
        (lambda ds: ds.loader(4, shuffle=True), OptionError, "shuffle=True"),
        (lambda ds: ds.loader(4, format="csv"), OptionError, "numpy, arrow, torch"),
        (lambda ds: ds.loader(4, on_error="hide"), OptionError, "raise, skip"),
        (lambda ds: ds.loader(4, epochs=0), OptionError, "epochs=0"),
        (lambda ds: ds.loader(4, prefetch=-1), OptionError, "prefetch=-1"),
        (lambda ds: ds.loader(4, pack=8), OptionError, "needs both"),
        (lambda ds: ds.loader(4, pack=0, tokens="tokens"), OptionError, "pack=0"),
        (lambda ds: ds.loader(4, pack=8, tokens="name"), OptionError, "list of integers"),
        (lambda ds: ds.loader(4, pack=8, tokens="tok"), ColumnNotFound, "tokens"),
        (lambda ds: ds.loader(4, block_rows=3), OptionError, "shuffle='block'"),
        (lambda ds: mix({}, {}), OptionError, "no dataset"),
        (lambda ds: mix({"a": ds}, {"b": 1}), OptionError, "the datasets are a"),
        (lambda ds: mix({"a": ds}, {"a": -1}), OptionError, "-1 is not 0 or more"),
        (lambda ds: mix({"a": ds}, {"a": float("nan")}), OptionError, "nan"),
        (lambda ds: mix({"a": ds}, {"a": 0}), OptionError, "all weights are zero"),
        (lambda ds: mix({"a": ds}, {"a": 1}, exhausted="x"), OptionError, "'repeat' or 'stop'"),
        (lambda ds: mix({"a": ds}, None), OptionError, r"mix\(weights=None\): pass a dict"),
        (lambda ds: mix([ds], {"a": 1}), OptionError, r"mix\(datasets=.*pass a dict"),
        (lambda ds: mix({"a": "x/"}, {"a": 1}), OptionError, "'a' is 'x/'.*open_dataset"),
        (lambda ds: mix({"a": ds}, {"a": None}), OptionError, "None is no number"),
        (lambda ds: mix({"a": ds}, {"a": "1"}), OptionError, "'1' is no number"),
        (lambda ds: mix({"a": ds}, {"a": 1}).loader(2).set_weights(None), OptionError, "None"),
        (lambda ds: ds.loader(4).set_weights({"a": 1}), OptionError, "one dataset"),
        (lambda ds: ds.loader(4).locate(30), RowNotFound, "no row 30; it has 30"),
        (lambda ds: ds.loader(4).locate("3"), OptionError, r"locate\('3'\)"),
        (lambda ds: ds[30], RowNotFound, "no row 30"),
        (lambda ds: ds[True], OptionError, "not by bool"),
        (lambda ds: ds[[True] * 30], OptionError, "not by bool"),
        (lambda ds: open_dataset(ds.path, verify="no"), OptionError, "first, always, off"),
    ],
)
def test_bad_input_is_one_clear_error(
    make: Make, call: Bad, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        call(make(30))


def test_an_empty_dataset_opens_but_gives_no_loader(make: Make) -> None:
    ds = make(0)
    assert len(ds) == 0
    assert ds[:].schema.names == ["id", "name", "tokens", "vector"]
    with pytest.raises(OptionError, match="the dataset is empty"):
        ds.loader(4)


def test_a_filter_is_checked_before_a_row_is_read(make: Make) -> None:
    ds = open_dataset(make(30).path)
    assert ids(ds.loader(4, filter="id >= 25 AND name LIKE 'row%'")) == [25, 26, 27, 28, 29]
    with pytest.raises(ColumnNotFound, match="ident"):
        ds.loader(4, filter="ident > 3")
    with pytest.raises(SqlError):
        ds.loader(4, filter="id >")


def test_sources_must_have_equal_columns(make: Make, tmp_path: Path) -> None:
    write_dataset(pa.table({"id": ["x"]}), str(tmp_path / "text"))
    write_dataset(pa.table({"other": ["x"]}), str(tmp_path / "other"))
    ds = make(5)
    text, other = open_dataset(str(tmp_path / "text")), open_dataset(str(tmp_path / "other"))
    with pytest.raises(SchemaMismatch, match="'id' is string in 'b' and int64 in 'a'"):
        mix({"a": ds, "b": text}, {"a": 1, "b": 1}).loader(1)
    with pytest.raises(SchemaMismatch, match="no column in common"):
        mix({"a": ds, "b": other}, {"a": 1, "b": 1}).loader(1)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seed": 2}, "another seed: 1, and this loader has 2"),
        ({"shuffle": "block"}, "another shuffle"),
        ({"filter": "id > 3"}, "another filter"),
        ({"pack": 8, "tokens": "tokens"}, "other packing"),
    ],
)
def test_a_state_of_another_sequence_is_refused(
    make: Make, change: dict[str, Any], says: str
) -> None:
    ds = make(30)
    state = ds.loader(4, shuffle="global", seed=1).state_dict()
    other = ds.loader(4, **{"shuffle": "global", "seed": 1, **change})
    with pytest.raises(StateMismatch, match=says):
        other.load_state_dict(state)


def test_a_state_of_other_data_or_another_version_is_refused(make: Make) -> None:
    loader = make(30).loader(4)
    state = make(31).loader(4).state_dict()
    with pytest.raises(StateMismatch, match="of other data"):
        loader.load_state_dict(state)
    with pytest.raises(StateMismatch, match="version 7"):
        loader.load_state_dict({**loader.state_dict(), "v": 7})
    for wrong in ({}, {"v": 1}, [], {**loader.state_dict(), "at": [1, 2]}):
        with pytest.raises(StateMismatch):
            loader.load_state_dict(wrong)  # type: ignore[arg-type]
    good = loader.state_dict()
    for wrong in (
        {"at": [0, -1, 0]}, {"at": [0, 31, 0]}, {"at": [0, 1.5, 0]}, {"rank": "0"}, {"rank": 1.5},
        {"receipt": "x"}, {"receipt": None}, {"runs": [[1]]}, {"runs": 3}, {"skipped": "1"},
    ):  # fmt: skip
        with pytest.raises(StateMismatch, match="damaged"):
            loader.load_state_dict({**good, **wrong})
        assert loader.state_dict() == good


def test_a_mixture_refuses_a_forged_log(make: Make) -> None:
    loader = mix({"a": make(5)}, {"a": 1}).loader(1)
    state = loader.state_dict()
    for log in ([[0, "00000"]], [[1, "00001"]], [[0, "00001"], [0, "00001"]], [[0, "xyz"]]):
        with pytest.raises(StateMismatch, match="damaged"):
            loader.load_state_dict({**state, "mix": log})


def test_explain_tells_the_quality_of_block_order(make: Make) -> None:
    ds = make(100)
    text = ds.loader(4, shuffle="block", block_rows=2, window_blocks=4).explain()
    assert "blocks of 2 in windows of 4 blocks" in text
    assert "total variation" in text
