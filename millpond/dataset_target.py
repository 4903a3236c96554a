"""Where a training set goes. Needs pyarrow, which `import millpond` does not load."""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from millpond.formats.shard_commit import check_vacant, commit_shards, find_index
from millpond.formats.shard_types import storage_schema
from millpond.formats.shards import ShardInfo
from millpond.plan import nodes as n
from millpond.plan.sinks import shard_size
from millpond.storage import OutputFile, Storage
from millpond.targets import WriteResult, written


@dataclass(frozen=True, slots=True)
class DatasetTarget:
    """A training set: its index names the shards (`formats/shard_commit.py`)."""

    storage: Storage
    sink: n.DataSink
    columns: pa.Schema
    commit_id: str

    def __post_init__(self) -> None:
        storage_schema(self.columns)  # Refuses types that a shard cannot hold.

    def complete(self) -> WriteResult | None:
        found = find_index(self.storage, self.sink.path)
        if found is None or found.commit_id != self.commit_id:
            return None
        paths = tuple(f"{self.sink.path}/{shard.name}" for shard in found.shards)
        return WriteResult(paths, found.rows, found.size_bytes)

    def check(self) -> None:
        check_vacant(self.storage, self.sink.path, f"write_dataset({self.sink.path!r})")

    def commit(self, files: Sequence[OutputFile]) -> WriteResult:
        shards = [(file.staged, ShardInfo.from_json(file.told)) for file in files]
        commit_shards(
            self.storage, self.sink.path, shards, self.columns,
            align=shard_size(self.sink).align, commit_id=self.commit_id,
        )  # fmt: skip
        kept = [file for file in files if file.rows]
        return written(kept, sum(file.rows for file in kept))
