"""Rows so wide that few of them fill a batch: what they take, as far as footers tell.

DuckDB moves rows by 2048, and sorts them whole. Wide ones are better sorted by their places,
in ranges that a task can hold, and read a few at a time.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from millpond.physical.fused import all_nodes
from millpond.physical.pipe import Pipe
from millpond.physical.shape import Settings
from millpond.physical.stages import Input, SourceInput
from millpond.plan import nodes as n

_SHARE = 4096  # Of the memory: 2048 rows of that take half of it.
_WIDE_BYTES = 16 << 10  # 16,384 rows of more may take 2 GiB: Arrow's text ends there.
_LEAST_FILE_BYTES = 256 << 10  # Wide rows that compress better than that go unnoticed.
_FILES = 8  # The largest of a source are asked.
_RANGES = 32  # That fit into memory.


class Wide(NamedTuple):
    """Bytes of a row, and of all of them, before compression."""

    row_bytes: int
    bytes: int

    def ranges(self, settings: Settings) -> int:
        """So many that each is a small part of memory, of one row at least."""
        each = max(self.row_bytes, settings.memory_bytes // _RANGES)
        return max(1, -(-self.bytes // each))


def wide(node: n.Node, settings: Settings) -> Wide | None:
    """What the rows below `node` take; None if they are not known to be wide."""
    sources = [at for at in all_nodes(node) if isinstance(at, n.DataSource)]
    found = [_of(at, settings) for at in sources]
    rows, size = sum(rows for rows, _ in found), sum(size for _, size in found)
    if not rows or size // rows <= settings.memory_bytes // _SHARE:
        return None
    return Wide(size // rows, size)


def row_bytes(source: n.DataSource, settings: Settings) -> int:
    """What a row of `source` takes, if a usual batch of such rows would be too large; else 0."""
    rows, size = _of(source, settings)
    return size // rows if rows and size // rows > _WIDE_BYTES else 0


def measured(inputs: Sequence[Input], node: n.Node, settings: Settings) -> tuple[Input, ...]:
    """The sources below `node`, which tell what a row takes: a batch of them is some megabytes,
    and memory for it is used again."""
    sources = [at for at in all_nodes(node) if isinstance(at, n.DataSource)]
    found = [_of(at, settings) for at in sources]
    rows, size = sum(rows for rows, _ in found), sum(size for _, size in found)
    width = size // rows if rows else 0
    return tuple(replace(i, row_bytes=width) if isinstance(i, SourceInput) else i for i in inputs)


def why_wide(node: n.Node, settings: Settings) -> str:
    """Why `node`, with the choice of a shape, is cut into stages: "" if not for its wide rows."""
    if settings.shape == "auto":
        for at in all_nodes(node):
            if isinstance(at, n.Sort | n.RandomPartition) and (found := wide(at, settings)):
                return f"rows of {found.row_bytes / 1e6:.1f} MB are moved a few at a time"
    return ""


def told(pipe: Pipe, found: Wide) -> Pipe:
    """The pipe, its sources read a few rows at a time."""
    inputs = (
        replace(i, row_bytes=found.row_bytes) if isinstance(i, SourceInput) else i
        for i in pipe.inputs
    )
    return replace(pipe, inputs=tuple(inputs))


def _of(source: n.DataSource, settings: Settings) -> tuple[int, int]:
    """Rows and their bytes, as far as that is known; else zeros."""
    if source.rows is not None:
        return source.rows.table.num_rows, source.rows.table.nbytes
    return _in_files(source, settings) if source.scan.format == "parquet" else (0, 0)


def _in_files(source: n.DataSource, settings: Settings) -> tuple[int, int]:
    if not any(f.type in ("VARCHAR", "BLOB") or not f.type.isalpha() for f in source.schema):
        return 0, 0  # Numbers and the like.
    large = sorted(source.files, key=lambda file: -file.size_bytes)[:_FILES]
    if not large or large[0].size_bytes < _LEAST_FILE_BYTES:
        return 0, 0
    footers = [settings.footer(file.path) for file in large]
    times = len(source.files) / len(large)
    rows, size = (sum(map(sum, some)) for some in zip(
        *((f.rows, f.value_bytes) for f in footers), strict=True))  # fmt: skip
    return int(rows * times), int(size * times)
