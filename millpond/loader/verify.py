"""What a process has checked already, and the bytes that a value's checksum covers."""

from typing import cast

import numpy as np
import numpy.typing as npt

from millpond.loader.columns import Column

Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


class Seen:
    """One bit a row: was its value checked? Untouched pages of it take no memory."""

    def __init__(self, n: int) -> None:
        self._bits = np.zeros(-(-n // 8), np.uint8)
        self._left = n

    def new(self, rows: Int64s) -> Bools | None:
        """Which of `rows` were not checked yet; None if every row of the dataset was."""
        if not self._left:
            return None
        unseen: Bools = (self._bits[rows >> 3] >> (rows & 7).astype(np.uint8)) & 1 == 0
        return unseen

    def add(self, rows: Int64s) -> None:
        rows = np.unique(rows)
        bits = np.left_shift(np.uint8(1), (rows & 7).astype(np.uint8))
        np.bitwise_or.at(self._bits, rows >> 3, bits)
        self._left -= rows.size


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
