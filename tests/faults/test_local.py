"""Named disasters on one machine: after each, the rows are the oracle's."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

import millpond
from millpond import events
from millpond.errors import GaveUp, PartDamaged, TaskError
from tests.support.sessions import Counted, oracle, tuples

SORTED = "SELECT id, user_id FROM events WHERE price > 100 ORDER BY user_id, id"


def spread_and_sorted(sp: millpond.Session, path: str) -> millpond.DataFrame:
    frame = sp.read_parquet(path).filter("price > 100").map("id, user_id")
    spread = frame.repartition(3, hash_by="id")
    return sp.partial_sql("SELECT id, user_id FROM {0}", spread).sort("user_id, id")


def on(run: Counted, kind: type, action: Callable[[events.Event], None]) -> None:
    """Call `action` with each event of `kind`, between two decisions of the schedule."""
    run.session.listen(lambda event: action(event) if isinstance(event, kind) else None)


def flipped(data: bytes) -> bytes:
    changed = bytearray(data)
    changed[len(data) // 3] ^= 4
    return bytes(changed)


class Files:
    """The parts of a session that keeps them: files below its data root."""

    def __init__(self, folder: Path) -> None:
        self.given = {"data_root": str(folder)}

    def of(self, run: Counted, stage: int) -> list[str]:
        found = Path(run.session.parts_folder).glob(f"*/{stage:04d}/*.part")
        return sorted(str(path) for path in found)

    def flip_a_bit(self, run: Counted, path: str) -> None:
        Path(path).write_bytes(flipped(Path(path).read_bytes()))

    def delete(self, run: Counted, path: str) -> None:
        Path(path).unlink()


class Held:
    """Small parts, which stay in memory otherwise."""

    given: ClassVar[dict[str, str]] = {}

    def __init__(self, folder: Path) -> None: ...

    def of(self, run: Counted, stage: int) -> list[str]:
        return sorted(path for path in self.parts(run) if f"/{stage:04d}/" in path)

    def flip_a_bit(self, run: Counted, path: str) -> None:
        self.parts(run)[path] = flipped(self.parts(run)[path])

    def delete(self, run: Counted, path: str) -> None:
        assert run.session._work.worker.held.forget(path)

    def parts(self, run: Counted) -> dict[str, bytes]:
        return run.session._work.worker.held._parts


@pytest.fixture(params=[Files, Held])
def parts(request: pytest.FixtureRequest, tmp_path: Path) -> Files | Held:
    made: Files | Held = request.param(tmp_path / "root")
    return made


@pytest.mark.slow
def test_a_flipped_bit_in_a_part_is_found_and_the_part_computed_again(
    events_path: str, parts: Files | Held
) -> None:
    with Counted(shape="staged", **parts.given) as run:
        splits = []

        def damage(event: events.StageFinished) -> None:
            if event.stage == 0 and not splits:
                splits.extend(parts.of(run, 0))
                parts.flip_a_bit(run, splits[1])

        on(run, events.StageFinished, damage)
        assert tuples(spread_and_sorted(run.session, events_path)) == oracle(
            SORTED, events=events_path
        )
        missing = [e for e in run.seen if isinstance(e, events.PartsMissing)]
        assert [e.parts for e in missing] == [((0, 1),)]
        assert "checksum" in missing[0].reason or "damaged" in missing[0].reason
        assert run.finished[0] == len(splits) + 1, "one part, and no other, is computed again"


@pytest.mark.slow
def test_a_part_that_is_damaged_twice_is_an_error_that_names_it(
    events_path: str, parts: Files | Held
) -> None:
    with Counted(shape="staged", **parts.given) as run:

        def damage_each(event: events.TaskFinished) -> None:
            if (event.stage, event.partition) == (0, 1):
                name = f"/00001.a{event.attempt}.part"
                (path,) = [path for path in parts.of(run, 0) if path.endswith(name)]
                parts.flip_a_bit(run, path)

        on(run, events.TaskFinished, damage_each)
        with pytest.raises(PartDamaged, match="00001"):
            spread_and_sorted(run.session, events_path).take_all()


@pytest.mark.slow
def test_a_deleted_part_is_computed_again(events_path: str, parts: Files | Held) -> None:
    with Counted(shape="staged", **parts.given) as run:

        def delete(event: events.StageFinished) -> None:
            for path in parts.of(run, 0):
                if event.stage == 0 and path.endswith("/0000/00000.a0.part"):
                    parts.delete(run, path)

        on(run, events.StageFinished, delete)
        assert tuples(spread_and_sorted(run.session, events_path)) == oracle(
            SORTED, events=events_path
        )
        assert any(isinstance(e, events.PartsMissing) for e in run.seen)


ORDERS: dict[str, Callable[[millpond.DataFrame], millpond.DataFrame]] = {
    "random": lambda f: f.repartition(4).random_shuffle(seed=3),
    "random, of rows in no order": lambda f: f.repartition(4, hash_by="id").random_shuffle(seed=3),
    "a sample": lambda f: f.repartition(4).sample(0.3, seed=3).sort("user_id"),
    "ties": lambda f: f.repartition(4).sort("price > 100"),
}


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1])
@pytest.mark.parametrize("order", ORDERS)
def test_an_order_is_the_same_after_parts_were_lost(
    events_path: str, tmp_path: Path, order: str, stage: int
) -> None:
    parts, found = Files(tmp_path / "root"), []
    for lose in (False, True):
        with Counted(shape="staged", data_root=str(tmp_path / f"root{lose}")) as run:

            def delete(event: events.StageFinished, run: Counted = run) -> None:
                for path in parts.of(run, stage)[:2]:
                    if event.stage == stage and path.endswith(".a0.part"):
                        parts.delete(run, path)

            if lose:
                on(run, events.StageFinished, delete)
            frame = run.session.read_parquet(events_path).select("id, user_id, price")
            found.append(tuples(ORDERS[order](frame)))
            assert lose == any(isinstance(e, events.PartsMissing) for e in run.seen)
    assert found[0] == found[1]
    assert len(found[0]) > 100


@pytest.mark.slow
def test_a_killed_worker_process_is_replaced_and_its_task_runs_again(
    events_path: str, tmp_path: Path
) -> None:
    flag = tmp_path / "killed"

    def kills_once(row: dict) -> dict:
        if row["id"] == 5_000 and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return {"id": row["id"]}

    with Counted(shape="staged") as run:
        frame = run.session.read_parquet(events_path).map(kills_once, schema={"id": "BIGINT"})
        assert tuples(frame.sort("id")) == oracle("SELECT id FROM events", events=events_path)
        assert flag.exists()
        assert run.retried == 1


@pytest.mark.slow
def test_a_function_that_always_kills_its_worker_ends_with_the_story(events_path: str) -> None:
    def kills(row: dict) -> dict:
        os.kill(os.getpid(), signal.SIGKILL)
        return row

    with Counted(shape="staged") as run:
        frame = run.session.read_parquet(events_path).map(kills, schema={"id": "BIGINT"})
        with pytest.raises(GaveUp, match="attempt 3: WorkerLost"):
            frame.count()


@pytest.mark.slow
def test_a_complete_run_run_again_computes_nothing(
    events_path: str, data_root: str, tmp_path: Path
) -> None:
    target = str(tmp_path / "out")
    with Counted(shape="staged", data_root=data_root) as run:
        first = spread_and_sorted(run.session, events_path).write_parquet(target)
        assert run.tasks > 0
    with Counted(shape="staged", data_root=data_root) as run:
        assert spread_and_sorted(run.session, events_path).write_parquet(target) == first
        assert run.tasks == 0


@pytest.mark.slow
def test_a_changed_input_is_computed_anew(events_path: str, data_root: str, tmp_path: Path) -> None:
    copy = tmp_path / "events.parquet"
    copy.write_bytes(Path(events_path).read_bytes())
    with Counted(shape="staged", data_root=data_root) as run:
        before = spread_and_sorted(run.session, str(copy)).count()
    os.utime(copy, ns=(1, 1))
    with Counted(shape="staged", data_root=data_root) as run:
        assert spread_and_sorted(run.session, str(copy)).count() == before
        assert run.reused == 0


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["staged", "fused"])
@pytest.mark.parametrize("version", ["VERSION", "DUCKDB"])
def test_what_another_version_computed_is_computed_anew(
    events_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: str, version: str
) -> None:
    """A later version may sort, hash or round in another way, or mend a fault."""
    ran = []
    for number in ("1", "1", "2"):
        monkeypatch.setattr(f"millpond.workplace.{version}", number)
        with Counted(shape=shape, data_root=str(tmp_path / "root")) as run:
            frame = run.session.read_parquet(events_path).filter("price > 100")
            frame.write_parquet(str(tmp_path / "out"), mode="overwrite")
            ran.append(run.tasks > 0)
    assert ran == [True, False, True]


@pytest.mark.slow
def test_an_input_changed_in_place_is_noticed_though_its_time_was_set_back(
    data_root: str, tmp_path: Path
) -> None:
    """As `rsync --inplace --times` does: size, time and inode are what they were."""
    path, found = tmp_path / "numbers.csv", []
    for last in ("7", "8"):
        with path.open("r+" if found else "w") as file:
            file.write("".join(f"{i}\n" for i in range(100_000)) + last + "\n")
        os.utime(path, ns=(10**18, 10**18))
        with Counted(shape="staged", data_root=data_root) as run:
            frame = run.session.read_csv(str(path), {"x": "BIGINT"}, header=False)
            found += run.session.sql("SELECT sum(x) AS s FROM t", t=frame).take_all()
            assert run.reused == 0
    assert found[1]["s"] == found[0]["s"] + 1


@pytest.mark.slow
def test_results_that_vary_are_for_their_own_run_and_explain_says_so(
    events_path: str, data_root: str
) -> None:
    found = []
    for _ in range(2):
        with Counted(shape="staged", data_root=data_root) as run:
            rows = run.session.read_parquet(events_path).map("id, random() AS r")
            frame = run.session.partial_sql("SELECT r FROM {0}", rows.repartition(3, hash_by="id"))
            assert "never reused by another run" in frame.explain(physical=True)
            found.append(sorted(tuples(frame)))
            assert run.reused == 0
    assert len(found[0]) == len(found[1])
    assert found[0] != found[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "step", "again"),
    [({}, 1, True), ({}, 2, False), ({"key": "v1"}, 2, True), ({"deterministic": False}, 1, False)],
    ids=["as it was", "edited", "with a key", "not deterministic"],
)
def test_what_a_function_gave_is_found_again_if_it_is_the_same(
    events_path: str, data_root: str, more: dict[str, Any], step: int, again: bool
) -> None:
    def adds(n: int) -> Any:
        return lambda row: {"id": row["id"] + n}

    for n in (1, step):
        with Counted(shape="staged", data_root=data_root) as run:
            source = run.session.read_parquet(events_path).map("id")
            tuples(source.map(adds(n), schema={"id": "BIGINT"}, **more))
    assert (run.tasks == 0) == again


@pytest.mark.slow
def test_an_edited_step_is_computed_anew_and_what_is_before_it_is_not(
    events_path: str, data_root: str
) -> None:
    def edited(sp: millpond.Session, sql: str) -> millpond.DataFrame:
        spread = sp.read_parquet(events_path).repartition(3, hash_by="id")
        return sp.partial_sql(sql, spread)

    with Counted(shape="staged", data_root=data_root) as run:
        edited(run.session, "SELECT id FROM {0} WHERE price > 1").take_all()
        splits = run.finished[0]
    with Counted(shape="staged", data_root=data_root) as run:
        rows = edited(run.session, "SELECT id FROM {0} WHERE price > 400").take_all()
        assert run.finished[0] == 0
        assert (run.reused, run.finished[1]) == (splits, 3)
        assert len(rows) == oracle("SELECT count(*) FROM events WHERE price > 400",
                                   events=events_path)[0][0]  # fmt: skip


@pytest.mark.slow
def test_a_write_that_fails_leaves_no_file_of_the_processes_that_it_killed(tmp_path: Path) -> None:
    """Both tasks are in the middle of their file when one of them fails."""
    target, written = tmp_path / "out", tmp_path / "written"

    def fails(batch: Any) -> Any:
        import time

        if batch["item"][0].as_py() < 100:  # The other one has begun to write by now.
            while not written.exists():
                time.sleep(0.01)
            raise ValueError("boom")
        yield batch
        written.touch()
        time.sleep(60)

    with Counted(shape="staged") as run:
        spread = run.session.from_items(list(range(200))).repartition(2, by_rows=True)
        frame = spread.map_batches(fails, schema={"item": "BIGINT"})
        with pytest.raises(TaskError, match="boom"):
            frame.write_parquet(str(target))
        assert [path for path in target.rglob("*") if path.is_file()] == []
    assert not list(target.glob(".millpond-*"))
