"""On a cluster whose nodes share no scratch folder, the rows are plain DuckDB's too."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.compute as pc
import pytest

from millpond import events
from millpond.errors import OptionError
from millpond.options import options
from millpond.session import Session
from tests.oracle.harness import Case, Frames, Shape, check
from tests.oracle.pipelines import CASES
from tests.oracle.test_main_pipeline import ORACLE, pipeline
from tests.support.sessions import Counted, oracle, tuples

pytestmark = pytest.mark.slow
STAGED = Shape("staged", True, 0)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    pytest.importorskip("ray")
    from ray_cluster import cluster

    with cluster(2, gpus=1) as found:
        yield found.address


@pytest.fixture(scope="module")
def counted(address: str) -> Iterator[Counted]:
    with Counted(runtime="ray", address=address, allow_insecure=True) as run:
        yield run


@pytest.fixture(scope="module")
def on_ray(address: str) -> Iterator[Session]:
    given: dict[str, Any] = {"split_bytes": 1, "threads": 2, "memory_limit": "1GB"}
    with Session(options(runtime="ray", address=address, allow_insecure=True, **given)) as sp:
        yield sp


@pytest.mark.parametrize("python", [False, True], ids=["sql", "python"])
@pytest.mark.parametrize("n", [1, 2, 7])
def test_the_main_pipeline(counted: Counted, events_path: str, n: int, python: bool) -> None:
    frame = pipeline(counted.session, events_path, n, python=python)
    counted.forget()  # A function is tried on a few rows, to learn its columns.
    assert tuples(frame) == oracle(ORACLE, events=events_path)
    source, *exchanges = [counted.finished[stage] for stage in sorted(counted.finished)]
    assert source >= 3
    assert exchanges[-1] == n


@pytest.mark.full
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_pipeline(
    case: Case,
    on_ray: Session,
    tables: Callable[[Session], Frames],
    oracle: duckdb.DuckDBPyConnection,
) -> None:
    check(case, on_ray, STAGED, tables(on_ray), oracle)


def test_files_are_written_and_a_rerun_computes_nothing(
    address: str, events_path: str, data_root: str, tmp_path: Path
) -> None:
    target, ran = str(tmp_path / "out"), []
    for _ in range(2):
        given: dict[str, Any] = {"address": address, "allow_insecure": True}
        with Counted(runtime="ray", data_root=data_root, **given) as run:
            written = pipeline(run.session, events_path, 2, python=False).write_parquet(target)
            ran.append(run.tasks)
    assert ran[0] > 0
    assert ran[1] == 0
    rows = [row for path in written.files for row in oracle("FROM f", f=path)]
    assert rows == oracle(ORACLE, events=events_path)


def test_an_interrupted_run_is_taken_up_again(
    address: str, events_path: str, data_root: str
) -> None:
    class Stopped(BaseException):
        pass

    def stop(event: Any) -> None:
        if type(event).__name__ == "StageFinished" and event.stage == 1:
            raise Stopped

    given: dict[str, Any] = {"address": address, "allow_insecure": True, "data_root": data_root}
    with Counted(runtime="ray", **given) as run:
        run.session.listen(stop)
        with pytest.raises(Stopped):
            tuples(pipeline(run.session, events_path, 2, python=False))
        before = run.tasks
    with Counted(runtime="ray", **given) as again:
        rows = tuples(pipeline(again.session, events_path, 2, python=False))
    assert rows == oracle(ORACLE, events=events_path)
    assert again.reused >= before > 0


def test_a_class_on_a_gpu_is_built_once_and_starts_on_the_first_finished_partition(
    counted: Counted, events_path: str, tmp_path: Path
) -> None:
    """The last partition waits for the model's first batch: it comes, or there are no rows."""
    built, called = tmp_path / "built", tmp_path / "called"
    built.mkdir()

    class Model:
        def __init__(self) -> None:
            import tempfile

            tempfile.mkstemp(dir=built)

        def __call__(self, batch: Any) -> Any:
            called.touch()
            return batch.append_column("twice", [pc.multiply(batch["id"], 2)])

    last = duckdb.sql(f"SELECT max(id) FROM '{events_path}'").fetchall()[0][0]

    def patient(rows: Any) -> Any:
        import time

        until_s = time.monotonic() + 120
        while last in rows["id"].to_pylist() and not called.exists():
            if time.monotonic() > until_s:
                raise AssertionError("the class waits for the last partition, or for a CPU")
            time.sleep(0.05)
        return rows

    source = counted.session.read_parquet(events_path).map("id").repartition(6)
    frame = source.map_partitions(patient, schema={"id": "BIGINT"})
    schema = {"id": "BIGINT", "twice": "BIGINT"}
    counted.forget()
    rows = tuples(frame.map_batches(Model, gpus=1, schema=schema))
    assert rows == oracle("SELECT id, id * 2 FROM events", events=events_path)
    assert len(list(built.iterdir())) == 1
    first = next(i for i, e in enumerate(counted.seen) if getattr(e, "stage", 0) == 1)
    assert isinstance(counted.seen[first], events.StagePlanned)
    # Whichever partition that was: the one that is first in number need not be in time.
    began = [
        i for i, e in enumerate(counted.seen) if isinstance(e, events.TaskStarted) and e.stage == 1
    ]
    (ended,) = (
        i
        for i, e in enumerate(counted.seen)
        if isinstance(e, events.StageFinished) and e.stage == 0
    )
    assert began[0] < ended


@pytest.mark.parametrize("more", [{"gpus": 2}, {"cpus": 2}], ids=str)
def test_more_than_a_node_has_is_refused_and_not_waited_for(
    counted: Counted, events_path: str, more: dict[str, Any]
) -> None:
    frame = counted.session.read_parquet(events_path).map("id")
    counted.forget()
    with pytest.raises(OptionError, match=r"no node has more than 1 CPUs and 1 GPUs"):
        frame.map_batches(lambda batch: batch, schema={"id": "BIGINT"}, **more).count()
    assert not counted.tasks


def test_more_rows_move_than_an_object_store_holds(counted: Counted, tmp_path: Path) -> None:
    """Readers ask for what they have room for: Ray's store holds 80 MiB here, and cannot spill."""
    path = str(tmp_path / "rows.parquet")
    rows = "SELECT i, hash(i) AS h, md5(i::VARCHAR) || md5((i + 1)::VARCHAR) AS s"
    duckdb.execute(f"COPY ({rows} FROM range(2_400_000) t(i)) TO '{path}' (FORMAT parquet)")
    spread = counted.session.read_parquet(path).repartition(3, hash_by="h")
    counts = counted.session.partial_sql(
        "SELECT count(*) AS n, sum(length(s))::BIGINT AS b FROM {0}", spread
    )
    counted.forget()
    found = tuples(counts)
    moved = sum(e.size_bytes for e in counted.seen if isinstance(e, events.StageFinished))
    assert moved > 150 * 2**20
    assert sum(n for n, _ in found) == 2_400_000
    assert sum(b for _, b in found) == 2_400_000 * 64


def test_a_training_set_is_written_by_the_nodes(
    counted: Counted, events_path: str, tmp_path: Path
) -> None:
    """Each task one shard; the bytes are those that this machine alone writes."""
    files = []
    with Counted(shape="auto") as here:
        for run, name in ((counted, "ray"), (here, "here")):
            run.forget()
            frame = run.session.read_parquet(events_path).filter("price > 100")
            made = frame.write_dataset(tmp_path / name, rows_per_shard=4000)
            assert run.finished[max(run.finished)] == len(made.files) == 5
            files.append([Path(file).read_bytes() for file in made.files])
    assert files[0] == files[1]
