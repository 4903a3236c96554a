"""Fixed-width records without SQL: whole files to sorted files, or the tasks of such a sort."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from millpond.formats.fixed import Layout
from millpond.physical.stages import OutputFile, PartRows, SplitRows, Task, ToFile
from millpond.physical.steps import RecordBoundsStep, RecordRangesStep, RecordSortStep
from millpond.shuffle import record_ranges
from millpond.shuffle.records import RecordSort, sort_files
from millpond.storage import Staged
from millpond.storage.oserrors import make_private
from millpond.worker.inputs import Inputs
from millpond.worker.outputs import staged_file
from millpond.worker.worker import Worker

if TYPE_CHECKING:
    import pyarrow as pa


def record_rows(
    step: RecordBoundsStep | RecordRangesStep, task: Task, worker: Worker, inputs: Inputs
) -> Iterator[pa.RecordBatch]:
    """The bounds of ranges, or the records of a split and the range of each."""
    layout = Layout.of(dict(step.fields), "sort")
    given, key = task.inputs[0], layout.places[step.key]
    assert isinstance(given, SplitRows)
    pieces = record_ranges.pieces_of(given.splits, task.id.partition, layout, worker.storage)
    if isinstance(step, RecordBoundsStep):
        return iter([record_ranges.bounds(pieces, layout, key, step.n, worker.storage)])
    found = inputs.part_table(1)
    return record_ranges.records(pieces, layout, key, found, worker.storage)


def sort_records(
    step: RecordSortStep, task: Task, worker: Worker, inputs: Inputs, check: Callable[[], None]
) -> dict[str, Any]:
    """Whole files to sorted files, as many as the memory asks for; or one range to one file."""
    layout, output = Layout.of(dict(step.fields), "sort"), task.output
    assert isinstance(output, ToFile)
    storage, staged = worker.storage(output.directory), dict[int, Staged]()

    def name(number: int) -> str:
        if number not in staged:
            staged[number] = staged_file(task, output, number, worker)
        return staged[number].local

    told: dict[str, Any] = {}
    try:
        if isinstance(task.inputs[0], PartRows):
            batches = inputs.part_batches(0)
            key, path = layout.places[step.key], name(task.id.partition)
            # A file to be uploaded is read at once, and removed: it need not reach the disk.
            after = None if staged[task.id.partition].upload else 0
            record_ranges.sort_range(batches, layout, key, path, check, direct_after=after)
        else:
            told["rows_in"] = _sort_files(step, layout, task, worker, name, check)
        sealed = [storage.seal(staged[number]) for number in sorted(staged)]
    except BaseException:
        storage.discard(list(staged.values()))
        raise
    made = [OutputFile(each, each.size_bytes // layout.record_bytes) for each in sealed]
    return told | {
        "files": tuple(made),
        "rows": sum(file.rows for file in made),
        "size_bytes": sum(each.size_bytes for each in sealed),
    }


def _sort_files(
    step: RecordSortStep, layout: Layout, task: Task, worker: Worker,
    name: Callable[[int], str], check: Callable[[], None],
) -> int:  # fmt: skip
    (given,), options = task.inputs, worker.options
    assert isinstance(given, SplitRows)
    paths = [piece.path for split in given.splits for piece in split.slices]
    files = [file for path in paths if (file := worker.storage(path).stat(path))]
    # What the libraries take before the first record is about 100 MB.
    memory = max(options.memory_limit_bytes * 9 // 10 - 100 * 2**20, 64 * 2**20)
    how = RecordSort(layout, layout.places[step.key], memory, options.threads, check)
    scratch = os.path.join(options.parts, task.run, f"records-a{task.id.attempt}")
    make_private(scratch)
    return sort_files(files, name, scratch, how).rows
