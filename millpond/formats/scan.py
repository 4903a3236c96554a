"""What to read of a source: `Scan` says how, `Split` says which rows. Plain values."""

from dataclasses import dataclass

from millpond.schema import Schema


@dataclass(frozen=True, slots=True)
class FileSlice:
    """Rows of one file: `n_rows` from `first_row`, or all of them (`n_rows` None)."""

    path: str
    file_index: int  # Place in the sorted list of the source's files: row identity.
    first_row: int = 0
    n_rows: int | None = None


@dataclass(frozen=True, slots=True)
class Split:
    """A range of a source's rows that one task reads.

    `table` is an Arrow IPC stream, for rows that the user made from Python objects;
    those travel inside their split.
    """

    slices: tuple[FileSlice, ...] = ()
    table: bytes = b""


@dataclass(frozen=True, slots=True)
class Scan:
    """How to read a split: the format, its options as (name, value), the columns to give."""

    format: str
    schema: Schema  # The columns that are read, in order.
    options: tuple[tuple[str, str], ...] = ()
    filter: str = ""  # A SQL predicate that prunes row groups and rows, or nothing.
    limit: int | None = None
