"""Rows of Parquet files as Arrow reads them, texts of few values as numbers: codes.

Arrow takes half of DuckDB's CPU for it. Codes are few bytes on every way that rows go, and are
written as they are: no text of theirs is copied or hashed again. All files of a reading share one
list of texts a column. See benchmarks/partition.py.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from millpond.engine.narrow import narrow_schema, narrowed
from millpond.errors import FileUnreadable
from millpond.shuffle.range_files import in_turn
from millpond.storage.direct import reused_memory

# Small row groups are read together: slices of a batch that go to one file cost a message each,
# and every query some milliseconds. More rows at once gain nothing.
_BATCH_ROWS, _BATCH_BYTES = 245_760, 16 << 20  # Bytes before compression, as in the footer.
_WIDE_BYTES = 256  # Of a row. Memory for some megabytes of wider ones is used again on their way.
_LEAST_ROWS = 16_384  # Of a row group, on average: each costs a query.
GROUP_BYTES = 32 << 20  # Before compression: row groups are read whole, and some ahead.
_TEXT_GROWTH = 2  # As rows: a text that a row group holds once may be in all of them.
# Of a column in all row groups, as its texts lie there once each: they are looked up one by one.
_TEXTS_BYTES = 1 << 20
_HIGH_BITS = 0x8080808080808080
# A whole column at once, or all columns, would be fresh memory of its own.
_READ_BYTES = 1 << 20
_MOST_FILES = 1000  # The footer of each is read first.


class Group(NamedTuple):
    """Row groups side by side, the place of their file among all, and their first row: there, and
    among the rows of all files."""

    path: str
    place: int
    numbers: tuple[int, ...]
    first_row: int
    first_of_all: int


# The rows as they are and where they come from -> more columns.
More = Callable[[pa.Table, Group], Sequence[pa.Array]]


class CodedFiles:
    """Rows of Parquet files, those of `schema` but for codes; then it has dictionaries of texts."""

    def __init__(self, schema: pa.Schema, coded: Sequence[str], groups: Sequence[Group]) -> None:
        self._groups, self._texts = groups, {name: _Texts() for name in coded}
        kind, narrow = pa.dictionary(pa.int32(), pa.string()), narrow_schema(schema)
        self.schema = pa.schema([f.with_type(kind) if f.name in coded else f for f in narrow])
        self._open = threading.local()

    def batches(self, more: More, threads: int) -> Iterator[pa.RecordBatch]:
        """The rows in order with their codes, and with the columns that `more` gives."""

        def read(group: Group) -> list[pa.RecordBatch]:
            return list(self._read(group, more))

        with ThreadPoolExecutor(threads, thread_name_prefix="read-files") as pool:
            for batches in in_turn(pool, read, iter(self._groups), threads + 1):
                yield from batches

    def texts(self, rows: pa.Table) -> pa.Table:
        """Rows with texts for rows with codes; no text is copied."""
        for name, texts in self._texts.items():
            place = rows.schema.get_field_index(name)
            codes = rows.column(place).combine_chunks()
            rows = rows.set_column(place, self.schema.field(name), texts.of(codes))
        return rows

    def _read(self, group: Group, more: More) -> Iterator[pa.RecordBatch]:
        names = self.schema.names
        with _explained(group.path):
            found = self._file(group.path).read_row_groups(
                list(group.numbers), columns=names, use_threads=False
            )
            rows = pa.table([_checked(found.column(name)) for name in names], names)
            columns = [
                self._texts[name].codes(column) if name in self._texts else _together(column)
                for name, column in zip(names, rows.columns, strict=True)
            ]
        extra = more(rows, group)
        labels = [*names, *(f"__more{i}" for i in range(len(extra)))]
        whole = narrowed(pa.RecordBatch.from_arrays([*columns, *extra], labels))
        width = whole.nbytes // max(whole.num_rows, 1)
        each = _BATCH_ROWS if width <= _WIDE_BYTES else max(1, _BATCH_BYTES // width)
        for first in range(0, whole.num_rows, each):
            yield whole.slice(first, each)

    def _file(self, path: str) -> pq.ParquetFile:
        if getattr(self._open, "path", None) != path:
            self._open.file = pq.ParquetFile(
                path, read_dictionary=list(self._texts), pre_buffer=False, buffer_size=_READ_BYTES
            )
            self._open.path = path
        return self._open.file


def coded_files(
    paths: Sequence[str], schema: pa.Schema, group_bytes: int = GROUP_BYTES
) -> CodedFiles | None:
    """Parquet files as rows of `schema`; None where Arrow would not read what DuckDB does, or
    where it is not worth it. Row groups are of no more than `group_bytes` before compression.
    """
    if not paths or len(paths) > _MOST_FILES or any("." in name for name in schema.names):
        return None
    groups, n_rows, n_groups = list[Group](), 0, 0
    once = {f.name: 0 for f in schema if pa.types.is_string(f.type)}
    most = {f.name: 0.0 for f in schema if f.name in once or pa.types.is_binary(f.type)}
    for place, path in enumerate(paths):
        try:
            file = pq.ParquetFile(path)
        except (OSError, pa.ArrowException):
            return None  # DuckDB says what is wrong with it.
        own, meta = file.schema_arrow, file.metadata
        if any(_kind(own, field.name) != field.type for field in schema):
            return None
        leaves = {meta.schema.column(i).path: i for i in range(meta.num_columns)}
        found = [meta.row_group(number) for number in range(meta.num_row_groups)]
        if any(group.total_byte_size > group_bytes for group in found):
            return None
        for group in found:
            for name in most:
                chunk = group.column(leaves[name])
                most[name] = max(most[name], _rows_bytes(chunk))
                if name in once:
                    once[name] += _once_bytes(chunk)
        groups += _side_by_side(path, place, found, n_rows)
        n_rows, n_groups = n_rows + meta.num_rows, n_groups + len(found)
    coded = tuple(name for name, size in once.items() if size <= _TEXTS_BYTES)
    rows_bytes = sum(size for name, size in most.items() if name not in coded)
    if n_rows < _LEAST_ROWS * n_groups or rows_bytes > _TEXT_GROWTH * group_bytes:
        return None
    return CodedFiles(schema, coded, groups)


def _side_by_side(
    path: str, place: int, found: Sequence[pq.RowGroupMetaData], before: int
) -> Iterator[Group]:
    """The row groups of a file with so many rows `before` it, small ones together."""
    numbers, first_row, rows, size = list[int](), 0, 0, 0
    for number, group in enumerate(found):
        rows, size = rows + group.num_rows, size + group.total_byte_size
        if numbers and (rows > _BATCH_ROWS or size > _BATCH_BYTES):
            yield Group(path, place, tuple(numbers), first_row, before + first_row)
            first_row += rows - group.num_rows
            numbers, rows, size = [], group.num_rows, group.total_byte_size
        numbers.append(number)
    if numbers:
        yield Group(path, place, tuple(numbers), first_row, before + first_row)


def _kind(own: pa.Schema, name: str) -> pa.DataType | None:
    """The type in which the only column of a name is read."""
    place = own.get_field_index(name)
    kind = own.field(place).type if place >= 0 else None
    return pa.string() if kind == pa.string_view() else kind


def _once_bytes(chunk: pq.ColumnChunkMetaData) -> int:
    """Of the texts of a column chunk, each once; more than there may be if they are not apart."""
    if not chunk.has_dictionary_page or not chunk.dictionary_page_offset:
        return _TEXTS_BYTES + 1 if chunk.num_values else 0
    return int(chunk.data_page_offset - chunk.dictionary_page_offset)


def _rows_bytes(chunk: pq.ColumnChunkMetaData) -> float:
    """About how much the texts of a column chunk take as rows: what is in a dictionary, often."""
    size = float(chunk.total_uncompressed_size)
    if not chunk.has_dictionary_page or not chunk.dictionary_page_offset:
        return size
    once = _once_bytes(chunk) * size / max(chunk.total_compressed_size, 1)
    bits = max(size - once, 0) * 8 / max(chunk.num_values, 1)
    # Of so many bits a number, there are at least half as many texts, if all are numbers.
    return max(size, float(chunk.num_values * once / 2 ** max(min(bits, 32) - 1, 0)))


def _checked(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column as read; texts must be texts, and Arrow does not look."""
    if pa.types.is_string_view(column.type):
        column = column.cast(pa.string())
    if pa.types.is_string(column.type):
        for chunk in column.chunks:
            if not _is_ascii(chunk):
                chunk.validate(full=True)
    return column


def _is_ascii(texts: pa.StringArray) -> bool:
    """Whether all bytes are, which most texts are, and is seen eight at a time."""
    data = texts.buffers()[2]
    if data is None:
        return True
    words = np.frombuffer(data, np.uint64, data.size // 8)
    rest = memoryview(data)[data.size // 8 * 8 :]
    return not (int(np.bitwise_or.reduce(words)) & _HIGH_BITS) and bytes(rest).isascii()


def _together(column: pa.ChunkedArray) -> pa.Array:
    if column.num_chunks == 1:
        return column.chunk(0)
    return pa.concat_arrays(
        column.chunks or [pa.array([], column.type)], memory_pool=reused_memory()
    )


class _Texts:
    """The different texts of a column in the order they were met, and their numbers."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers: dict[str, int] = {}
        self._all = pa.array([], pa.string())
        self._last: tuple[pa.Array, pa.Array] | None = None

    def codes(self, column: pa.ChunkedArray) -> pa.Array:
        """The number of each text; NULL stays NULL."""
        found = [pc.take(self._of(chunk.dictionary), chunk.indices) for chunk in column.chunks]
        return _together(pa.chunked_array(found, pa.int32()))

    def of(self, codes: pa.Array) -> pa.DictionaryArray:
        """The texts of some numbers, all of which were given out."""
        with self._lock:
            if len(self._all) < len(self._numbers):
                self._all = pa.array(list(self._numbers), pa.string())
            return pa.DictionaryArray.from_arrays(codes, self._all, safe=False)

    def _of(self, texts: pa.Array) -> pa.Array:
        with self._lock:
            if self._last is None or not self._last[0].equals(texts):
                texts.validate(full=True)
                found = (self._numbers.setdefault(t, len(self._numbers)) for t in texts.to_pylist())
                self._last = texts, pa.array(list(found), pa.int32())
            return self._last[1]


@contextmanager
def _explained(path: str) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise FileUnreadable(f"{path}: not a readable Parquet file ({error}).") from error
