"""The checked way to make a `Join`, and its query."""

from collections.abc import Sequence

from millpond.errors import ColumnNotFound, OptionError, SchemaMismatch, SqlError
from millpond.expr import Dialect, Expression, quote
from millpond.expr import parse as p
from millpond.expr.trees import walk
from millpond.plan import nodes as n
from millpond.schema import Schema

HOWS = ("inner", "left", "right", "full", "semi", "anti", "cross")


def join(
    left: n.Node, right: n.Node, on: str | Sequence[str] | None, how: str, suffix: str,
    where: str, dialect: Dialect,
) -> n.Join:  # fmt: skip
    """Join by names that both sides have, or by a condition over `l.` and `r.`."""
    if how not in HOWS:
        raise OptionError(f"{where}: how={how!r} is none of {', '.join(HOWS)}.")
    if (how == "cross") != (on is None):
        raise OptionError(f"{where}: a cross join takes no `on`, and every other join needs one.")
    names: list[str] = []
    condition, varies = "", False
    if isinstance(on, str) and on not in left.schema and not _is_name(on):
        found = _condition(on, where, dialect)
        condition, varies = found.sql, found.varies
    elif on is not None:
        left.schema.named(on, f"{where}, left side")
        right.schema.named(on, f"{where}, right side")
        names = [on] if isinstance(on, str) else list(on)
        if not names:
            raise OptionError(f"{where}: on needs at least one column.")
    outputs = _joined(left.schema, right.schema, names, how, suffix, where)
    equal = tuple((name, name) for name in names) if names else _equalities(condition, dialect)
    equal = tuple((a, b) for a, b in equal if a in left.schema and b in right.schema)
    sql = join_sql(how, tuple(names), condition, outputs, "__in0", "__in1")
    both = {"__in0": left.schema, "__in1": right.schema}
    schema = p.check(lambda: dialect.describe(sql, both), where)
    reads = _condition_reads(condition, dialect)
    return n.Join(left, right, how, tuple(names), condition, equal, outputs, schema, reads,
                  varies)  # fmt: skip


def _condition(on: str, where: str, dialect: Dialect) -> Expression:
    try:
        return p.predicate(on, Schema(()), where, dialect)
    except ColumnNotFound as error:
        raise SqlError(
            f"{where}: of which side is {error.name!r}? Write l.{error.name} or r.{error.name}; a "
            "condition is SQL over `l.` and `r.`, such as 'l.a = r.b'."
        ) from None


def _condition_reads(
    condition: str, dialect: Dialect
) -> tuple[frozenset[str], frozenset[str]] | None:
    """The columns of `l` and `r` in a condition; None where only DuckDB can tell."""
    if not condition:
        return frozenset(), frozenset()
    sides: dict[str, set[str]] = {"l": set(), "r": set()}
    for found in walk(dialect.parse(f"SELECT {condition}")["statements"]):
        if found.get("class") in ("STAR", "SUBQUERY", "POSITIONAL_REFERENCE"):
            return None
        if found.get("class") == "COLUMN_REF":
            side, *rest = found["column_names"]
            if side.casefold() not in sides or not rest:
                return None
            sides[side.casefold()].add(rest[0].casefold())
    return frozenset(sides["l"]), frozenset(sides["r"])


def join_sql(
    how: str, on: tuple[str, ...], condition: str, outputs: Sequence[n.JoinOutput],
    left: str, right: str,
) -> str:  # fmt: skip
    """The query of a join over two table expressions."""
    select = ", ".join(f"{_output(o)} AS {quote.name(o.alias)}" for o in outputs)
    kind = {"full": "FULL OUTER", "cross": "CROSS"}.get(how, how.upper())
    if on:
        condition = " AND ".join(f"l.{quote.name(k)} = r.{quote.name(k)}" for k in on)
    tail = f" ON (\n{condition}\n)" if condition else ""
    return f"SELECT {select} FROM {left} AS l {kind} JOIN {right} AS r{tail}"


def _output(output: n.JoinOutput) -> str:
    name = quote.name(output.name)
    return f"coalesce(l.{name}, r.{name})" if output.side == "both" else f"{output.side}.{name}"


def _joined(
    left: Schema, right: Schema, on: Sequence[str], how: str, suffix: str, where: str
) -> tuple[n.JoinOutput, ...]:
    keys = {name.casefold() for name in on}
    outputs: list[n.JoinOutput] = []
    taken: set[str] = set()
    for f in left:
        both = f.name.casefold() in keys and how in ("right", "full")
        outputs.append(n.JoinOutput("both" if both else "l", f.name, f.name))
        taken.add(f.name.casefold())
    if how in ("semi", "anti"):
        return tuple(outputs)
    for f in right:
        if f.name.casefold() in keys:
            continue
        new = f.name + suffix if f.name.casefold() in taken else f.name
        if new.casefold() in taken:
            raise SchemaMismatch(
                f"{where}: both sides have {f.name!r}, and {new!r} is taken as well. "
                "Pass another suffix=, or rename a column."
            )
        taken.add(new.casefold())
        outputs.append(n.JoinOutput("r", f.name, new))
    return tuple(outputs)


def _is_name(text: str) -> bool:
    return text.strip().isidentifier()


def _equalities(condition: str, dialect: Dialect) -> tuple[tuple[str, str], ...]:
    """The pairs (l column, r column) that a conjunction equates; others stay in the condition."""
    if not condition:
        return ()
    tree = dialect.parse(f"SELECT {condition}")["statements"][0]["node"]["select_list"][0]
    pairs: list[tuple[str, str]] = []
    terms = [tree]
    while terms:
        term = terms.pop(0)
        if term.get("type") == "CONJUNCTION_AND":
            terms += term["children"]
        elif term.get("type") == "COMPARE_EQUAL":
            sides = [term["left"], term["right"]]
            if all(s.get("class") == "COLUMN_REF" and len(s["column_names"]) == 2 for s in sides):
                named = {s["column_names"][0].casefold(): s["column_names"][1] for s in sides}
                if set(named) == {"l", "r"}:
                    pairs.append((named["l"], named["r"]))
    return tuple(pairs)
