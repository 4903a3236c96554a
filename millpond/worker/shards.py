"""Rows of a task → one shard of a training set, staged aside."""

from __future__ import annotations

from typing import Any

from millpond.engine.duckdb import Cursor
from millpond.formats.shards import ShardWriter
from millpond.physical.stages import OutputFile, Task, ToFile
from millpond.storage import Staged
from millpond.worker.worker import Worker


def write_shard(
    cursor: Cursor, sql: str, batch_rows: int, staged: Staged, task: Task, worker: Worker
) -> dict[str, Any]:
    """The fields of a `TaskResult`. `batch_rows` of the query's rows are held at a time."""
    output = task.output
    assert isinstance(output, ToFile)
    options = dict(output.options)
    schema = worker.engine.arrow_schema(task.schema)
    with ShardWriter(
        staged.local, schema, name=staged.path.rpartition("/")[2],
        batch_rows=int(options["batch_rows"]),
        align=int(options["align"]) if "align" in options else None,
    ) as writer:  # fmt: skip
        for batch in cursor.reader(sql, batch_rows):
            writer.write(batch if batch.schema == schema else batch.cast(schema))
        info = writer.close()
    sealed = worker.storage(output.directory).seal(staged)
    made = OutputFile(sealed, info.rows, told=info.to_json())
    return {"files": (made,), "rows": info.rows, "size_bytes": info.size_bytes}
