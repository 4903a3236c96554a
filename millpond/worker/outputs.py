"""What becomes of a task's rows: a part, an output file, or a table that stays in memory.

Each function gives the fields of a `TaskResult` that it knows. Several files of one task are made
in `files`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any

from millpond.engine.cursor import Cursor
from millpond.engine.rows_hash import rows_hash
from millpond.engine.write import as_written, codec_of, write_rows
from millpond.formats.memory import let_go
from millpond.physical.one_pass import why_not_arrow
from millpond.physical.stages import OutputFile, PartRef, Task, ToFile, ToPart
from millpond.schema import Schema
from millpond.storage import Staged
from millpond.storage.oserrors import make_private
from millpond.worker.folders import sealed, write_folders
from millpond.worker.gather import read_bytes
from millpond.worker.worker import Worker

if TYPE_CHECKING:
    import pyarrow as pa

HELD = 0.3  # Of the memory: what is not DuckDB's and no reserve.


def write_part(
    rows: Iterable[pa.RecordBatch], bounds: pa.Table | None, task: Task, worker: Worker
) -> dict[str, Any]:
    """One part with a segment per output partition. `bounds` are those of a range."""
    import pyarrow as pa

    from millpond.engine.kernels import Ranges, partition_numbers
    from millpond.formats.shard_values import value_bytes
    from millpond.shuffle.write import PartWriter

    output = task.output
    assert isinstance(output, ToPart)
    path = part_path(task, worker)
    make_private(os.path.dirname(path))
    writer = PartWriter(
        path, output.n, worker.engine.arrow_schema(task.schema),
        budget_bytes=worker.options.buffer_bytes, hold=worker.held.hold,
        cached_bytes=output.cached_bytes,
    )  # fmt: skip
    sized = 0
    hashed = 0 if worker.options.verify == "rows" else None
    ranges = Ranges(bounds) if output.how == "range" and bounds is not None else None
    try:
        for batch in rows:
            width, numbers = batch.num_columns, None
            if output.how == "column":
                width -= 1
                numbers = partition_numbers(batch.column(width), f"{output.n} partitions")
            elif ranges is not None:
                width -= 2
                numbers = ranges.of(batch.column(width + 1), batch.column(width))
            kept = batch if numbers is None else batch.select(range(width))
            if hashed is not None:
                hashed += rows_hash(worker.engine, pa.Table.from_batches([kept]))
            if output.sized:
                sized += value_bytes(kept)
            with worker.room_for(kept.nbytes):
                writer.add(kept, numbers)
        written = writer.close()
    except BaseException:
        writer.abort()
        raise
    ref = PartRef(
        *task.id, node=worker.node, path=path, size_bytes=written.size_bytes,
        n_partitions=output.n, n_runs=written.n_runs, index_offset=written.index_offset,
        index_checksum=written.index_checksum, rows=written.rows,
    )  # fmt: skip
    return {
        "part": ref,
        "rows": written.rows,
        "size_bytes": written.size_bytes,
        "partition_rows": written.partition_rows,
        "partition_bytes": written.partition_bytes,
        "value_bytes": sized,
        "written_hash": None if hashed is None else hashed % 2**64,
    }


def part_path(task: Task, worker: Worker) -> str:
    stage, partition, attempt = task.id
    # The attempt is in the name: a late one must never replace what a reader opened.
    return os.path.join(
        worker.options.parts, task.run, f"{stage:04d}", f"{partition:05d}.a{attempt}.part"
    )


def write_file(
    cursor: Cursor, sql: str, task: Task, worker: Worker, batch_rows: int,
    check: Callable[[], None],
) -> dict[str, Any]:  # fmt: skip
    """One output file, staged aside. `batch_rows` of it are some megabytes."""
    output = task.output
    assert isinstance(output, ToFile)
    sql = as_written(sql, task.schema, output.format)
    if output.format == "dataset":
        from millpond.worker.shards import write_shard

        return write_shard(cursor.reader(sql, batch_rows), task, worker)
    if output.keys:
        return write_folders(cursor, sql, task, worker, check)
    storage = worker.storage(output.directory)
    staged = staged_file(task, output, task.id.partition, worker)
    try:
        rows = write_rows(cursor, sql, staged.local, output, worker.engine)
        made = sealed(storage, staged, rows)
    except BaseException:
        storage.discard([staged])
        raise
    return {"files": (made,), "rows": rows, "size_bytes": made.staged.size_bytes}


def can_gather(output: ToFile, schema: Schema) -> bool:
    """Whether `write_gathered` writes what DuckDB would."""
    return not (output.format != "parquet" or output.keys or why_not_arrow(schema, output.options))


def write_gathered(rows: Iterator[pa.RecordBatch], task: Task, worker: Worker) -> dict[str, Any]:
    """One Parquet file of rows as they come, without DuckDB."""
    from millpond.engine import parquet

    output = task.output
    assert isinstance(output, ToFile)
    storage = worker.storage(output.directory)
    staged = staged_file(task, output, task.id.partition, worker)
    try:
        schema, codec = worker.engine.arrow_schema(task.schema), codec_of(output)
        with worker.room_for(read_bytes(task)):
            made = parquet.write_file(rows, staged.local, schema, codec, output.sorted_by)
        file = sealed(storage, staged, made.rows, checksum=made.checksum)
    except BaseException:
        storage.discard([staged])
        raise
    return fields_of([file])


def fields_of(made: Sequence[OutputFile]) -> dict[str, Any]:
    return {
        "files": tuple(made),
        "rows": sum(file.rows for file in made),
        "size_bytes": sum(file.staged.size_bytes for file in made),
    }


def staged_file(task: Task, output: ToFile, number: int, worker: Worker) -> Staged:
    """An output file, begun aside."""
    name = output.name.replace("{partition}", f"{number:05d}")
    target = f"{output.directory.rstrip('/')}/{name}"
    # The run is in the name: two sessions may write to one target at once.
    return worker.storage(target).stage(target, f"{task.run}-s{task.id.stage}a{task.id.attempt}")


def keep_in_memory(
    rows: Iterable[pa.RecordBatch], schema: Schema, task: Task, worker: Worker
) -> dict[str, Any]:
    """The rows stay in this process, which collects them. More than its buffers go into a part."""
    import pyarrow as pa

    most_bytes = int(worker.options.memory_limit_bytes * HELD)
    stream, held, size_bytes = iter(rows), list[pa.RecordBatch](), 0
    for batch in stream:
        held.append(batch)
        size_bytes += batch.nbytes
        if size_bytes > most_bytes:
            return write_part(
                chain(let_go(held), stream), None, replace(task, output=ToPart()), worker
            )
    table = pa.Table.from_batches(held, worker.engine.arrow_schema(schema))
    path = f"memory:{id(table)}"
    worker.memory[path] = table
    ref = PartRef(*task.id, "memory", path, table.nbytes, 1, 0, 0, 0, table.num_rows)
    return {"part": ref, "rows": table.num_rows, "size_bytes": table.nbytes}


def discard(result: dict[str, Any], worker: Worker) -> None:
    """Remove what a task has left that failed at its end."""
    for file in result.get("files", ()):
        worker.storage(file.staged.path).discard([file.staged])
    part = result.get("part")
    if part is not None and part.node == "memory":
        worker.memory.pop(part.path, None)
    elif part is not None and not worker.held.forget(part.path):
        os.unlink(part.path)
