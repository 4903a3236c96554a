"""Which columns a query reads, where its text does not say: stars, whole rows. DuckDB's plan does.

A scan in the plan lists what it gives. That a query means the same over these columns alone
is proven, not argued: its plan over tables that have no others must be the same plan.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from millpond.errors import SchemaMismatch, SqlError
from millpond.expr.parse import Dialect, Query
from millpond.expr.trees import Tree, walk
from millpond.schema import Schema


def with_names(query: Query, tables: Mapping[str, Schema], dialect: Dialect) -> Query:
    """The query with the names of the columns that it reads, if it has none and the plan tells."""
    if query.names is not None or query.by_place:
        return query
    try:
        plan = dialect.explain(query.sql, tables)
        names = _scanned(plan, tables)
        fewer = {name: _kept(schema, names) for name, schema in tables.items()}
        same = dialect.explain(query.sql, fewer) == plan
        same = same and dialect.describe(query.sql, fewer) == dialect.describe(query.sql, tables)
    except (SqlError, SchemaMismatch):  # Such as a star that excludes a column by its name.
        return query
    return replace(query, names=names) if names and same else query


def _kept(schema: Schema, names: frozenset[str]) -> Schema:
    """As rules leave an input: one column at least, so that rows can be counted."""
    kept = tuple(field for field in schema if field.name.casefold() in names)
    return Schema(kept or schema.fields[:1])


def _scanned(plan: list[Tree], tables: Mapping[str, Schema]) -> frozenset[str]:
    """Columns that the scans read, of whichever table; none if not every table is scanned."""
    scans = list(_scans(plan))
    if len(scans) < len(tables):
        return frozenset()  # DuckDB found that it need not look: the plan does not tell.
    known = {field.name.casefold() for schema in tables.values() for field in schema}
    names: set[str] = set()
    for scan in scans:
        read = scan.get("Projections", "")
        names.update(name.casefold() for name in ([read] if isinstance(read, str) else read))
        # DuckDB 1.4 leaves out a column that a filter of the scan alone reads.
        filters = str(scan.get("Filters", "")).casefold()
        names.update(name for name in known if name in filters)
    names.discard("")
    return frozenset(names) if names <= known else frozenset()


def _scans(plan: list[Tree]) -> Iterator[Tree]:
    for found in walk(plan):
        if "ARROW_SCAN" in str(found.get("name")):
            yield found["extra_info"]
