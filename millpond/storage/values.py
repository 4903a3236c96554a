"""The small values that storages share."""

from dataclasses import dataclass, field
from typing import NamedTuple

# Storages have a method named `list`, which hides the builtin from their annotations.
Buffers = list[memoryview]


@dataclass(frozen=True, slots=True)
class FileInfo:
    """A file as it is now. `version` changes when its bytes do: mtime and inode, or an etag."""

    path: str
    size_bytes: int
    version: str
    modified_s: int = field(default=0, compare=False)  # By the store's clock; for ages only.


class Range(NamedTuple):
    """`length` bytes of `path` from `offset`; `length` may be -1 for all that follows."""

    path: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Staged:
    """A file that is being written aside. Readers do not see `path` before `publish`.

    Write to the file `local`; `seal` makes the bytes durable and fills in `size_bytes`
    and, on an object store, the `upload` that `publish` completes. The value travels
    from the worker that wrote it to the process that publishes it.
    """

    path: str
    local: str
    size_bytes: int = -1
    upload: str = ""

    @property
    def aside(self) -> str:
        """Where the bytes of a sealed file are until it is published: a path of its store."""
        return self.upload or self.local


@dataclass(frozen=True, slots=True)
class OutputFile:
    """A sealed file of an output, and what is known of it.

    `values` are those of the columns that the output is partitioned by, as text; None is
    NULL. `rows` is -1 where nobody counted them. `told` is what the writer of the format says
    of the file to whoever commits it, as text.
    """

    staged: Staged
    rows: int
    checksum: str = ""
    values: tuple[str | None, ...] = ()
    told: str = ""
