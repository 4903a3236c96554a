"""Formats that DuckDB does not read by itself: Arrow IPC, lines of text, fixed records.

A split of such a source is a stream of record batches, opened where the task runs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from millpond.errors import FileUnreadable
from millpond.formats.scan import FileSlice, Scan
from millpond.storage import Range, Storage

if TYPE_CHECKING:
    import pyarrow as pa

FORMATS = ("arrow", "text", "fixed")
CHUNK_BYTES = 4 << 20


def read_rows(scan: Scan, slices: Sequence[FileSlice], storage: Storage) -> Iterator[Any]:
    """The rows of some slices in order, the columns of the scan only."""
    match scan.format:
        case "arrow":
            for piece in slices:
                with opened(storage, piece.path) as reader:
                    for batch in _batches(reader):
                        yield batch.select(scan.schema.names)
        case "text":
            for piece in slices:
                yield from _text(piece.path, storage, scan)
        case "fixed":
            from millpond.formats.fixed import Layout, read

            layout = Layout.of(json.loads(dict(scan.options)["fields"]), "read_fixed()")
            yield from read(storage, slices, layout, scan.schema.names)


# ---- Arrow IPC -----------------------------------------------------------------------


def opened(storage: Storage, path: str) -> Any:
    """The reader of an Arrow IPC file or stream; a local file is mapped, not copied."""
    import pyarrow as pa

    source = _source(storage, path)
    try:
        try:
            return pa.ipc.open_file(source)
        except pa.ArrowInvalid:
            source.seek(0)
            return pa.ipc.open_stream(source)
    except (pa.ArrowInvalid, OSError) as error:
        raise FileUnreadable(
            f"{path}: not a readable Arrow IPC file or stream ({error}). Is it whole?"
        ) from error


def schema_of(storage: Storage, path: str) -> pa.Schema:
    """The columns of an Arrow IPC file or stream."""
    with opened(storage, path) as reader:
        return reader.schema


def _batches(reader: Any) -> Iterator[pa.RecordBatch]:
    if hasattr(reader, "num_record_batches"):
        for i in range(reader.num_record_batches):
            yield reader.get_batch(i)
    else:
        yield from reader


def _source(storage: Storage, path: str) -> Any:
    import pyarrow as pa

    local = storage.local_path(path)
    if local is not None:
        return pa.memory_map(local)
    (data,) = storage.read_many([Range(path, 0, -1)])
    return pa.BufferReader(pa.py_buffer(data))


# ---- text ----------------------------------------------------------------------------


def _text(path: str, storage: Storage, scan: Scan) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    whole = dict(scan.options).get("whole") == "true"
    stream = pa.input_stream(_source(storage, path), compression=_compression(path))
    for texts in [[stream.read()]] if whole else _lines(stream):
        values = _decoded(texts, path)
        columns = {"path": pa.array([path] * len(values)), "line": values, "text": values}
        yield pa.record_batch([columns[n] for n in scan.schema.names], list(scan.schema.names))


def _compression(path: str) -> str | None:
    ending = path.rpartition(".")[2].lower()
    return {"gz": "gzip", "zst": "zstd", "bz2": "bz2"}.get(ending)


def _lines(stream: Any) -> Iterator[list[bytes]]:
    """Runs of lines without their ends; the last line may lack one."""
    rest = b""
    while data := stream.read(CHUNK_BYTES):
        *lines, rest = (rest + data).split(b"\n")
        yield [line.removesuffix(b"\r") for line in lines]
    if rest:
        yield [rest]


def _decoded(texts: list[bytes], path: str) -> pa.Array:
    import pyarrow as pa

    try:
        return pa.array(texts, pa.binary()).cast(pa.string())
    except pa.ArrowInvalid as error:
        raise FileUnreadable(f"{path}: not text in UTF-8 ({error}).") from error
