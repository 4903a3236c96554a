"""A source → the splits that its tasks read."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

from millpond.formats.parquet import RowGroups, splits
from millpond.formats.scan import FileSlice, Scan, Split
from millpond.plan.nodes import DataSource
from millpond.storage import FileInfo

if TYPE_CHECKING:
    from millpond.formats.fixed import Layout

Footer = Callable[[str], RowGroups]
FINER = 64  # Enough for the processors of a large machine.


def source_splits(source: DataSource, target_bytes: int, footer: Footer) -> tuple[Split, ...]:
    """Splits of about `target_bytes`, in order; at least one."""
    if source.rows is not None:
        size = source.rows.table.nbytes
        return _row_runs(source, max(1, -(-size // target_bytes)))
    if source.scan.format == "parquet":
        return with_values(source, splits(source.files, target_bytes, footer)) or (Split(),)
    if source.scan.format == "fixed":
        return fixed_splits(source, target_bytes) or (Split(),)
    return with_values(source, _file_splits(source.files, target_bytes)) or (Split(),)


def _file_splits(files: Sequence[FileInfo], target_bytes: int) -> tuple[Split, ...]:
    """Whole files, in order. Of very many small ones, neighbours share a task."""
    most = min(target_bytes, sum(file.size_bytes for file in files) // FINER)
    runs: list[list[FileSlice]] = []
    room = 0
    for file in files:
        room -= file.size_bytes
        if room < 0 or not runs:
            runs.append([])
            room = most - file.size_bytes
        runs[-1].append(FileSlice(file.path))
    return tuple(Split(tuple(run)) for run in runs)


def even_splits(source: DataSource, count: int, footer: Footer) -> tuple[Split, ...]:
    """Exactly `count` splits in order, of even bytes; files are cut at row groups.

    There are empty ones where a source of files that cannot be cut has fewer than `count`.
    """
    if source.rows is not None:
        return _row_runs(source, count)
    pieces = _pieces(source, footer)
    if len(pieces) < count and all(piece.n_rows is not None for piece, _ in pieces):
        return with_values(source, _row_cuts(pieces, count))
    return with_values(source, tuple(Split(_joined(run)) for run in _runs(pieces, count)))


def thinned(
    scan: Scan, splits: tuple[Split, ...], count: int, footer: Footer
) -> tuple[tuple[Split, ...], float]:
    """About `count` row groups of the splits, at least one of each; and how many they stand for.

    For a sample: what lies between two of them is read by nobody.
    """
    if scan.format != "parquet" or scan.limit is not None or scan.identity:
        return splits, 1.0
    all_groups = [_groups(split, footer) for split in splits]
    each = max(1, count // max(1, len(splits)))
    few = [groups[:: -(-len(groups) // each)] if groups else [] for groups in all_groups]
    stands_for = sum(map(len, all_groups)) / max(1, sum(map(len, few)))
    return tuple(replace(split, slices=_joined(groups)) for split, groups in
                 zip(splits, few, strict=True)), stands_for  # fmt: skip


def _groups(split: Split, footer: Footer) -> list[FileSlice]:
    """The row groups of a split of one file; the files of a split of several small ones."""
    if len(split.slices) != 1:
        return list(split.slices)
    (piece,), found, first = split.slices, list[FileSlice](), 0
    end = None if piece.n_rows is None else piece.first_row + piece.n_rows
    for rows in footer(piece.path).rows:
        if first >= piece.first_row and (end is None or first + rows <= end):
            found.append(replace(piece, first_row=first, n_rows=rows))
        first += rows
    return found or [piece]


def with_values(source: DataSource, found: tuple[Split, ...]) -> tuple[Split, ...]:
    """The splits, each slice with its file's values of the scan's keys."""
    if not source.values:
        return found
    values = dict(zip((file.path for file in source.files), source.values, strict=True))
    return tuple(
        replace(split, slices=tuple(replace(s, values=values[s.path]) for s in split.slices))
        for split in found
    )


def first_rows(
    source: DataSource, splits: tuple[Split, ...], footer: Footer
) -> tuple[int, ...] | None:
    """The number, from 1, of the first row of each split; None where only reading tells."""
    scan, numbers, after = source.scan, [], 1
    if scan.filter or scan.limit is not None:
        return None
    for split in splits:
        numbers.append(after)
        after += split.rows.table.num_rows if split.rows is not None else 0
        for piece in split.slices:
            if piece.n_rows is None and scan.format != "parquet":
                return None
            after += sum(footer(piece.path).rows) if piece.n_rows is None else piece.n_rows
    return tuple(numbers)


def can_cut(source: DataSource, count: int, footer: Footer) -> bool:
    """Whether `even_splits` gives each of `count` splits some rows, if there are enough."""
    if source.rows is not None or len(source.files) >= count:
        return True
    return source.scan.format in ("parquet", "fixed")


def finer_splits(
    source: DataSource, target_bytes: int, rows_each: int, footer: Footer
) -> int | None:
    """How many splits of about `rows_each` rows a source gives, if that is more than it has.

    For work that costs much a row. The answer is a function of the data alone: a rerun on
    another machine finds its results again.
    """
    if source.scan.format not in ("memory", "parquet") or len(source.files) > FINER:
        return None
    count = min(FINER, count_rows(source, footer) // rows_each)
    return count if count > len(source_splits(source, target_bytes, footer)) else None


def count_rows(source: DataSource, footer: Footer) -> int:
    """How many rows a source in memory, or of Parquet files, has."""
    if source.rows is not None:
        return len(source.rows.table)
    return sum(sum(footer(file.path).rows) for file in source.files)


def _pieces(source: DataSource, footer: Footer) -> list[tuple[FileSlice, int]]:
    pieces: list[tuple[FileSlice, int]] = []
    for file in source.files:
        if source.scan.format == "fixed":
            n_rows = count_fixed(file, _layout(source))
            pieces.append((FileSlice(file.path, 0, n_rows), file.size_bytes))
            continue
        if source.scan.format != "parquet":
            pieces.append((FileSlice(file.path), file.size_bytes))
            continue
        groups, first = footer(file.path), 0
        for rows, size in zip(groups.rows, groups.size_bytes, strict=True):
            pieces.append((FileSlice(file.path, first, rows), size))
            first += rows
    return pieces


def _row_cuts(pieces: list[tuple[FileSlice, int]], count: int) -> tuple[Split, ...]:
    """Few row groups, many splits: cut inside row groups, at even numbers of rows."""
    total = sum(piece.n_rows or 0 for piece, _ in pieces)
    runs: list[list[FileSlice]] = [[] for _ in range(count)]
    before = 0
    for piece, _ in pieces:
        n_rows = piece.n_rows or 0
        for place in range(count):
            first = max(total * place // count, before)
            end = min(total * (place + 1) // count, before + n_rows)
            if first < end:
                at = piece.first_row + first - before
                runs[place].append(FileSlice(piece.path, at, end - first))
        before += n_rows
    return tuple(Split(_joined(run)) for run in runs)


def fixed_splits(source: DataSource, target_bytes: int) -> tuple[Split, ...]:
    from millpond.formats.fixed import splits as cut

    return cut(source.files, _layout(source), target_bytes)


def count_fixed(file: FileInfo, layout: Layout) -> int:
    from millpond.formats.fixed import count

    return count(file, layout)


def _layout(source: DataSource) -> Layout:
    from millpond.formats.fixed import Layout

    return Layout.of(json.loads(dict(source.scan.options)["fields"]), "read_fixed()")


def _runs(pieces: list[tuple[FileSlice, int]], count: int) -> list[list[FileSlice]]:
    """Neighbours, so that order is kept: piece i goes where the middle of its bytes lies."""
    total = sum(size for _, size in pieces) or 1
    runs: list[list[FileSlice]] = [[] for _ in range(count)]
    before = 0
    for place, (piece, size) in enumerate(pieces):
        at = min(count - 1, (2 * before + size) * count // (2 * total))
        if len(pieces) <= count:
            at = place  # Fewer pieces than splits: one each.
        runs[at].append(piece)
        before += size
    return runs


def _joined(run: list[FileSlice]) -> tuple[FileSlice, ...]:
    """Neighbouring slices of one file as one."""
    out: list[FileSlice] = []
    for piece in run:
        last = out[-1] if out else None
        if (
            last
            and piece.n_rows is not None
            and last.n_rows is not None
            and last.path == piece.path
            and last.first_row + last.n_rows == piece.first_row
        ):
            out[-1] = replace(last, n_rows=last.n_rows + piece.n_rows)
        else:
            out.append(piece)
    return tuple(out)


def _row_runs(source: DataSource, count: int) -> tuple[Split, ...]:
    assert source.rows is not None
    total = source.rows.table.num_rows
    edges = [total * i // count for i in range(count + 1)]
    return tuple(Split(rows=source.rows.slice(a, b - a)) for a, b in pairwise(edges))
