"""After each disaster, made for real: the oracle's rows, none twice, and nothing else is left.

No file in the target but those of the rows, none in any folder for temporary files, no process
that ran a task of ours, no port. Decisions alone are tested in `test_table.py`.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from bad_parts import DAMAGES, spoil

import millpond
from millpond import events
from millpond.errors import GaveUp, TaskError
from tests.faults.test_hostile import listening
from tests.support.sessions import Counted, oracle

pytestmark = pytest.mark.slow
FULL = pytest.mark.full
BOTH = pytest.mark.parametrize("place", ["local", pytest.param("ray", marks=FULL)], indirect=True)
ORACLE = "SELECT id, user_id FROM events WHERE price > 100 ORDER BY id"
SCHEMA = {"id": "BIGINT", "user_id": "BIGINT"}


@pytest.fixture(scope="module")
def nodes() -> Iterator[tuple[str, Path]]:
    """A cluster whose temporary files lie in a folder of its own."""
    pytest.importorskip("ray")
    from ray_cluster import cluster

    # Sockets of Ray lie below it, whose names may not be long.
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", folder)
        with cluster(2) as found:
            yield found.address, Path(folder)


@dataclass
class Place:
    """Where a run takes place, and what it may leave in: `temporary` is empty before."""

    given: dict[str, Any]
    temporary: list[Path]
    folder: Path

    def session(self, **more: Any) -> Counted:
        return Counted(**self.given, **more)


@pytest.fixture
def place(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Place]:
    """Looks at the end whether anything is left."""
    # Before this test's own folder is set: what the cluster's fixture restores is not that.
    nodes = request.getfixturevalue("nodes") if request.param == "ray" else None
    ours = tmp_path / "temporary"
    ours.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(ours))
    monkeypatch.setenv("TMPDIR", str(ours))
    before = ports()
    if nodes is not None:
        address, folder = nodes
        theirs = folder / f"millpond-{os.geteuid()}"  # Beside it lies what is Ray's.
        given = {"runtime": "ray", "address": address, "allow_insecure": True}
        made = Place(given, [ours, theirs], tmp_path)
    else:
        made = Place({"shape": "staged"}, [ours], tmp_path)
    (tmp_path / "pids").mkdir()
    yield made
    assert [file for folder in made.temporary for file in files_below(folder)] == []
    if request.param == "local":
        assert psutil.wait_procs(processes(tmp_path), timeout=30)[1] == []
        assert ports() <= before


def ports() -> set[int]:
    """Those on which this process and what it has started listen."""
    every = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return {port for each in every for port in listening(each)}


def processes(folder: Path) -> list[psutil.Process]:
    """Those that have run a function of `told`, and live."""
    numbers = [int(path.name) for path in (folder / "pids").iterdir()]
    return [psutil.Process(number) for number in numbers if psutil.pid_exists(number)]


def files_below(folder: Path) -> list[str]:
    return [os.path.join(at, name) for at, _, names in os.walk(folder) for name in names]


Function = Callable[[Any], Any]


def told(folder: Path, strike: Callable[[Path], None]) -> Function:
    """A function of batches that strikes once, in the middle; its process leaves its number."""

    def same(batch: Any) -> Any:
        (folder / "pids" / str(os.getpid())).touch()
        if batch.num_rows and batch["id"][0].as_py() > 0 and not (folder / "struck").exists():
            (folder / "struck").touch()
            strike(folder)
        return batch

    return same


def kills(folder: Path) -> None:
    import signal

    os.kill(os.getpid(), signal.SIGKILL)


def hangs(folder: Path) -> None:
    import threading

    (folder / "hangs").write_text(str(os.getpid()))
    threading.Event().wait()


def too_much(folder: Path) -> None:
    raise MemoryError("it does not fit")


def fails(folder: Path) -> None:
    raise ValueError("bad row")


def nothing(folder: Path) -> None:
    pass


def write(sp: millpond.Session, path: str, folder: Path, map: Function, reduce: Function) -> None:
    """A function in the stage that spreads the rows, and one in the stage that gathers them."""
    source = sp.read_parquet(path).filter("price > 100").map("id, user_id")
    spread = source.map_batches(map, schema=SCHEMA, batch_size=512).repartition(
        3, hash_by="user_id"
    )
    gathered = spread.map_batches(reduce, schema=SCHEMA, batch_size=512)
    gathered.write_parquet(str(folder / "out"))


def check(folder: Path, path: str) -> None:
    files = [file for file in files_below(folder / "out") if "/_manifest/" not in file]
    assert all(file.endswith(".parquet") and "/." not in file for file in files), files
    rows = [row for file in files for row in oracle("FROM f", f=file)]
    assert sorted(rows) == oracle(ORACLE, events=path)


STRIKES = {"killed": kills, "hangs": hangs, "out of memory": too_much}
# A minute of all of them on Ray is too much for each change.
SOON = {("ray", "reduce", "killed"), ("ray", "map", "hangs")}
CASES = [
    pytest.param(
        where, stage, how, marks=[] if where == "local" or (where, stage, how) in SOON else FULL
    )
    for where in ("local", "ray") for stage in ("map", "reduce") for how in STRIKES
]  # fmt: skip


@pytest.mark.parametrize(("place", "stage", "how"), CASES, indirect=["place"])
def test_a_task_is_struck_once(place: Place, events_path: str, stage: str, how: str) -> None:
    struck, well = told(place.folder, STRIKES[how]), told(place.folder, nothing)
    with place.session(**{"task_timeout": 3} if how == "hangs" else {}) as run:
        functions = (struck, well) if stage == "map" else (identity, struck)
        write(run.session, events_path, place.folder, *functions)
        assert (place.folder / "struck").exists()
        assert run.retried > 0
        if how == "hangs":
            assert not lives(int((place.folder / "hangs").read_text()))
    check(place.folder, events_path)


def identity(batch: Any) -> Any:
    return batch


def lives(number: int) -> bool:
    """After a while: it is ended when the other attempt is wanted, not before."""
    try:
        _, alive = psutil.wait_procs([psutil.Process(number)], timeout=30)
    except psutil.NoSuchProcess:
        return False
    return bool(alive)


@BOTH
@pytest.mark.parametrize("always", [False, True])
def test_a_function_fails(place: Place, events_path: str, always: bool) -> None:
    """Once is enough: another attempt would hide a fault of the program."""
    struck = told(place.folder, fails)

    def each(batch: Any) -> Any:
        raise ValueError("bad row")

    with place.session() as run:
        with pytest.raises(TaskError, match="bad row"):
            write(run.session, events_path, place.folder, identity, each if always else struck)
        assert run.retried == 0
        assert files_below(place.folder / "out") == []


@pytest.mark.parametrize("place", ["local"], indirect=True)
def test_a_worker_that_is_killed_each_time_ends_with_the_story(
    place: Place, events_path: str
) -> None:
    """On Ray the schedule is the same, and a worker is replaced only after ten seconds."""

    def each(batch: Any) -> Any:
        kills(place.folder)

    with place.session() as run:
        with pytest.raises(GaveUp, match="attempt 3: WorkerLost"):
            write(run.session, events_path, place.folder, identity, each)
        assert files_below(place.folder / "out") == []


@BOTH
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_part_goes_bad(place: Place, events_path: str, damage: str) -> None:
    struck = []

    def strike(event: events.Event) -> None:
        if isinstance(event, events.StageFinished) and event.stage == 0 and not struck:
            struck.append(event)
            parts = [p for folder in place.temporary for p in files_below(folder)]
            part = min(p for p in parts if "/0000/" in p and p.endswith(".part"))
            spoil(Path(part), damage)

    with place.session() as run:
        run.session.listen(strike)
        write(run.session, events_path, place.folder, identity, told(place.folder, nothing))
        assert any(isinstance(event, events.PartsMissing) for event in run.seen)
    check(place.folder, events_path)


@BOTH
def test_the_program_is_interrupted(place: Place, events_path: str) -> None:
    class Stopped(BaseException):
        pass

    def stop(event: events.Event) -> None:
        if isinstance(event, events.TaskFinished) and event.stage == 1:
            raise Stopped("enough")

    with place.session() as run:
        run.session.listen(stop)
        with pytest.raises(Stopped):
            write(run.session, events_path, place.folder, identity, told(place.folder, nothing))
    assert files_below(place.folder / "out") == []
