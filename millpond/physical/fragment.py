"""A node over the SQL of its inputs → SQL. One node, one query; queries nest.

A query is held as pieces: text, and numbers that stand for the inputs of a fragment
(`__s0`, `__s1`, …), so that two queries with inputs of their own can be joined.
"""

import re

from millpond.expr import SortKey, quote
from millpond.plan import nodes as n
from millpond.plan.joins import join_sql
from millpond.plan.partitioning import keeps_order
from millpond.schema import Schema

Pieces = tuple[str | int, ...]

ORDINAL_NAME = "__millpond_ordinal"
ORDINAL = quote.name(ORDINAL_NAME)
TASK = "__millpond_task"  # In a step's SQL: the number of the task that runs it.


def slot(i: int) -> Pieces:
    """The query that gives input `i` as it is."""
    return ("FROM ", i)


def shifted(sql: Pieces, by: int) -> Pieces:
    return tuple(piece if isinstance(piece, str) else piece + by for piece in sql)


def text(sql: Pieces) -> str:
    return "".join(piece if isinstance(piece, str) else f"__s{piece}" for piece in sql)


def is_plain(sql: Pieces) -> bool:
    return sql == slot(0)


def reads_once(sql: str, name: str = "__s0") -> bool:
    """Whether a query reads `name` once, by sight: below a WITH it may be read again."""
    return sql.count(name) == 1 and not re.search(r"\bWITH\b", sql, re.IGNORECASE)


def over(head: str, sql: Pieces, tail: str = "") -> Pieces:
    """`head` FROM the query `sql` AS __in0, then `tail`."""
    if len(sql) == 2 and sql[0] == "FROM ":
        return (f"{head}\nFROM ", sql[1], f" AS __in0{tail}")
    return (f"{head}\nFROM (\n", *sql, f"\n) AS __in0{tail}")


def render(node: n.Node, inputs: tuple[Pieces, ...]) -> Pieces:
    """The query of `node` over the queries of its inputs; rows in all, not per partition."""
    sql = inputs[0] if inputs else ()
    match node:
        case n.Project(expression=expression):
            return over(f"SELECT {expression.sql}", sql)
        case n.Filter(predicate=predicate):
            return over("SELECT *", sql, f"\nWHERE (\n{predicate.sql}\n)")
        case n.Sort(keys=keys):
            return sorted_(sql, node.schema.names, keys)
        case n.Limit(n=count):
            return over("SELECT *", sql, f"\nLIMIT {count}")
        case n.Aggregate(keys=keys, expression=expression):
            head = f"{quote.names(keys)}, " if keys else ""
            group = f"\nGROUP BY {quote.names(keys)}" if keys else ""
            return over(f"SELECT {head}{expression.sql}", sql, group)
        case n.Distinct(columns=columns):
            return _distinct(sql, node.schema.names, columns)
        case n.Sample():
            return sampled(identified(sql, node.input), node)
        case n.RandomPartition():
            return shuffled(identified(sql, node.input), node)
        case n.Join():
            return _join(node, *inputs)
        case n.Union():
            return _union(node, inputs)
        case n.SqlEngine():
            names = tuple(f"__in{i}" for i in range(len(inputs)))
            return _named(names, inputs, node.query.sql)
        case n.GlobalSql():
            return _named(tuple(map(quote.name, node.names)), inputs, node.query.sql)
        case n.EvenPartition() | n.HashPartition() | n.GivenPartition():
            return sql
    raise AssertionError(f"{type(node).__name__} is no SQL")


def numbered(sql: Pieces) -> Pieces:
    """Number the rows in input order."""
    return over(f"SELECT *, row_number() OVER () AS {ORDINAL}", sql)


def identified(sql: Pieces, node: n.Node) -> Pieces:
    """The rows of `node`, each with an identity that no shape and no partition count changes.

    Its number in the input; where rows come in no order, a hash of the row and of which
    of its equal copies it is.
    """
    if keeps_order(node):
        return numbered(sql)
    hashed = over("SELECT *, hash(__in0) AS __millpond_hash", sql)
    copy = "row_number() OVER (PARTITION BY __millpond_hash)"
    identity = f"hash(__millpond_hash, {copy}) AS {ORDINAL}"
    return over(f"SELECT * EXCLUDE (__millpond_hash), {identity}", hashed)


def random_key(seed: int) -> str:
    """A hash of seed and identity: uniform over 64 bits."""
    return f"hash({seed}::BIGINT, {ORDINAL})"


def sampled(sql: Pieces, node: n.Sample) -> Pieces:
    """The rows of `node`, chosen from identified ones."""
    chance = f"{random_key(node.seed)}::DOUBLE < {node.fraction!r} * 18446744073709551616"
    return over(f"SELECT {quote.names(node.schema.names)}", sql, f" WHERE {chance}")


def shuffled(sql: Pieces, node: n.RandomPartition) -> Pieces:
    """The rows of `node` in random order, from identified ones."""
    order = f"\nORDER BY {random_key(node.seed)}, {ORDINAL}"
    return over(f"SELECT {quote.names(node.schema.names)}", sql, order)


def sorted_(
    sql: Pieces, names: tuple[str, ...], keys: tuple[SortKey, ...], places: tuple[str, ...] = ()
) -> Pieces:
    """In the order of the keys, ties in input order: that of the columns `places`, if given."""
    order = ", ".join(map(str, keys))
    if places:
        tail = f"\nORDER BY {order}, {quote.names(places)}"
        return over(f"SELECT {quote.names(names)}", sql, tail)
    return over(f"SELECT {quote.names(names)}", numbered(sql), f"\nORDER BY {order}, {ORDINAL}")


def sorted_places(sql: Pieces, keys: tuple[SortKey, ...]) -> Pieces:
    """The places of rows in the order of the keys; a row's place is its last column."""
    order = ", ".join(map(str, keys))
    return over(f"SELECT {ORDINAL}", sql, f"\nORDER BY {order}, {ORDINAL}")


def hash_partition(keys: tuple[str, ...], types: tuple[str, ...], count: int) -> str:
    """The partition of a row, from bits that DuckDB's own hash tables do not use."""
    items = ", ".join(
        f"{quote.name(k)}::{t}" if t else quote.name(k) for k, t in zip(keys, types, strict=True)
    )
    return f"(((hash({items}) >> 32) * {count}) >> 32)::UINTEGER"


def with_column(sql: Pieces, expression: str, name: str) -> Pieces:
    """Add a last column."""
    return over(f"SELECT *, {expression} AS {quote.name(name)}", sql)


def cast(sql: Pieces, have: Schema, want: Schema, extra: bool) -> Pieces:
    """The query in other types; with `extra`, its last column goes along as it is."""
    if have == want:
        return sql
    items = ", ".join(f"{quote.name(f.name)}::{f.type} AS {quote.name(f.name)}" for f in want)
    rest = f", * EXCLUDE ({quote.names(have.names)})" if extra else ""
    return over(f"SELECT {items}{rest}", sql)


def _distinct(sql: Pieces, names: tuple[str, ...], columns: tuple[str, ...]) -> Pieces:
    if set(columns) == set(names):
        return over("SELECT DISTINCT *", sql)
    first = (
        f"\nQUALIFY row_number() OVER (PARTITION BY {quote.names(columns)} ORDER BY {ORDINAL}) = 1"
    )
    inner = over("SELECT *", numbered(sql), first)
    return over(f"SELECT {quote.names(names)}", inner, f"\nORDER BY {ORDINAL}")


def _join(node: n.Join, left: Pieces, right: Pieces) -> Pieces:
    sql = join_sql(node.how, node.on, node.condition, node.outputs, "\x00l", "\x00r")
    out: list[str | int] = []
    head, _, rest = sql.partition("\x00l")
    middle, _, tail = rest.partition("\x00r")
    out += [head, "(\n", *left, "\n)", middle, "(\n", *right, "\n)", tail]
    return tuple(out)


def _union(node: n.Union, inputs: tuple[Pieces, ...]) -> Pieces:
    out: list[str | int] = []
    for i, sql in enumerate(inputs):
        items = ", ".join(f"{quote.name(f.name)}::{f.type} AS {quote.name(f.name)}"
                          for f in node.schema)  # fmt: skip
        out += [" UNION ALL " if i else "", "(", *over(f"SELECT {items}", sql), ")"]
    return tuple(out)


def _named(names: tuple[str, ...], inputs: tuple[Pieces, ...], query: str) -> Pieces:
    out: list[str | int] = ["WITH "]
    for i, (name, sql) in enumerate(zip(names, inputs, strict=True)):
        # A bare input is read in place however often it is named; DuckDB decides on the rest.
        how = "NOT MATERIALIZED " if len(sql) == 2 else ""
        out += [", " if i else "", f"{name} AS {how}(\n", *sql, "\n)"]
    out.append(f"\nSELECT * FROM (\n{query}\n)")
    return tuple(out) if names else (f"SELECT * FROM (\n{query}\n)",)
