"""The checked way to make a node: names and types are resolved here, at the user's call.

Every function takes `where`, the call as the user wrote it, for its errors, and the
`Dialect` that knows SQL; none touches data.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from numbers import Real

from millpond.errors import OptionError, SchemaMismatch, SqlError, warn
from millpond.expr import Dialect, Expression, quote
from millpond.expr import parse as p
from millpond.expr.ends import ended, listed, placed
from millpond.expr.reads import with_names
from millpond.expr.trees import walk
from millpond.plan import nodes as n
from millpond.plan.partitioning import partitioning
from millpond.plan.udfs import known
from millpond.schema import Field, Schema

IN = "__in0"
_MOST = 2**63 - 1  # DuckDB counts rows in 64 bits.


def project(
    node: n.Node, sql: str, where: str, dialect: Dialect, *, flat: bool = False,
    udfs: tuple[n.Udf, ...] = (),
) -> n.Project:  # fmt: skip
    """A select list over each row; with `flat`, `unnest` may make several rows of one."""
    dialect = known(dialect, udfs)
    expression = p.select_list(sql, node.schema, where, dialect, flat=flat)
    if any(not udf.call.deterministic for udf in udfs):
        expression = replace(expression, varies=True)
    schema = _describe(f"SELECT {expression.sql}\nFROM {IN}", node.schema, where, dialect)
    # An aggregate cannot stand beside a plain column: DuckDB's own word for "not row-wise".
    witness = Schema((*node.schema.fields, Field("__millpond_witness", "BIGINT")))
    try:
        dialect.describe(
            f"SELECT {expression.sql}\n, __millpond_witness AS __millpond_proof FROM {IN}",
            {IN: witness},
        )
    except SqlError:
        raise SqlError(
            f"{where}: an aggregate looks at many rows. Use group_by().agg() or sql() for the "
            "whole frame, or partial_sql() inside partitions."
        ) from None
    return n.Project(node, expression, schema, flat, udfs)


def select(node: n.Node, items: Sequence[str], where: str, dialect: Dialect) -> n.Project:
    """Columns by name, or SQL select items."""
    if not items:
        raise SqlError(f"{where}: needs at least one column.")
    found = [node.schema.find(item) if isinstance(item, str) else None for item in items]
    fields = [field for field in found if field is not None]
    if len(fields) == len(items):
        return _picked(node, fields, where)
    parts = [quote.name(f.name) if f else item for f, item in zip(found, items, strict=True)]
    return project(node, listed(parts, where), where, dialect)


def _picked(node: n.Node, fields: Sequence[Field], where: str) -> n.Project:
    """Some columns as they are: there is nothing to ask DuckDB."""
    schema = p.check(lambda: Schema(tuple(fields)), where)
    return n.Project(node, Expression(quote.names(schema.names), frozenset(schema.names)), schema)


def with_columns(
    node: n.Node, columns: Mapping[str, str], where: str, dialect: Dialect
) -> n.Project:
    """Add columns, or replace those whose name is taken, in place.

    DuckDB is asked about the new ones alone, over what they read: a frame may have thousands.
    """
    if not columns:
        return _picked(node, node.schema.fields, where)
    said = [p.predicate(s, node.schema, f"{where}: {c}", dialect) for c, s in columns.items()]
    taken = {field.name.casefold(): field.name for field in node.schema}
    items = {
        (name := taken.get(given.casefold(), given)): f"(\n{ended(sql)}\n) AS {quote.name(name)}"
        for given, sql in columns.items()
    }
    known = all(one.columns is not None for one in said)
    reads = {name for one in said for name in one.columns or ()}
    below = _picked(node, [f for f in node.schema if f.name in reads], where) if known else node
    new = project(below, ",\n".join(items.values()), where, dialect)
    fields = {field.name: field for field in (*node.schema, *new.schema)}
    sql = ",\n".join(items.get(name) or quote.name(name) for name in fields)
    kept = frozenset(fields) - frozenset(items)
    columns_read = kept | new.expression.columns if new.expression.columns is not None else None
    expression = replace(new.expression, sql=sql, columns=columns_read)
    return n.Project(node, expression, Schema(tuple(fields.values())))


def rename(node: n.Node, names: Mapping[str, str], where: str, dialect: Dialect) -> n.Project:
    """Other names for some columns."""
    for name, new in names.items():
        if not isinstance(new, str):
            raise OptionError(f"{where}: the new name of {name!r} is {new!r}; names are text.")
    old = {node.schema.field(name, where).name: new for name, new in names.items()}
    parts = [
        f"{quote.name(f.name)} AS {quote.name(old[f.name])}"
        if f.name in old
        else quote.name(f.name)
        for f in node.schema
    ]
    return project(node, ", ".join(parts), where, dialect)


def drop(node: n.Node, names: Sequence[str], where: str) -> n.Project:
    """All columns but `names`."""
    gone = {node.schema.field(name, where).name for name in names}
    kept = [f for f in node.schema if f.name not in gone]
    if not kept:
        raise SchemaMismatch(f"{where}: no column would be left.")
    return _picked(node, kept, where)


def filtered(
    node: n.Node, sql: str, where: str, dialect: Dialect, udfs: tuple[n.Udf, ...] = ()
) -> n.Filter:
    """Rows for which `sql` is true."""
    dialect = known(dialect, udfs)
    predicate = p.predicate(sql, node.schema, where, dialect)
    _describe(f"SELECT * FROM {IN} WHERE (\n{predicate.sql}\n)", node.schema, where, dialect)
    if any(not udf.call.deterministic for udf in udfs):
        predicate = replace(predicate, varies=True)
    return n.Filter(node, predicate, udfs)


def python(
    node: n.Node, call: n.PythonCall, schema: Schema | Mapping[str, str], where: str, d: Dialect
) -> n.PythonBatches:
    """A Python function, with the columns that it gives."""
    return n.PythonBatches(node, call, typed(schema, where, d))


def typed(schema: Schema | Mapping[str, str], where: str, dialect: Dialect) -> Schema:
    """Names and types from a user → a schema in DuckDB's canonical spelling."""
    given = schema if isinstance(schema, Schema) else Schema.of(schema.items())
    if not given.fields:
        raise SchemaMismatch(f"{where}: schema has no columns.")
    for field in given:
        if not isinstance(field.name, str) or not isinstance(field.type, str):
            raise SchemaMismatch(
                f"{where}: schema has {field.name!r}: {field.type!r}. Names are text, and types "
                'are DuckDB\'s words for them, such as {"name": "VARCHAR"}.'
            )
    return p.check(lambda: dialect.describe(f"SELECT * FROM {IN}", {IN: given}), where)


def sort(
    node: n.Node, by: str | list[str], where: str, dialect: Dialect, *, partial: bool = False
) -> n.Sort:
    """The whole frame in order, or each partition."""
    keys = p.sort_keys(by, node.schema, where, dialect)
    items = ", ".join(f"create_sort_key({k.sql}, '{k.direction}')" for k in keys)
    _describe(f"SELECT {items} FROM {IN}", node.schema, where, dialect)
    return n.Sort(node, keys, partial)


def limit(node: n.Node, count: int, where: str) -> n.Limit:
    return n.Limit(node, min(whole(count, where, "n", least=0), _MOST))


def sample(node: n.Node, fraction: float, seed: int, where: str) -> n.Sample:
    if not isinstance(fraction, Real) or not 0 <= fraction <= 1:
        raise OptionError(f"{where}: fraction is {fraction!r}; it must be between 0 and 1.")
    return n.Sample(node, float(fraction), seed)


def aggregate(
    node: n.Node, keys: Sequence[str], items: Sequence[str], where: str, dialect: Dialect
) -> n.Aggregate:
    """Groups of equal `keys`; `items` are aggregates with names."""
    names = tuple(node.schema.field(key, where).name for key in keys)
    if not items:
        raise SqlError(f'{where}: needs at least one aggregate, such as "sum(x) AS s".')
    expression = p.select_list(listed(items, where), node.schema, where, dialect, flat=True)
    head = f"{quote.names(names)}, " if names else ""
    group = f"\nGROUP BY {quote.names(names)}" if names else ""
    sql = f"SELECT {head}{expression.sql}\nFROM {IN}{group}"
    return n.Aggregate(node, names, expression, _describe(sql, node.schema, where, dialect))


def distinct(node: n.Node, columns: Sequence[str], where: str) -> n.Distinct:
    names = tuple(node.schema.field(c, where).name for c in columns) or node.schema.names
    return n.Distinct(node, names)


def union(inputs: Sequence[n.Node], where: str, dialect: Dialect) -> n.Union:
    """Rows of all inputs, by name; every input has the same names."""
    for i, other in enumerate(inputs[1:], 2):
        _check_same_names(inputs[0].schema, other.schema, f"frame {i}", where)
    _check_kinds([node.schema for node in inputs], where, dialect)
    tables = {f"__in{i}": node.schema for i, node in enumerate(inputs)}
    sql = " UNION ALL BY NAME ".join(f"SELECT * FROM {name}" for name in tables)
    return n.Union(tuple(inputs), p.check(lambda: dialect.describe(sql, tables), where))


def _check_same_names(first: Schema, other: Schema, which: str, where: str) -> None:
    ours, theirs = (
        [field.name for field in one if field.name not in another]
        for one, another in ((first, other), (other, first))
    )
    if ours or theirs:
        lacks = [f"{which} lacks {', '.join(map(repr, ours))}"] if ours else []
        lacks += [f"the first frame lacks {', '.join(map(repr, theirs))}"] if theirs else []
        raise SchemaMismatch(
            f"{where}: the frames have other columns: {' and '.join(lacks)}. Columns are matched "
            f'by name; add what is missing, with_columns({(ours or theirs)[0]}="NULL"), or drop '
            "what only one has."
        )


# Types of which DuckDB casts no value to a type of another line, but gives their union a type.
# What it may cast, as a text to any, is in none.
_KINDS = [
    re.compile(types, re.DOTALL)
    for types in (
        r"U?(TINY|SMALL|BIG|HUGE)INT|U?INTEGER|FLOAT|DOUBLE|DECIMAL\(.*\)|BOOLEAN",
        r"DATE|TIMESTAMP.*",
        r"TIME( .*|_NS)?",
        r"INTERVAL",
        r"UUID",
        r"BLOB",
        r".*\[\d*\]",
        r"(STRUCT|MAP)\(.*\)",
    )
]


def _check_kinds(schemas: Sequence[Schema], where: str, dialect: Dialect) -> None:
    """Every column has types that can meet; DuckDB would say so at the first value."""
    untyped = dialect.describe("SELECT NULL", {}).types[0]  # DuckDB 1 says INTEGER.
    for name in schemas[0].names:
        said: dict[int, str] = {}
        for i, schema in enumerate(schemas, 1):
            kind = schema.field(name, where).type
            of = next((k for k, types in enumerate(_KINDS) if types.fullmatch(kind)), None)
            if of is not None and kind != untyped:
                said.setdefault(of, f"{kind} in frame {i}")
        if len(said) > 1:
            raise SchemaMismatch(
                f"{where}: column {name!r} is {' and '.join(said.values())}, and DuckDB casts no "
                "value from one to the other. Give them one type before, such as "
                f'with_columns({name}="{name}::VARCHAR"), or other names.'
            )


def repartition(
    node: n.Node, count: int, where: str, dialect: Dialect, *,
    hash_by: str | Sequence[str] | None = None, by: str | None = None, by_rows: bool = False,
) -> n.Node:  # fmt: skip
    """`count` partitions: even, by hash of columns, or by a given number."""
    count = whole(count, where, "n", least=1)
    if sum([hash_by is not None, by is not None, by_rows is True]) > 1:
        raise OptionError(f"{where}: give one of hash_by, by and by_rows.")
    if not isinstance(by_rows, bool):
        raise OptionError(f"{where}: by_rows is {by_rows!r}; it must be True or False.")
    if hash_by is not None:
        names = tuple(field.name for field in node.schema.named(hash_by, where))
        if not names:
            raise OptionError(f"{where}: hash_by needs at least one column.")
        return n.HashPartition(node, names, count)
    if by is not None:
        expression = p.predicate(by, node.schema, where, dialect)
        schema = _describe(f"SELECT {expression.sql}\nAS n FROM {IN}", node.schema, where, dialect)
        if schema.types[0] not in _INTEGERS:
            raise SchemaMismatch(
                f"{where}: by={by!r} is {schema.types[0]}, not an integer. Cast it, or use hash_by."
            )
        return n.GivenPartition(node, expression, count)
    return n.EvenPartition(node, count, by_rows)


_INTEGERS = {
    "TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT",
    "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT", "UHUGEINT",
}  # fmt: skip


def partial_sql(
    text: str, inputs: Sequence[n.Node], where: str, dialect: Dialect,
    co_partitioned: bool | None,
) -> n.SqlEngine:  # fmt: skip
    """One query in each partition; `{0}`, `{1}`, … are the inputs, other braces stay."""
    if not inputs:
        raise OptionError(f"{where}: needs at least one frame.")
    if not isinstance(text, str):
        raise SqlError(f"{where}: needs SQL text, not {type(text).__name__}.")
    sql = placed(text, [f"__in{i}" for i in range(len(inputs))])
    try:
        query = p.query(sql, where, dialect)
    except SqlError as error:
        beyond = re.search(r"\{\d+\}", sql)
        if beyond is None:
            raise
        names = ", ".join("{" + str(i) + "}" for i in range(len(inputs)))
        raise SqlError(f"{error} Is {beyond[0]} an input? There are: {names}.") from None
    tables = {f"__in{i}": node.schema for i, node in enumerate(inputs)}
    schema = p.check(lambda: dialect.describe(query.sql, tables), where)
    _check_partitions(inputs, where, co_partitioned, lambda: _equated(query.sql, dialect))
    return n.SqlEngine(tuple(inputs), with_names(query, tables, dialect), schema)


def _check_partitions(
    inputs: Sequence[n.Node], where: str, known: bool | None,
    equated: Callable[[], frozenset[frozenset[str]]],
) -> None:  # fmt: skip
    if len(inputs) == 1:
        return
    parts = [partitioning(node) for node in inputs]
    counts = [part.n for part in parts]
    if any(count is None for count in counts):
        raise OptionError(
            f"{where}: with several inputs each needs a partition count that you gave: "
            "call repartition(n, hash_by=…) on them, or repartition(1) on one that goes to all. "
            f"The counts are {', '.join('automatic' if c is None else str(c) for c in counts)}."
        )
    if len({count for count in counts if count != 1}) > 1:
        raise OptionError(
            f"{where}: partition counts must be equal, or 1; they are "
            f"{', '.join(map(str, counts))}."
        )
    split = [part for part in parts if part.n != 1]
    if not known and any(not split[0].meets(part, equated()) for part in split[1:]):
        warn(
            f"{where}: cannot prove that the inputs are co-partitioned; rows whose partners lie in "
            "another partition would be missed. Repartition both by the same keys and types, or "
            "pass co_partitioned=True if you know better."
        )


def _equated(sql: str, dialect: Dialect) -> frozenset[frozenset[str]]:
    """Pairs of columns that a query compares with `=`, by name."""
    pairs = set()
    for found in walk(dialect.parse(sql)["statements"]):
        if found.get("type") == "COMPARE_EQUAL":
            sides = [found["left"], found["right"]]
            if all(side.get("class") == "COLUMN_REF" for side in sides):
                pairs.add(frozenset(side["column_names"][-1].casefold() for side in sides))
    return frozenset(pairs)


def global_sql(text: str, frames: Mapping[str, n.Node], where: str, d: Dialect) -> n.GlobalSql:
    """One query over whole frames by name."""
    query = p.query(text, where, d)
    read = {name: node for name, node in frames.items() if p.may_name(query.sql, name)}
    tables = {name: node.schema for name, node in read.items()}
    schema = p.check(lambda: d.describe(query.sql, tables), where)
    query = with_names(query, tables, d)
    return n.GlobalSql(tuple(read), tuple(read.values()), query, schema)


def seed_of(seed: int, where: str) -> int:
    """A seed of 64 bits, which DuckDB takes; those of Python have as many as they like."""
    number = whole(seed, where, "seed", least=-_MOST - 1)
    return (number + _MOST + 1) % 2**64 - _MOST - 1


def whole(number: int, where: str, name: str, *, least: int) -> int:
    """A whole number from a user, at least `least`."""
    try:
        ok = not isinstance(number, bool) and int(number) == number and number >= least
    except (TypeError, ValueError):
        ok = False
    if not ok:
        raise OptionError(f"{where}: {name} is {number!r}; it must be a whole number ≥ {least}.")
    return int(number)


def _describe(sql: str, schema: Schema, where: str, dialect: Dialect) -> Schema:
    return p.check(lambda: dialect.describe(sql, {IN: schema}), where)
