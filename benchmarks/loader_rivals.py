"""How libraries write rows of one column, and take a batch of them by number.

For `benchmarks/loader.py`. Rivals that are installed take part: pylance, lancedb,
array-record, grain, datasets, and mosaicml-streaming with `--no-deps`.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from xxhash import xxh3_64_intdigest

from millpond import open_dataset
from millpond.loader import write_dataset

Ids = npt.NDArray[np.int64]
Take = Callable[[Ids], Any]


@dataclass(frozen=True)
class Rows:
    """Rows of `id` and `payload`, made anew at each pass: no library finds them in memory."""

    name: str
    n: int
    per_batch: int
    kind: pa.DataType
    values: Callable[[int, int], pa.Array]

    @property
    def schema(self) -> pa.Schema:
        return pa.schema([("id", pa.int64()), ("payload", self.kind)])

    def batches(self) -> Iterator[pa.RecordBatch]:
        for at in range(0, self.n, self.per_batch):
            size = min(self.per_batch, self.n - at)
            columns = [pa.array(np.arange(at, at + size)), self.values(at, size)]
            yield pa.RecordBatch.from_arrays(columns, schema=self.schema)

    def reader(self) -> pa.RecordBatchReader:
        return pa.RecordBatchReader.from_batches(self.schema, self.batches())

    def payloads(self) -> Iterator[bytes]:
        for batch in self.batches():
            for value in batch["payload"]:
                fixed = isinstance(value, pa.FixedSizeBinaryScalar)
                yield value.as_py() if fixed else np.asarray(value.values).tobytes()


def fixed_rows(name: str, n: int, width: int) -> Rows:
    """Random bytes, `width` a row."""

    def values(at: int, size: int) -> pa.Array:
        data = np.random.default_rng(at).bytes(size * width)
        return pa.Array.from_buffers(pa.binary(width), size, [None, pa.py_buffer(data)])

    return Rows(name, n, max(512, (32 << 20) // width), pa.binary(width), values)


def token_rows(n: int) -> Rows:
    """Token lists of 503 on average, as web documents are spread: 2 KB."""

    def values(at: int, size: int) -> pa.Array:
        draw = np.random.default_rng(at)
        lengths = np.minimum(4096, draw.lognormal(np.log(400), 0.7, size).astype(np.int64))
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        tokens = draw.integers(0, 50_000, int(offsets[-1]), dtype=np.int32)
        return pa.ListArray.from_arrays(offsets, tokens)

    return Rows("tokens", n, 16_384, pa.list_(pa.int32()), values)


def ours(rows: Rows, path: str) -> Take:
    write_dataset(rows.batches(), path, schema=rows.schema)
    ds = open_dataset(path)
    return lambda ids: ds.take(ids, columns=["payload"])


def ours_in_place(rows: Rows, path: str) -> Take:
    """Rows of a set that `ours` has written, left where they are stored."""
    ds = open_dataset(path)
    return lambda ids: ds.take(ids, columns=["payload"], format="views")["payload"]


def arrow_file(rows: Rows, path: str) -> Take:
    """The Arrow IPC file as people write it, and `Table.take` of its chunks."""
    with pa.ipc.new_file(path, rows.schema) as file:
        for batch in rows.batches():
            # Batches of a megabyte: what writers that flush as they go leave behind.
            size = max(16, batch.num_rows * 1_000_000 // batch.nbytes)
            file.write_table(pa.Table.from_batches([batch]), max_chunksize=size)
    whole = pa.ipc.open_file(pa.memory_map(path)).read_all().select(["payload"])
    return lambda ids: whole.take(ids)["payload"]


def lance(rows: Rows, path: str) -> Take:
    import lance

    dataset = lance.write_dataset(rows.reader(), path)
    return lambda ids: dataset.take(ids, columns=["payload"])["payload"]


def lancedb(rows: Rows, path: str) -> Take:
    import lancedb

    table = lancedb.connect(path).create_table("rows", rows.reader())
    return lambda ids: table.take_offsets(ids.tolist()).select(["payload"]).to_arrow()["payload"]


def array_record(rows: Rows, path: str) -> Take:
    reader = _array_record(rows, path)
    return lambda ids: reader.read(ids.tolist())


def grain(rows: Rows, path: str) -> Take:
    """Grain's source over array-record: `__getitems__`, what its sampler calls."""
    from grain.python import ArrayRecordDataSource

    _array_record(rows, path)
    source = ArrayRecordDataSource(path)
    return lambda ids: source.__getitems__(ids.tolist())


def _array_record(rows: Rows, path: str) -> Any:
    from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

    writer = ArrayRecordWriter(path, "group_size:1,uncompressed")
    for value in rows.payloads():
        writer.write(value)
    writer.close()
    return ArrayRecordReader(path, "readahead_buffer_size:0")


def hf_datasets(rows: Rows, path: str) -> Take:
    take = hf_in_place(rows, path)
    # Joined, because otherwise a batch is a list of slices and no byte of it was read.
    return lambda ids: take(ids).combine_chunks()


def hf_in_place(rows: Rows, path: str) -> Take:
    import datasets

    with pa.ipc.new_stream(path, rows.schema) as file:
        for batch in rows.batches():
            file.write_table(pa.Table.from_batches([batch]), max_chunksize=1000)
    found = datasets.Dataset.from_file(path).select_columns(["payload"]).with_format("arrow")
    return lambda ids: found[ids]["payload"]


def mds(rows: Rows, path: str) -> Take:
    _without_images()
    import streaming

    with streaming.MDSWriter(out=path, columns={"payload": "bytes"}) as writer:
        for value in rows.payloads():
            writer.write({"payload": value})
    found = streaming.StreamingDataset(local=path, batch_size=1)
    return lambda ids: [found[i] for i in ids.tolist()]


def _without_images() -> None:
    """`streaming` imports torchvision for datasets of images, which needs a torch for GPUs."""
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        for name, words in (
            ("torchvision", ()),
            ("torchvision.datasets", ("CIFAR10", "VisionDataset")),
            ("torchvision.transforms", ()),
            ("torchvision.transforms.functional", ("to_tensor",)),
        ):
            sys.modules[name] = module = ModuleType(name)
            module.__spec__ = ModuleSpec(name, None)
            vars(module).update({word: type(word, (), {}) for word in words})


@dataclass(frozen=True)
class Rival:
    """Another library, and the issue's bar: at least so many times its rows a second.

    `in_place`, where it can: a batch as looks into its files, which its own calls do not copy.
    """

    name: str
    open: Callable[[Rows, str], Take]
    bar: float | None = None
    in_place: Callable[[Rows, str], Take] | None = None

    def opened(self, rows: Rows, folder: Path, in_place: bool = False) -> Take:
        open = self.in_place if in_place and self.in_place is not None else self.open
        return open(rows, str(folder / f"{rows.name}-{self.name}".replace(" ", "-")))


def read(take: Take) -> Take:
    """`take`, and then every byte of every row is looked at, one row after the other."""

    def batch(ids: Ids) -> int:
        total = 0
        for row in take(ids):
            if isinstance(row, dict):
                row = row["payload"]
            total ^= xxh3_64_intdigest(row.as_buffer() if isinstance(row, pa.Scalar) else row)
        return total

    return batch


RIVALS = (
    Rival("arrow file", arrow_file),
    Rival("lance", lance, 8.0),
    Rival("lancedb", lancedb),
    Rival("array-record", array_record, 8.0),
    Rival("grain", grain),
    Rival("hf datasets", hf_datasets, 1.5, hf_in_place),
    Rival("mds", mds, 15.0),
)
