"""Rows of a task → one shard of a training set, staged aside."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from millpond.formats.shards import ShardWriter
from millpond.physical.stages import OutputFile, Task, ToFile
from millpond.worker.outputs import staged_file
from millpond.worker.worker import Worker

if TYPE_CHECKING:
    import pyarrow as pa


def write_shard(rows: Iterable[pa.RecordBatch], task: Task, worker: Worker) -> dict[str, Any]:
    """The fields of a `TaskResult`. Two record batches of the shard are held at a time."""
    output = task.output
    assert isinstance(output, ToFile)
    options = dict(output.options)
    schema = worker.engine.arrow_schema(task.schema)
    storage = worker.storage(output.directory)
    staged = staged_file(task, output, task.id.partition, worker)
    try:
        with ShardWriter(
            staged.local, schema, name=staged.path.rpartition("/")[2],
            batch_rows=int(options["batch_rows"]),
            align=int(options["align"]) if "align" in options else None,
        ) as writer:  # fmt: skip
            for batch in rows:
                writer.write(batch if batch.schema == schema else batch.cast(schema))
            info = writer.close()
        made = OutputFile(storage.seal(staged), info.rows, told=info.to_json())
    except BaseException:
        storage.discard([staged])
        raise
    return {"files": (made,), "rows": info.rows, "size_bytes": info.size_bytes}
