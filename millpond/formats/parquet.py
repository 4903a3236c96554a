"""Parquet footers: row groups, rows and sizes, for splits and counts."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from millpond.errors import FileUnreadable
from millpond.formats.scan import FileSlice, Split
from millpond.storage import FileInfo, Storage, open_file


@dataclass(frozen=True, slots=True)
class RowGroups:
    """Rows and bytes of each row group of one file, and bytes before compression."""

    rows: tuple[int, ...]
    size_bytes: tuple[int, ...]
    value_bytes: tuple[int, ...] = ()


def row_groups(storage: Storage, path: str) -> RowGroups:
    """Read one footer."""
    import pyarrow.parquet as pq

    file = open_file(storage, path)
    try:
        meta = pq.read_metadata(file)
    except Exception as error:  # pyarrow raises OSError and ArrowInvalid alike.
        raise FileUnreadable(
            f"{path}: not a readable Parquet file ({error}). Is it whole, and is it Parquet?"
        ) from error
    groups = [meta.row_group(i) for i in range(meta.num_row_groups)]
    return RowGroups(
        tuple(g.num_rows for g in groups),
        tuple(sum(g.column(c).total_compressed_size for c in range(g.num_columns)) for g in groups),
        tuple(g.total_byte_size for g in groups),
    )


def splits(
    files: Iterable[FileInfo], target_bytes: int, footer: Callable[[str], RowGroups]
) -> tuple[Split, ...]:
    """Cut files at row groups into splits of about `target_bytes`, in file order.

    A file within the target stays whole (its footer is not read), and small neighbours
    share a split.
    """
    done: list[Split] = []
    open_slices: list[FileSlice] = []
    open_bytes = 0

    def close() -> None:
        nonlocal open_slices, open_bytes
        if open_slices:
            done.append(Split(tuple(open_slices)))
        open_slices, open_bytes = [], 0

    for file in files:
        if open_bytes + file.size_bytes > target_bytes:
            close()
        if file.size_bytes <= target_bytes:
            open_slices.append(FileSlice(file.path))
            open_bytes += file.size_bytes
            continue
        for piece in _pieces(file.path, footer(file.path), target_bytes):
            open_slices = [piece]
            close()
    close()
    return tuple(done)


def _pieces(path: str, groups: RowGroups, target_bytes: int) -> list[FileSlice]:
    pieces: list[FileSlice] = []
    first = rows = held = 0
    for n, size in zip(groups.rows, groups.size_bytes, strict=True):
        if rows and held + size > target_bytes:
            pieces.append(FileSlice(path, first, rows))
            first, rows, held = first + rows, 0, 0
        rows, held = rows + n, held + size
    if rows:
        pieces.append(FileSlice(path, first, rows))
    return pieces or [FileSlice(path)]
