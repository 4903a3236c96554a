"""Rows of one statement on their way to several files of a task: by DuckDB, or as codes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from millpond.engine.cursor import BATCH_ROWS, Cursor
from millpond.engine.narrow import narrow_schema, narrowed
from millpond.formats.scan import FILE, ROW
from millpond.physical.fragment import ORDINAL_NAME
from millpond.physical.stages import SplitRows, Task
from millpond.physical.steps import ReadStep, SqlStep
from millpond.worker.inputs import Inputs
from millpond.worker.worker import Worker

if TYPE_CHECKING:
    import pyarrow as pa

    from millpond.shuffle.coded import Group


_GROUPS_IN_MEMORY = 32  # For each thread.


class Moving(NamedTuple):
    """Batches of rows and what says where they go. `texts` makes of rows, without the latter,
    those of `schema`, which files are written of."""

    batches: Iterator[pa.RecordBatch]
    schema: pa.Schema
    texts: Callable[[pa.Table], pa.Table]


def moving(
    step: SqlStep | ReadStep, task: Task, worker: Worker, inputs: Inputs, cursor: Cursor
) -> Moving:
    """The rows of the first step of a task."""
    schema = worker.engine.arrow_schema(task.schema)
    if isinstance(step, ReadStep) and (found := _as_codes(step, schema, task, worker)):
        return found
    known = any(isinstance(item, SplitRows) and item.row_bytes for item in task.inputs)
    few = inputs.batch_rows(step.schema) if known else BATCH_ROWS
    batches = cursor.reader(inputs.bind(step.sql, cursor), few)
    return Moving(map(narrowed, batches), narrow_schema(schema), lambda rows: rows)


def _as_codes(step: ReadStep, schema: pa.Schema, task: Task, worker: Worker) -> Moving | None:
    import numpy as np
    import pyarrow as pa

    from millpond.engine.kernels import row_numbers
    from millpond.shuffle.coded import GROUP_BYTES, coded_files

    source = task.inputs[0]
    assert isinstance(source, SplitRows)
    given = [piece.path for split in source.splits for piece in split.slices]
    paths = [worker.storage(path).local_path(path) for path in given]
    options = worker.options
    # Several row groups for each thread are on their way, as they lie there and as rows.
    most = max(GROUP_BYTES, options.memory_limit_bytes // (_GROUPS_IN_MEMORY * options.threads))
    files = coded_files([path for path in paths if path is not None], schema, most)
    if files is None or None in paths:
        return None

    def more(rows: pa.Table, group: Group) -> Sequence[pa.Array]:
        n, places = rows.num_rows, np.arange(rows.num_rows)
        columns = {
            FILE: row_numbers(np.full(n, group.place)),
            ROW: row_numbers(places + group.first_row),
            ORDINAL_NAME: row_numbers(places + (group.first_of_all + 1)),
        }
        names = [*rows.schema.names, *columns]
        with worker.engine.cursor() as cursor:
            cursor.register("__s0", pa.table([*rows.columns, *columns.values()], names))
            found = cursor.table(step.more).combine_chunks()
        return [pa.array([], c.type) if not n else c.chunk(0) for c in found.columns]

    return Moving(files.batches(more, options.threads), files.schema, files.texts)
