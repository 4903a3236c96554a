"""SQL filters of a training set, by the engine; loaded only when a filter is used."""

import atexit
import functools
import secrets
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from millpond.engine.duckdb import Engine
from millpond.errors import SqlError
from millpond.expr import parse
from millpond.expr.trees import walk
from millpond.loader.selection import Predicate
from millpond.storage.scratch import Scratch

_MEMORY_BYTES = 512 << 20


def predicate(text: str, schema: pa.Schema) -> Predicate:
    """`text` over the columns of `schema`. Raises `ColumnNotFound` or `SqlError`.

    It must say the same of a row on every rank and in every batch: so no aggregates, no
    subqueries, nothing random, no clock.
    """
    engine = _engine()
    known = engine.schema_of(schema.empty_table())
    where = f"loader(filter={text!r})"
    found = parse.predicate(text, known, where, engine.dialect)
    if found.varies:
        raise SqlError(
            f"{where}: this may keep other rows each time, and all ranks need the same ones. Write "
            "what is random, or hangs on the clock or on order, as a column of the training set."
        )
    tree = engine.dialect.parse(f"SELECT {found.sql}")
    if any(part.get("class") == "SUBQUERY" for part in walk(tree)):
        raise SqlError(
            f"{where}: a filter looks at one row alone, not at a subquery. Write out the values, "
            "or compute a column before the training set is written."
        )
    columns = known.names if found.columns is None else tuple(sorted(found.columns))
    sql = f"SELECT coalesce((\n{found.sql}\n), false) AS kept FROM given"
    # Found out before any row is read, and by this name.
    check = f"SELECT 1 FROM given WHERE (\n{found.sql}\n)"  # Here aggregates are refused.
    for query in (check, sql):
        parse.check(partial(engine.describe, query, {"given": known}), where)

    def mask(batch: pa.RecordBatch) -> npt.NDArray[np.bool_]:
        with engine.cursor() as cursor:
            cursor.register("given", pa.Table.from_batches([batch]))
            kept = cursor.table(sql).column(0)
        return np.asarray(kept.to_numpy(), np.bool_)

    # A filter without columns still needs one, to know how many rows there are.
    return Predicate(columns or known.names[:1], mask)


@functools.cache
def _engine() -> Engine:
    scratch = Scratch(f"filter-{secrets.token_hex(6)}")
    atexit.register(scratch.remove)
    return Engine(threads=1, memory_limit_bytes=_MEMORY_BYTES, scratch=scratch.path)
