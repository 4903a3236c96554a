"""Which rows a filter keeps, so that the k-th kept row is found at once.

A selection is a base row for each 64 kept rows and a 16-bit distance for each: 2.1
bytes a kept row and 6 to 17 ns a look-up. It is computed once and stored by content.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Int64s = npt.NDArray[np.int64]
Mask = Callable[[pa.RecordBatch], npt.NDArray[np.bool_]]
_GROUP = 64


@dataclass(frozen=True, slots=True)
class Predicate:
    """A filter, made ready by the engine: the columns it reads, and which rows it keeps."""

    columns: tuple[str, ...]
    mask: Mask


# Checks SQL text against a schema; raises ColumnNotFound or SqlError. Handed in, because
# only the engine knows SQL.
Select = Callable[[str, pa.Schema], Predicate]


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """The kept rows, rising. `wide` holds them plainly where groups span too far."""

    n: int
    base: Int64s
    delta: npt.NDArray[np.uint16]
    wide: Int64s

    @classmethod
    def of(cls, rows: Int64s) -> "Selection":
        """From rising row numbers."""
        none = np.empty(0, np.int64)
        base = rows[::_GROUP].copy()
        delta = rows - np.repeat(base, _GROUP)[: rows.size]
        if rows.size and delta.max() >= 1 << 16:
            return cls(rows.size, none, np.empty(0, np.uint16), rows)
        return cls(rows.size, base, delta.astype(np.uint16), none)

    def rows(self, kept: Int64s) -> Int64s:
        """The row of each kept row's number."""
        if self.wide.size:
            return self.wide[kept]
        return self.base[kept // _GROUP] + self.delta[kept]

    def find(self, row: int) -> int | None:
        """The number of `row` among the kept; None if it is not one."""
        if self.wide.size or not self.n:
            at = int(np.searchsorted(self.wide, row))
        else:
            group = max(0, int(np.searchsorted(self.base, row, side="right")) - 1)
            first = group * _GROUP
            inside = self.delta[first : first + _GROUP].astype(np.int64)
            at = first + int(np.searchsorted(inside, row - int(self.base[group])))
        if at >= self.n or int(self.rows(np.array([at]))[0]) != row:
            return None
        return at

    def to_bytes(self) -> bytes:
        head = np.array([self.n, self.base.size, self.delta.size, self.wide.size], "<i8")
        parts = (head, self.base.astype("<i8"), self.wide.astype("<i8"), self.delta.astype("<u2"))
        return b"".join(part.tobytes() for part in parts)

    @classmethod
    def from_bytes(cls, data: bytes | memoryview) -> "Selection | None":
        """None if `data` is not whole: it is then computed again."""
        if len(data) < 32:
            return None
        n, n_base, n_delta, n_wide = np.frombuffer(data, "<i8", 4).tolist()
        if min(n, n_base, n_delta, n_wide) < 0:
            return None
        if len(data) != 32 + 8 * (n_base + n_wide) + 2 * n_delta or n_delta + n_wide != n:
            return None
        numbers = np.frombuffer(data, "<i8", n_base + n_wide, 32)
        delta = np.frombuffer(data, "<u2", n_delta, 32 + 8 * (n_base + n_wide))
        return cls(n, numbers[:n_base], delta, numbers[n_base:])


def select_rows(batches: Iterable[pa.RecordBatch], mask: Mask) -> Selection:
    """Evaluate a filter over all rows, in storage order. Reads the filter's columns once."""
    kept, first = [np.empty(0, np.int64)], 0
    for batch in batches:
        kept.append(np.flatnonzero(mask(batch)) + first)
        first += batch.num_rows
    return Selection.of(np.concatenate(kept))
