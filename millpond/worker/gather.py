"""Rows of parts in a random or a sorted order: their places are sorted, and rows gathered.

DuckDB sorts whole rows, which for wide ones costs several copies into fresh memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from millpond.engine.kernels import Ints, integers, random_places, row_numbers
from millpond.physical.fragment import ORDINAL_NAME
from millpond.physical.stages import PartRows, ShuffleStep, SortStep, Task
from millpond.storage.direct import reused_memory
from millpond.worker.worker import Worker

if TYPE_CHECKING:
    import pyarrow as pa

PIECE_BYTES = 8 << 20  # Of rows gathered at a time: they are encoded while they are in the caches.
_SHARE = 4  # Of a task's memory, one in so many bytes; they are there twice for a moment.


def fits(task: Task, worker: Worker) -> bool:
    """Whether the rows of the first input can be held in memory."""
    return read_bytes(task) <= worker.options.memory_limit_bytes // worker.options.threads // _SHARE


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

    held = list(batches)
    if not held:
        return
    one = held[0] if len(held) == 1 else pa.concat_batches(held, memory_pool=reused_memory())
    del held
    rows = one.select(range(one.num_columns - 1))
    identities = one.column(one.num_columns - 1)
    with worker.engine.cursor() as cursor:
        cursor.register("identities", pa.table({ORDINAL_NAME: identities}))
        keys = cursor.table(f"SELECT {step.key} AS key FROM identities").column(0)
    del one
    yield from _in_order(rows, random_places(keys.combine_chunks(), identities))


def in_sorted_order(
    step: SortStep, batches: Iterator[pa.RecordBatch], worker: Worker
) -> Iterator[pa.RecordBatch]:
    """The rows of all batches in the order of `step.places`."""
    import numpy as np
    import pyarrow as pa

    held = list(batches)
    if not held:
        return
    rows = held[0] if len(held) == 1 else pa.concat_batches(held, memory_pool=reused_memory())
    del held
    numbers = row_numbers(np.arange(rows.num_rows))
    names = [*rows.schema.names, ORDINAL_NAME]
    with worker.engine.cursor() as cursor:
        # DuckDB reads the keys of it, and no other column.
        cursor.register("__s0", pa.table([*rows.columns, numbers], names))
        order = integers(cursor.table(step.places).column(0).combine_chunks())
    yield from _in_order(rows, order)


def _in_order(rows: pa.RecordBatch, order: Ints) -> Iterator[pa.RecordBatch]:
    import pyarrow.compute as pc

    each = max(1, PIECE_BYTES * rows.num_rows // max(rows.nbytes, 1))
    for first in range(0, len(order), each):
        if each == 1:  # Wide rows are not copied.
            yield rows.slice(int(order[first]), 1)
            continue
        places = row_numbers(order[first : first + each])
        yield pc.take(rows, places, boundscheck=False, memory_pool=reused_memory())
