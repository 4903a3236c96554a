"""Files of fixed-width binary records: their fields, how many there are, and splits.

A record is its fields side by side, each so many bytes; a file is nothing but records.
For the engine a field is a BLOB. Their bytes are read and written in `formats/records.py`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise

from millpond.errors import FileUnreadable, OptionError
from millpond.formats.scan import FileSlice, Scan, Split
from millpond.schema import Schema
from millpond.storage import FileInfo


@dataclass(frozen=True, slots=True)
class Layout:
    """The fields of a record, in order, with their widths in bytes."""

    names: tuple[str, ...]
    widths: tuple[int, ...]

    @classmethod
    def of(cls, fields: Mapping[str, int], where: str) -> "Layout":
        """From `{"key": 10, "value": 90}`; `OptionError` for widths that are none."""
        if not fields:
            raise OptionError(f"{where}: no fields. Give the width of each: {{'key': 10, …}}.")
        for name, width in fields.items():
            if isinstance(width, bool) or not isinstance(width, int) or width < 1:
                raise OptionError(f"{where}: field {name!r} is {width!r} bytes wide; 1 is least.")
        return cls(tuple(fields), tuple(fields.values()))

    @property
    def record_bytes(self) -> int:
        return sum(self.widths)

    @property
    def options(self) -> tuple[tuple[str, str], ...]:
        """As scans and sinks hold it; see `layout_from`."""
        return tuple((n, str(w)) for n, w in zip(self.names, self.widths, strict=True))

    @property
    def schema(self) -> Schema:
        return Schema.of((name, "BLOB") for name in self.names)

    @property
    def places(self) -> dict[str, slice]:
        """Where each field is in a record."""
        ends = accumulate(self.widths)
        return {
            name: slice(end - width, end)
            for name, width, end in zip(self.names, self.widths, ends, strict=True)
        }


def layout_of(scan: Scan) -> Layout:
    """The layout that a scan of format "fixed" names in its options."""
    return layout_from(scan.options)


def layout_from(options: Iterable[tuple[str, str]]) -> Layout:
    """From (name, width) pairs, as scans and sinks hold them."""
    pairs = tuple(options)
    return Layout(tuple(name for name, _ in pairs), tuple(int(width) for _, width in pairs))


def count(file: FileInfo, layout: Layout) -> int:
    """The number of records in a file, from its size."""
    n, rest = divmod(file.size_bytes, layout.record_bytes)
    if rest:
        raise FileUnreadable(
            f"{file.path}: {file.size_bytes:,} bytes are {n:,} records of "
            f"{layout.record_bytes} bytes and {rest} more. Is it cut short, or are its "
            "fields of other widths?"
        )
    return n


def splits(files: Iterable[FileInfo], layout: Layout, target_bytes: int) -> tuple[Split, ...]:
    """Cut the files, each on its own, into splits of at most about `target_bytes`."""
    done = []
    for file in files:
        n = count(file, layout)
        n_pieces = -(-n * layout.record_bytes // target_bytes)
        edges = [n * i // n_pieces for i in range(n_pieces + 1)] if n_pieces else []
        for first, end in pairwise(edges):
            done.append(Split((FileSlice(file.path, first, end - first),)))
    return tuple(done)
