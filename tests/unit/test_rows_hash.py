"""verify="rows": the rows written and the rows read have one hash, in whatever order."""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from fake_runtime import FakeRuntime
from small_pipelines import gather, options, spread

from millpond.engine.rows_hash import rows_hash
from millpond.physical.stages import Task, TaskResult
from millpond.runtime import Ended, run
from millpond.runtime.conservation import RowsNotConserved
from millpond.worker import Worker, build_worker, run_task


@pytest.fixture
def ours(tmp_path: Path) -> Worker:
    return build_worker(replace(options(tmp_path), verify="rows"))


def test_order_and_batches_do_not_matter_and_values_do(ours: Worker) -> None:
    rows = pa.table({"a": [1, 2, 2, None], "b": ["x", "", None, "x"]})
    turned = pa.concat_tables([rows.slice(2), rows.slice(0, 2)])
    assert rows_hash(ours.engine, rows) == rows_hash(ours.engine, turned)
    assert rows_hash(ours.engine, rows) != rows_hash(ours.engine, rows.slice(1))
    moved = pa.table({"a": [1, 2, None, 2], "b": ["x", "", None, "x"]})
    assert rows_hash(ours.engine, rows) != rows_hash(ours.engine, moved)
    assert rows_hash(ours.engine, rows.slice(0, 0)) == 0


@pytest.mark.slow
def test_a_run_adds_up_and_one_with_other_rows_does_not(ours: Worker) -> None:
    stages = [spread(3), gather(1, 0)]
    seen: list[TaskResult] = []

    def honest(task: Task) -> Ended:
        result = run_task(task, ours)
        assert isinstance(result, TaskResult)
        seen.append(result)
        return result

    def forger(task: Task) -> Ended:
        result = honest(task)
        assert isinstance(result, TaskResult)
        return replace(result, rows_hash=(result.rows_hash or 0) ^ (task.id.stage == 1))

    run(stages, FakeRuntime(work=honest), lambda event: None)
    assert all(result.written_hash for result in seen)
    with pytest.raises(RowsNotConserved, match="read other rows than stage 0 wrote"):
        run(stages, FakeRuntime(work=forger), lambda event: None)
