"""Whole files of fixed-width records to sorted files, without SQL."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from millpond.formats.fixed import Layout
from millpond.physical.stages import OutputFile, RecordSortStep, SplitRows, Task, ToFile
from millpond.shuffle.records import RecordSort, sort_files
from millpond.storage import Staged
from millpond.worker.outputs import staged_file
from millpond.worker.worker import Worker


def sort_records(
    step: RecordSortStep, task: Task, worker: Worker, check: Callable[[], None]
) -> dict[str, Any]:
    """Whole files to sorted files; as many as the memory asks for."""
    (given,), output, options = task.inputs, task.output, worker.options
    assert isinstance(given, SplitRows)
    assert isinstance(output, ToFile)
    layout = Layout.of(dict(step.fields), "sort")
    paths = [piece.path for split in given.splits for piece in split.slices]
    files = [file for path in paths if (file := worker.storage(path).stat(path))]
    # What the libraries take before the first record is about 100 MB.
    memory = max(options.memory_limit_bytes * 9 // 10 - 100 * 2**20, 64 * 2**20)
    how = RecordSort(layout, layout.places[step.key], memory, options.threads, check)
    scratch = os.path.join(options.parts, task.run, f"records-a{task.id.attempt}")
    os.makedirs(scratch, mode=0o700, exist_ok=True)
    storage, staged = worker.storage(output.directory), dict[int, Staged]()

    def name(number: int) -> str:
        if number not in staged:
            staged[number] = staged_file(task, output, number, worker)
        return staged[number].local

    try:
        done = sort_files(files, name, scratch, how)
        sealed = [storage.seal(staged[number]) for number in sorted(staged)]
    except BaseException:
        storage.discard(list(staged.values()))
        raise
    made = [OutputFile(each, each.size_bytes // layout.record_bytes) for each in sealed]
    return {
        "files": tuple(made),
        "rows_in": done.rows,
        "rows": done.rows,
        "size_bytes": sum(each.size_bytes for each in sealed),
    }
