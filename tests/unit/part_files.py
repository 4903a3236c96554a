"""Parts on this machine's disk, for tests."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from millpond.physical.stages import PartRef, PartRows
from millpond.schema import Schema
from millpond.shuffle.index import ReadRanges
from millpond.shuffle.read import read_part_rows
from millpond.shuffle.write import PartWriter, Written

NO_SCHEMA = Schema(())


def write_part(
    path: Path,
    batches: Iterable[tuple[pa.RecordBatch, Any]],
    n_partitions: int = 1,
    *,
    budget_bytes: int = 1 << 20,
    schema: pa.Schema | None = None,
    task: int = 0,
) -> PartRef:
    batches = list(batches)
    writer = PartWriter(
        str(path), n_partitions, schema or batches[0][0].schema, budget_bytes=budget_bytes
    )
    for batch, numbers in batches:
        writer.add(batch, None if numbers is None else np.asarray(numbers, np.uint32))
    return part_ref(path, n_partitions, writer.close(), task)


def part_ref(path: Path, n_partitions: int, written: Written, task: int = 0) -> PartRef:
    return PartRef(
        stage=0,
        task=task,
        attempt=0,
        node="",
        path=str(path),
        size_bytes=written.size_bytes,
        n_partitions=n_partitions,
        n_runs=written.n_runs,
        index_offset=written.index_offset,
        index_checksum=written.index_checksum,
        rows=written.rows,
    )


def from_disk(ref: PartRef, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    data = Path(ref.path).read_bytes()
    return [data[offset : offset + length] for offset, length in ranges]


def wanted(*parts: PartRef, **narrowing: Any) -> PartRows:
    return PartRows(stage=0, schema=NO_SCHEMA, parts=parts, **narrowing)


def read(
    rows: PartRows, schema: pa.Schema, read_ranges: ReadRanges = from_disk, **how: int
) -> pa.Table:
    return pa.Table.from_batches(read_part_rows(rows, schema, read_ranges, **how), schema)


def numbers_batch(*numbers: int) -> pa.RecordBatch:
    return pa.record_batch({"n": pa.array(numbers, pa.int64())})
