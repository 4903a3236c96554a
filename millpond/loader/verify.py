"""What a process has checked already, and the bytes that a value's checksum covers."""

from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from millpond.loader.columns import Column

Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


class Seen:
    """One bit a row: was its value checked? Untouched pages of it take no memory.

    Threads may share it without a lock: the worst that a lost update does is that a row
    is checked twice, and "all" is only said after every bit was looked at.
    """

    def __init__(self, n: int) -> None:
        self._n, self._bits = n, np.zeros(-(-n // 8), np.uint8)
        self._added, self._all = 0, False

    def new(self, rows: Int64s) -> Bools | None:
        """Which of `rows` were not checked yet; None if every row of the dataset was."""
        if self._all:
            return None
        unseen: Bools = (self._bits[rows >> 3] >> (rows & 7).astype(np.uint8)) & 1 == 0
        return unseen

    def add(self, rows: Int64s) -> None:
        bits = np.left_shift(np.uint8(1), (rows & 7).astype(np.uint8))
        np.bitwise_or.at(self._bits, rows >> 3, bits)
        self._added += rows.size
        if self._added >= self._n:
            missing = self._n - sum(
                int(np.unpackbits(self._bits[at : at + _COUNT]).sum())
                for at in range(0, self._bits.size, _COUNT)
            )
            self._added, self._all = self._n - missing, missing == 0


_COUNT = 1 << 20


def slices_of(values: npt.NDArray[np.uint8], edges: Int64s, at: Int64s) -> Iterator[memoryview]:
    """The bytes of the values numbered `at`. No step of it runs in Python: half the time of
    a loop that does."""
    slices = map(slice, edges[at].tolist(), edges[at + 1].tolist())
    return map(memoryview(cast(Any, values)).__getitem__, slices)


def extent(column: Column) -> tuple[npt.NDArray[np.uint8], Int64s]:
    """The bytes of all values of a wide column, and the edges between them."""
    values, width = column.values, 1
    if column.children:
        values = column.children[0].values
        width = column.children[0].kind.bit_width // 8
    flat = cast(npt.NDArray[np.uint8], values).reshape(-1)
    if column.offsets is not None:
        return flat, column.offsets * width
    return flat, np.arange(column.n + 1) * (flat.size // max(1, column.n))
