"""The main pipeline on a Ray cluster of two nodes without shared storage."""

from collections.abc import Iterator
from typing import Any

import pytest
from ray_cluster import cluster

from tests.oracle.test_main_pipeline import ORACLE, pipeline
from tests.support.sessions import Counted, oracle, tuples


@pytest.fixture(scope="module")
def address() -> Iterator[Any]:
    with cluster(2) as found:
        yield found.address


@pytest.mark.slow
@pytest.mark.parametrize(("n", "python"), [(1, False), (2, True), (7, False)])
def test_staged_on_ray(address: str, events_path: str, n: int, python: bool) -> None:
    with Counted(runtime="ray", address=address, allow_insecure=True) as run:
        frame = pipeline(run.session, events_path, n, python=python)
        run.forget()  # A function is tried on a few rows, to learn its columns.
        assert tuples(frame) == oracle(ORACLE, events=events_path)
        source, *exchanges = [run.finished[stage] for stage in sorted(run.finished)]
        assert source >= 3, "every source has at least three tasks"
        assert exchanges[-1] == n, "the sort has as many tasks as the user asked for"


@pytest.mark.slow
def test_files_written_by_ray_tasks_come_in_order(address: str, events_path: str, tmp_path) -> None:
    with Counted(runtime="ray", address=address, allow_insecure=True) as run:
        frame = pipeline(run.session, events_path, 3, python=False)
        written = frame.write_parquet(str(tmp_path / "out"))
        rows = [row for file in written.files for row in oracle("FROM f", f=file)]
        assert rows == oracle(ORACLE, events=events_path)
        assert len(written.files) == 3
