"""How many rows a shard of a training set holds, and a record batch of it: plain numbers.

All shards of a set have as many rows, but the last, and all record batches: so a row is
found by a division. Both follow from the rows and bytes of all of the set, and not from
how its rows were cut into tasks: the same rows make the same shards.
"""

from dataclasses import dataclass

from millpond.errors import OptionError

SHARD_NAME = "shard-{partition}.arrow"
# A record batch holds this many rows, or as many as fit in 16 MiB: its narrow buffers
# are then half a megabyte, which is read and checked whole at the first touch.
BATCH_ROWS = 65_536
BATCH_BYTES = 16 << 20
# The checksum of a row, where it has one of its own.
_SUM_BYTES = 8


@dataclass(frozen=True, slots=True)
class ShardSize:
    """What a user asked for: exactly `rows` a shard if given, else about `size_bytes`.

    `align` is the chunk size of the store, in bytes, or None.
    """

    rows: int | None
    size_bytes: int
    align: int | None = None

    def batch_rows(self, rows: int, size_bytes: int) -> int:
        """Rows of a record batch, for `rows` in all, of `size_bytes` in all."""
        each = -(-size_bytes // max(rows, 1))
        return rows_per_batch(each, self.align, min(BATCH_BYTES, self.size_bytes))

    def shard_rows(self, rows: int, size_bytes: int) -> int:
        """Rows of a shard but the last: whole record batches, unless they were given."""
        if self.rows is not None:
            return self.rows
        batch = self.batch_rows(rows, size_bytes)
        each = -(-size_bytes // max(rows, 1)) + _SUM_BYTES
        return max(1, self.size_bytes // each // batch) * batch


def checked_align(align: int | None, where: str) -> None:
    """Whether a chunk size can hold record batches that begin at its borders."""
    if align is not None and (align < 8192 or align % 8):
        raise OptionError(
            f"{where}: align={align}; pass a multiple of 8, and 8192 bytes or more: "
            "the chunk size of the store."
        )


def rows_per_batch(row_bytes: int, align: int | None = None, most_bytes: int = BATCH_BYTES) -> int:
    """Rows of a record batch: a power of two, at most 65,536.

    With `align`, as many rows as surely fit into one chunk if all are alike.

    >>> rows_per_batch(4096), rows_per_batch(4096, align=1 << 20)
    (2048, 226)
    """
    row_bytes = max(1, row_bytes) + _SUM_BYTES
    if align is not None:
        return max(1, min(BATCH_ROWS, (align - 4096) // (row_bytes + row_bytes // 8)))
    rows = BATCH_ROWS
    while rows > 1 and rows * row_bytes > most_bytes:
        rows //= 2
    return rows
