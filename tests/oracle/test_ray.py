"""On a cluster whose nodes share no scratch folder, the rows are plain DuckDB's too."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

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

    with cluster(2) as found:
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
