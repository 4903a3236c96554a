"""Several files of one task: of rows in order, of partitions, or of ranges of an order.

Each function gives the fields of a `TaskResult` that it knows, as those of `outputs` do.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from millpond.engine.write import codec_of
from millpond.physical.one_pass import RANGES_IN_MEMORY, held_bytes, shuffled_bytes
from millpond.physical.stages import Task, ToFile
from millpond.physical.steps import ShuffleStep, SortStep
from millpond.storage import Staged
from millpond.storage.oserrors import make_private
from millpond.worker.folders import sealed
from millpond.worker.gather import gathered, holds, in_sorted_order, spilling_order
from millpond.worker.moving import Moving
from millpond.worker.outputs import fields_of, part_path, staged_file
from millpond.worker.worker import Worker

if TYPE_CHECKING:
    import pyarrow as pa

    from millpond.engine.parquet import Made
    from millpond.shuffle.range_files import Numbered

FILES_AT_ONCE = 8  # Of rows in order: each is in memory; see `physical/sorting.py`.


def write_in_order(
    rows: Iterator[pa.RecordBatch], task: Task, worker: Worker, check: Callable[[], None]
) -> dict[str, Any]:
    """Parquet files of rows as they come, the last of them smaller, without DuckDB."""
    from millpond.shuffle.ordered_files import write_ordered

    output = task.output
    assert isinstance(output, ToFile)
    schema, codec = worker.engine.arrow_schema(task.schema), codec_of(output)

    def write(begun: Callable[[], str]) -> list[Made]:
        return write_ordered(
            rows, begun, schema, codec=codec, keys=output.sorted_by, check=check,
            each_bytes=output.each_bytes, threads=min(worker.options.threads, FILES_AT_ONCE),
        )  # fmt: skip

    return _files(task, worker, write)


def write_partitions(
    rows: Moving, task: Task, worker: Worker, check: Callable[[], None]
) -> dict[str, Any]:
    """A file for each partition; the last column says which."""
    from millpond.shuffle.files import write_files

    output, options = task.output, worker.options
    assert isinstance(output, ToFile)
    assert output.n is not None
    count = output.n

    def write(begun: Callable[[], str]) -> list[Made]:
        return write_files(
            rows.batches, [begun() for _ in range(count)], rows.schema, rows.texts,
            codec=codec_of(output),
            budget_bytes=held_bytes(count, options.memory_limit_bytes),
            threads=options.threads,
            check=check,
        )  # fmt: skip

    return _files(task, worker, write)


def write_random(
    rows: Moving, step: ShuffleStep, task: Task, worker: Worker, check: Callable[[], None]
) -> dict[str, Any]:
    """Files of all rows in random order: the last columns are a row's identity and its file."""
    import pyarrow as pa

    from millpond.engine.kernels import partition_numbers

    assert isinstance(task.output, ToFile)
    where = f"{task.output.n} files"

    def numbered(batch: pa.RecordBatch) -> Numbered:
        last = batch.num_columns - 1
        numbers = partition_numbers(batch.column(last), where)
        return batch.select(range(last)), numbers

    def in_order(given: Iterator[pa.RecordBatch], size_bytes: float) -> Iterator[pa.RecordBatch]:
        for some in gathered(step, given, worker):
            yield from rows.texts(pa.Table.from_batches([some])).to_batches()

    return _ranges(rows, numbered, in_order, task, worker, check)


def write_sorted(
    rows: Moving, bounds: pa.Table, step: SortStep, task: Task, worker: Worker,
    check: Callable[[], None],
) -> dict[str, Any]:  # fmt: skip
    """Files of all rows in order: the last columns are an ordinal and a key, as in `bounds`."""
    import pyarrow as pa

    from millpond.engine.kernels import Ranges

    ranges = Ranges(bounds)

    def numbered(batch: pa.RecordBatch) -> Numbered:
        width = batch.num_columns - 2
        numbers = ranges.of(batch.column(width + 1), batch.column(width))
        return batch.select(range(width)), numbers

    def in_order(given: Iterator[pa.RecordBatch], size_bytes: float) -> Iterator[pa.RecordBatch]:
        if not holds(size_bytes, worker):
            texts = (rows.texts(pa.Table.from_batches([some])) for some in given)
            batches = (batch for table in texts for batch in table.to_batches())
            return spilling_order(step, batches, rows.schema, worker)
        return in_sorted_order(step, given, worker, rows.texts)

    return _ranges(rows, numbered, in_order, task, worker, check)


def _ranges(
    rows: Moving,
    numbered: Callable[[pa.RecordBatch], Numbered],
    in_order: Callable[[Iterator[pa.RecordBatch], float], Iterator[pa.RecordBatch]],
    task: Task,
    worker: Worker,
    check: Callable[[], None],
) -> dict[str, Any]:
    """The `n` files of a task, each a range of the rows' order."""
    from millpond.engine import parquet
    from millpond.shuffle.range_files import Room, write_ranges

    output, options = task.output, worker.options
    assert isinstance(output, ToFile)
    assert output.n is not None
    codec = codec_of(output)
    part, count, keys = part_path(task, worker), output.n, output.sorted_by
    make_private(os.path.dirname(part))
    room = Room(
        shuffled_bytes(options.memory_limit_bytes), options.buffer_bytes,
        options.memory_limit_bytes // (RANGES_IN_MEMORY * options.threads), options.threads, part,
    )  # fmt: skip

    def make(given: Iterator[pa.RecordBatch], size_bytes: float, path: str) -> parquet.Made:
        given = in_order(given, size_bytes)
        return parquet.write_file(given, path, rows.schema, codec, keys)

    def write(begun: Callable[[], str]) -> list[Made]:
        return write_ranges(
            rows.batches, [begun() for _ in range(count)], numbered, make, room, check
        )

    return _files(task, worker, write)


def _files(
    task: Task, worker: Worker, write: Callable[[Callable[[], str]], list[Made]]
) -> dict[str, Any]:
    """The files of a task, written by `write`, and sealed. It is given what begins the next one
    aside, and tells its path."""
    output, staged = task.output, list[Staged]()
    assert isinstance(output, ToFile)
    storage = worker.storage(output.directory)

    def begun() -> str:
        staged.append(staged_file(task, output, len(staged), worker))
        return staged[-1].local

    try:
        made = []
        for i, (count, checksum) in enumerate(write(begun)):
            made.append(sealed(storage, staged[i], count, checksum=checksum))
            staged[i] = made[i].staged
    except BaseException:
        storage.discard(staged)
        raise
    return fields_of(made)
