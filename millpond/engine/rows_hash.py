"""A hash of rows that does not depend on their order: what was written is what was read.

Only for `verify="rows"`: it costs about as much as reading the rows once more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from millpond.engine.duckdb import Engine

if TYPE_CHECKING:
    import pyarrow as pa


def rows_hash(engine: Engine, rows: pa.Table) -> int:
    """The sum of the hashes of the rows, in 64 bits; 0 for no rows."""
    if rows.num_rows == 0 or rows.num_columns == 0:
        return 0
    with engine.cursor() as cursor:
        cursor.register("__rows", rows)
        found = cursor.rows("SELECT sum(hash(__rows))::HUGEINT FROM __rows")
    return int(found[0][0]) % 2**64
