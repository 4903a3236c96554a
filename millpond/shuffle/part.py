"""The part file: what one task wrote for all partitions of the next stage.

    header | run 0: segment 0 … segment P-1 | run 1: … | index

A segment holds one partition's rows of one run: encapsulated Arrow record batch
messages without their schema, which the stage holds (so never dictionaries), zero
padded to 64 bytes. The index has one entry of 32 bytes per segment, partition by
partition (all runs of partition 0, then of 1, …), so that whoever reads adjacent
partitions finds their entries in one piece.

Any segment can be read and verified alone: the checksum in its entry covers the
segment's bytes, the entry itself and its place in the index. The index as a whole has
a checksum too, which only the `PartRef` holds. Nothing here opens a file.
"""

import struct
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from millpond.storage.direct import reused_memory

MAGIC = b"MILLPART"
VERSION = 1
HEADER_BYTES = 64

# Whoever maps a part gets cache-line aligned segments. 4 KiB would buy nothing:
# O_DIRECT works on whole blocks of the file wherever segments begin, and 10,000
# partitions would waste 20 MB per run.
ALIGNMENT = 64

Buffer: TypeAlias = bytes | bytearray | memoryview
Entries: TypeAlias = npt.NDArray[np.void]
ENTRY = np.dtype([("offset", "<i8"), ("length", "<i8"), ("rows", "<i8"), ("checksum", "<u8")])
_PLACE = struct.Struct("<5q")


class Segment(NamedTuple):
    """One partition's bytes in one run of a part, as its index entry tells."""

    partition: int
    run: int
    offset: int
    length: int
    rows: int
    checksum: int

    @property
    def end(self) -> int:
        return self.offset + self.length


def header(n_partitions: int) -> bytes:
    """The first bytes of every part. No field is free, so a reader compares all of them."""
    return struct.pack("<8sIIq", MAGIC, VERSION, 0, n_partitions).ljust(HEADER_BYTES, b"\0")


def padding(length: int) -> bytes:
    """What fills a segment of `length` bytes up to the alignment; part of the segment."""
    return bytes(-length % ALIGNMENT)


def checksum(pieces: Sequence[Buffer], place: tuple[int, int, int, int, int]) -> int:
    """Of a segment's bytes and its (partition, run, offset, length, rows). Never 0.

    The place goes in as the seed, so that an entry with a flipped bit, or one that
    belongs to another segment, fails even where the segment is empty.
    """
    seed = xxhash.xxh3_64_intdigest(_PLACE.pack(*place))
    if len(pieces) == 1:
        return xxhash.xxh3_64_intdigest(pieces[0], seed) or 1
    state = xxhash.xxh3_64(seed=seed)
    for piece in pieces:
        state.update(piece)
    return state.intdigest() or 1


def segment_is_whole(segment: Segment, data: Buffer) -> bool:
    """Whether `data` is what the writer put there."""
    return checksum((data,), segment[:5]) == segment.checksum


def encode_rows(batch: pa.RecordBatch) -> pa.Buffer:
    """One record batch message without schema; 8-byte aligned, its length a multiple of 8."""
    return batch.serialize(memory_pool=reused_memory())


def decode_segment(data: Buffer, schema: pa.Schema) -> list[pa.RecordBatch]:
    """The batches of a verified segment, as views of `data`."""
    reader = pa.BufferReader(pa.py_buffer(data))
    batches = []
    # Padding reads as a message of length 0, which ends a stream.
    while (message := _next_message(reader)) is not None:
        batches.append(pa.ipc.read_record_batch(message, schema))
    return batches


def _next_message(reader: pa.BufferReader) -> pa.Message | None:
    try:
        return pa.ipc.read_message(reader)
    except EOFError:
        return None


# ---- the index -----------------------------------------------------------------------


def index_bytes(runs: Sequence[Entries], n_partitions: int) -> bytes:
    """The index block of `runs`, each the entries of its segments in partition order."""
    table = np.empty((n_partitions, len(runs)), ENTRY)
    for run, entries in enumerate(runs):
        table[:, run] = entries
    return table.tobytes()


def index_length(n_partitions: int, n_runs: int) -> int:
    return n_partitions * n_runs * ENTRY.itemsize


def index_checksum(index: Buffer) -> int:
    return xxhash.xxh3_64_intdigest(index)


def entries_of(index: Buffer, n_partitions: int, n_runs: int) -> Entries:
    """Entries as an array of partitions × runs, of a whole index or of adjacent partitions."""
    return np.frombuffer(index, ENTRY).reshape(n_partitions, n_runs)


def counts(entries: Entries) -> tuple[bytes, bytes]:
    """Rows and bytes per partition, each as little-endian int64."""
    rows = entries["rows"].sum(axis=1, dtype=np.int64)
    size = entries["length"].sum(axis=1, dtype=np.int64)
    return rows.astype("<i8").tobytes(), size.astype("<i8").tobytes()
