"""Rows of parts in a random or a sorted order: their places are sorted, and rows gathered.

DuckDB sorts whole rows, which for wide ones costs several copies into fresh memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from millpond.engine.kernels import Ints, integers, random_places, row_numbers
from millpond.errors import MillpondError
from millpond.physical.fragment import ORDINAL_NAME
from millpond.physical.stages import PartRows, Task
from millpond.physical.steps import ShuffleStep, SortStep
from millpond.shuffle.index import PartsUnreadable
from millpond.storage.direct import reused_memory
from millpond.worker.streams import Stream
from millpond.worker.worker import Worker

if TYPE_CHECKING:
    import pyarrow as pa

PIECE_BYTES = 8 << 20  # Of rows gathered at a time: they are encoded while they are in the caches.
_SHARE = 4  # Of a task's memory, one in so many bytes; they are there twice for a moment.


def fits(task: Task, worker: Worker) -> bool:
    """Whether the rows of the first input can be held in memory."""
    return holds(read_bytes(task), worker)


def holds(size_bytes: float, worker: Worker) -> bool:
    """Whether so many bytes of rows can be held in memory by a task, or by a thread of one."""
    return size_bytes <= worker.options.memory_limit_bytes // worker.options.threads // _SHARE


def read_bytes(task: Task) -> int:
    """Of the parts that are the first input, as far as is known."""
    rows = task.inputs[0]
    assert isinstance(rows, PartRows)
    if rows.size_bytes is not None:
        return rows.size_bytes
    return sum(p.size_bytes * rows.n_partitions // p.n_partitions for p in rows.parts)


def gathered(
    step: ShuffleStep, batches: Iterator[pa.RecordBatch], worker: Worker
) -> Iterator[pa.RecordBatch]:
    """The rows of all batches in the order of `step.key`."""
    import pyarrow as pa

    one = _together(batches)
    if one is None:
        return
    rows = one.select(range(one.num_columns - 1))
    identities = one.column(one.num_columns - 1)
    with worker.engine.cursor() as cursor:
        cursor.register("identities", pa.table({ORDINAL_NAME: identities}))
        keys = cursor.table(f"SELECT {step.key} AS key FROM identities").column(0)
    del one
    yield from _in_order(rows, random_places(keys.combine_chunks(), identities))


def in_sorted_order(
    step: SortStep, batches: Iterator[pa.RecordBatch], worker: Worker,
    texts: Callable[[pa.Table], pa.Table] = lambda rows: rows,
) -> Iterator[pa.RecordBatch]:  # fmt: skip
    """The rows of all batches, as `texts` makes them, in the order of `step.places`."""
    import numpy as np
    import pyarrow as pa

    one = _together(batches)
    if one is None:
        return
    (rows,) = texts(pa.Table.from_batches([one])).to_batches()
    del one
    numbers = row_numbers(np.arange(rows.num_rows))
    names = [*rows.schema.names, ORDINAL_NAME]
    with worker.engine.cursor() as cursor:
        # DuckDB reads the keys of it, and no other column.
        cursor.register("__s0", pa.table([*rows.columns, numbers], names))
        order = integers(cursor.table(step.places).column(0).combine_chunks())
    yield from _in_order(rows, order)


def spilling_order(
    step: SortStep, batches: Iterator[pa.RecordBatch], schema: pa.Schema, worker: Worker
) -> Iterator[pa.RecordBatch]:
    """The same of rows that are more than memory holds: DuckDB sorts them whole, and spills."""
    failed: list[MillpondError | PartsUnreadable] = []
    stream = Stream(schema, lambda: batches, failed.append)
    try:
        with worker.engine.cursor() as cursor:
            cursor.register_stream("__s0", stream, once=True)
            for batch in cursor.reader(step.sql):
                yield batch.cast(schema)
    except MillpondError as error:  # DuckDB tells only that its input failed.
        raise (failed[0] if failed else error) from error


def _together(batches: Iterator[pa.RecordBatch]) -> pa.RecordBatch | None:
    """All rows in one batch; None if there are none."""
    import pyarrow as pa

    held = list(batches)
    if len(held) < 2:
        return held[0] if held else None
    return pa.concat_batches(held, memory_pool=reused_memory())


def _in_order(rows: pa.RecordBatch, order: Ints) -> Iterator[pa.RecordBatch]:
    import pyarrow.compute as pc

    each = max(1, PIECE_BYTES * rows.num_rows // max(rows.nbytes, 1))
    for first in range(0, len(order), each):
        if each == 1:  # Wide rows are not copied.
            yield rows.slice(int(order[first]), 1)
            continue
        places = row_numbers(order[first : first + each])
        yield pc.take(rows, places, boundscheck=False, memory_pool=reused_memory())
