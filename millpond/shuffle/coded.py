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

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from millpond.engine.narrow import narrow_schema, narrowed
from millpond.errors import FileUnreadable
from millpond.shuffle.range_files import in_turn

_BATCH_ROWS = 122_880
_LEAST_ROWS = 16_384  # Of a row group, on average: each costs a query.
_GROUP_BYTES = 32 << 20  # Before compression: row groups are read whole, and some ahead.
# Of a column in all row groups, as its texts lie there once each: they are looked up one by one.
_TEXTS_BYTES = 1 << 20
_MOST_FILES = 1000  # The footer of each is read first.


class Group(NamedTuple):
    """A row group, the place of its file among all, and its first row there."""

    path: str
    place: int
    number: int
    first_row: int


# The rows as they are, their row group and the first one's place in the file -> more columns.
More = Callable[[pa.RecordBatch, Group, int], Sequence[pa.Array]]


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
        names, row = self.schema.names, group.first_row
        with _explained(group.path):
            found = self._file(group.path).iter_batches(
                _BATCH_ROWS, row_groups=[group.number], columns=names, use_threads=False
            )
            for batch in found:
                columns = [_checked(batch.column(name)) for name in names]
                rows = pa.RecordBatch.from_arrays(columns, names)
                for i, name in enumerate(names):
                    if name in self._texts:
                        columns[i] = self._texts[name].codes(columns[i])
                extra = more(rows, group, row)
                labels = [*names, *(f"__more{i}" for i in range(len(extra)))]
                yield narrowed(pa.RecordBatch.from_arrays([*columns, *extra], labels))
                row += batch.num_rows

    def _file(self, path: str) -> pq.ParquetFile:
        if getattr(self._open, "path", None) != path:
            self._open.file = pq.ParquetFile(path, read_dictionary=list(self._texts))
            self._open.path = path
        return self._open.file


def coded_files(paths: Sequence[str], schema: pa.Schema) -> CodedFiles | None:
    """Parquet files as rows of `schema`; None where Arrow would not read what DuckDB does, or
    where it is not worth it.
    """
    if not paths or len(paths) > _MOST_FILES or any("." in name for name in schema.names):
        return None
    groups, n_rows = list[Group](), 0
    sizes = {f.name: 0 for f in schema if pa.types.is_string(f.type)}
    for place, path in enumerate(paths):
        try:
            file = pq.ParquetFile(path)
        except (OSError, pa.ArrowException):
            return None  # DuckDB says what is wrong with it.
        own, meta, first_row = file.schema_arrow, file.metadata, 0
        if any(_kind(own, field.name) != field.type for field in schema):
            return None
        leaves = {meta.schema.column(i).path: i for i in range(meta.num_columns)}
        for number in range(meta.num_row_groups):
            group = meta.row_group(number)
            if group.total_byte_size > _GROUP_BYTES:
                return None
            groups.append(Group(path, place, number, first_row))
            first_row += group.num_rows
            for name in list(sizes):
                sizes[name] += _texts_bytes(group.column(leaves[name]))
                if sizes[name] > _TEXTS_BYTES:
                    del sizes[name]
        n_rows += first_row
    return CodedFiles(schema, tuple(sizes), groups) if n_rows >= _LEAST_ROWS * len(groups) else None


def _kind(own: pa.Schema, name: str) -> pa.DataType | None:
    """The type in which the only column of a name is read."""
    place = own.get_field_index(name)
    kind = own.field(place).type if place >= 0 else None
    return pa.string() if kind == pa.string_view() else kind


def _texts_bytes(chunk: pq.ColumnChunkMetaData) -> int:
    """Of the texts of a column chunk, each once; more than there may be if they are not apart."""
    if not chunk.has_dictionary_page or not chunk.dictionary_page_offset:
        return _TEXTS_BYTES + 1 if chunk.num_values else 0
    return int(chunk.data_page_offset - chunk.dictionary_page_offset)


def _checked(column: pa.Array) -> pa.Array:
    """A column as read; texts must be texts, and Arrow does not look."""
    if pa.types.is_string_view(column.type):
        column = column.cast(pa.string())
    if pa.types.is_string(column.type):
        column.validate(full=True)
    return column


class _Texts:
    """The different texts of a column in the order they were met, and their numbers."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers: dict[str, int] = {}
        self._all = pa.array([], pa.string())
        self._last: tuple[pa.Array, pa.Array] | None = None

    def codes(self, column: pa.DictionaryArray) -> pa.Array:
        """The number of each text; NULL stays NULL."""
        return pc.take(self._of(column.dictionary), column.indices)

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
