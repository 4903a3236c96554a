"""SQL from a user → values that are proven to be exactly what was asked for.

The parser is DuckDB's own, handed in as a `Dialect` (docs/decisions/0001): what
bare DuckDB takes is taken, and nothing else. A text is kept as the user wrote it;
only sort keys are split and written anew.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from millpond.errors import ColumnNotFound, SchemaMismatch, SqlError
from millpond.expr import quote
from millpond.expr.ends import ended
from millpond.expr.trees import Tree, walk
from millpond.expr.varies import VALUES, varies
from millpond.schema import Schema


@dataclass(frozen=True, slots=True)
class Dialect:
    """What the words room needs of a database, as functions; the session passes the engine's.

    `parse` gives DuckDB's JSON tree of a text of SELECT statements, or raises `SqlError`
    with the position; `unparse` turns one back to text; `describe` names and types the
    result of a query over typed empty inputs, or raises `SqlError`; a third argument is SQL
    that makes macros which the query may call. `explain` gives DuckDB's plan of such a query.
    """

    parse: Callable[[str], Tree]
    unparse: Callable[[Tree], str]
    describe: Callable[..., Schema]
    explain: Callable[[str, Mapping[str, Schema]], list[Tree]]


@dataclass(frozen=True, slots=True)
class Expression:
    """SQL text and what it needs. `columns` is None where only DuckDB can tell (stars).

    `varies` if a second run over the same rows may give others.
    """

    sql: str
    columns: frozenset[str] | None
    varies: bool = False


@dataclass(frozen=True, slots=True)
class SortKey:
    """One key of an ORDER BY. `nulls_first` and `descending` are resolved, never implied."""

    sql: str
    descending: bool = False
    nulls_first: bool = False
    columns: frozenset[str] | None = None  # What it reads, where that is known.
    varies: bool = False

    @property
    def direction(self) -> str:
        nulls = "NULLS FIRST" if self.nulls_first else "NULLS LAST"
        return f"{'DESC' if self.descending else 'ASC'} {nulls}"

    def __str__(self) -> str:
        return f"{self.sql} {self.direction}"


def select_list(
    text: str, schema: Schema, where: str, dialect: Dialect, *, flat: bool = False
) -> Expression:
    """`text` as exactly one select list over `schema`; `unnest` only where `flat`."""
    node, sql = _bare_select(text, where, dialect)
    if not flat and any(
        str(found.get("function_name", "")).casefold() in ("unnest", "unlist")
        for found in walk(node["select_list"])
    ):
        raise SqlError(f"{where}: unnest makes several rows of one; flat_map() does that.")
    return _expression(sql, node["select_list"], schema, where)


def predicate(text: str, schema: Schema, where: str, dialect: Dialect) -> Expression:
    """`text` as exactly one condition over `schema`."""
    node, sql = _bare_select(text, where, dialect)
    items = node["select_list"]
    if len(items) != 1 or items[0].get("alias") or items[0]["class"] == "STAR":
        raise SqlError(f"{where}: needs one condition, such as \"price > 3 AND name <> ''\".")
    return _expression(sql, items, schema, where)


def conjuncts(
    predicate: Expression, schema: Schema, where: str, dialect: Dialect
) -> tuple[Expression, ...]:
    """The conditions that must all hold for `predicate` to hold; itself, if it is only one."""
    node, _ = _bare_select(predicate.sql, where, dialect)
    waiting, found = [node["select_list"][0]], []
    while waiting:
        tree = waiting.pop(0)
        if tree["type"] == "CONJUNCTION_AND":
            waiting = tree["children"] + waiting
        else:
            found.append(tree)
    if len(found) == 1:
        return (predicate,)
    return tuple(_expression(_unparse(tree, dialect), [tree], schema, where) for tree in found)


def sort_keys(by: str | list[str] | tuple[str, ...], schema: Schema, where: str, dialect: Dialect
) -> tuple[SortKey, ...]:  # fmt: skip
    """`"a, b desc nulls first"` or a list of such → keys with everything resolved."""
    keys: list[SortKey] = []
    for text in by if isinstance(by, list | tuple) else [by]:
        exact = schema.find(text) if isinstance(text, str) else None
        text = text if exact is None else quote.name(exact.name)
        head = "SELECT 1 ORDER BY "
        node, _ = _statement(text, head, where, dialect)
        kinds = [modifier["type"] for modifier in node.get("modifiers", [])]
        if node["type"] != "SELECT_NODE" or kinds != ["ORDER_MODIFIER"]:
            raise SqlError(f'{where}: needs sort keys, such as "a" or "a desc nulls first".')
        for order in node["modifiers"][0]["orders"]:
            expression = order["expression"]
            if expression["class"] == "CONSTANT" or expression["class"] == "STAR":
                raise SqlError(f"{where}: {text!r} is not a column or an expression over columns.")
            found = _expression("", [expression], schema, where)
            descending = order["type"] == "DESCENDING"
            # DuckDB's default: NULLs last, whatever the direction.
            first = order["null_order"] == "NULLS FIRST"
            sql = _unparse(expression, dialect)
            keys.append(SortKey(sql, descending, first, found.columns, found.varies))
    if not keys:
        raise SqlError(f"{where}: needs at least one sort key.")
    return tuple(keys)


@dataclass(frozen=True, slots=True)
class Query:
    """One whole query. `varies` if its rows may differ between two runs.

    `names` holds every name in it, in lower case: a column that is not among them is not
    read. None where columns are read without being named (stars, whole rows); those that are
    read `by_place` change their meaning where there are fewer.
    """

    sql: str
    varies: bool
    names: frozenset[str] | None = None
    by_place: bool = False


def query(text: str, where: str, dialect: Dialect) -> Query:
    """`text` as exactly one query."""
    node, sql = _statement(text, "", where, dialect)
    if _by_place(node):
        return Query(sql, varies([node]), by_place=True)
    return Query(sql, varies([node]), _names(node))


def _kinds(tree: Tree) -> set[str]:
    return {str(tree.get("class")), str(tree.get("type"))}  # A type may be an object.


def _by_place(query: Tree) -> bool:
    """Whether it reads columns by their place, or by what else the tables have."""
    return any(
        _kinds(found) & {"POSITIONAL_REFERENCE", "PIVOT", "SHOW_REF"}
        or found.get("ref_type") in ("NATURAL", "POSITIONAL")
        or found.get("column_name_alias")
        or str(found.get("function_name", "")).casefold() in ("query", "query_table")
        for found in walk(query)
    )


def _names(query: Tree) -> frozenset[str] | None:
    """All texts of a query's tree; None where it may read columns that it does not name."""
    texts: set[str] = set()
    columns: set[str] = set()
    for found in walk(query):
        kinds = _kinds(found)
        if "STAR" in kinds:
            return None
        if "COLUMN_REF" in kinds:
            columns.add(found["column_names"][-1].casefold())
        for item in found.values():
            parts = item if isinstance(item, list) else [item]
            texts |= {part.casefold() for part in parts if isinstance(part, str)}
    # A table's name in the place of a column is a whole row of it.
    return None if columns & _table_names(query) else frozenset(texts)


def _table_names(query: Tree) -> set[str]:
    """What can be named as a row: tables, their aliases, and those of subqueries."""
    found = [tree for tree in walk(query) if str(tree.get("type")) in _TABLES]
    names = {str(tree.get(word, "")) for tree in found for word in ("table_name", "alias")}
    return {name.casefold() for name in names if name}


_TABLES = ("BASE_TABLE", "SUBQUERY", "TABLE_FUNCTION", "JOIN", "EXPRESSION_LIST")


def may_name(sql: str, table: str) -> bool:
    """Could `sql` read the table of this name? False is certain: nothing is opened for it."""
    text, name = sql.casefold(), table.casefold()
    # A name may be made at run time, or spelt with escapes.
    return name in text or '"' in name or any(sign in text for sign in ("query", 'u&"'))


def _bare_select(text: str, where: str, dialect: Dialect) -> tuple[Tree, str]:
    node, sql = _statement(text, "SELECT ", where, dialect)
    extra = [
        word
        for word, present in {
            "FROM": node.get("from_table", {}).get("type") != "EMPTY",
            "WHERE": node.get("where_clause"),
            "GROUP BY": node.get("group_expressions")
            or node.get("aggregate_handling") != "STANDARD_HANDLING",
            "HAVING": node.get("having"),
            "QUALIFY": node.get("qualify"),
            "DISTINCT, ORDER BY or LIMIT": node.get("modifiers"),
            "USING SAMPLE": node.get("sample"),
            "WITH": node.get("cte_map", {}).get("map"),
        }.items()
        if present
    ]
    if node["type"] != "SELECT_NODE" or extra:
        what = extra[0] if extra else "UNION, EXCEPT or INTERSECT"
        raise SqlError(
            f"{where}: takes expressions over columns, without {what}. "
            "Other methods of the frame do that, and sql() takes whole queries."
        )
    for found in walk(node["select_list"]):
        if found.get("class") == "WINDOW":
            raise SqlError(
                f"{where}: a window function looks at other rows. Use sql() for the whole frame "
                "or partial_sql() inside partitions."
            )
    return node, sql


def _statement(text: str, head: str, where: str, dialect: Dialect) -> tuple[Tree, str]:
    """Parse `head + text` and prove that it is one statement, also when text is wrapped."""
    if not isinstance(text, str):
        raise SqlError(f"{where}: needs SQL text, not {type(text).__name__}.")
    sql = ended(text)
    if not sql:
        raise SqlError(f"{where}: the SQL text is empty.")
    try:
        tree = dialect.parse(head + sql)
        if len(tree["statements"]) != 1:
            raise SqlError(f"{where}: needs one piece of SQL, not several divided by ';'.")
    except SqlError as error:
        if str(error).startswith(where):
            raise
        raise SqlError(f"{where}: {_pointed(str(error), len(head))}") from None
    return tree["statements"][0]["node"], sql


def _pointed(message: str, shift: int) -> str:
    """Move the `at character N` of a parser's message to where the user's own text begins."""
    before, at, number = message.rpartition("at character ")
    if at and number.rstrip(".").isdigit():
        place = int(number.rstrip(".")) - shift
        return f"{before}at character {max(place, 1)}."
    return message


def _unparse(expression: Tree, dialect: Dialect) -> str:
    tree = dialect.parse("SELECT 1")
    tree["statements"][0]["node"]["select_list"] = [{**expression, "alias": ""}]
    return dialect.unparse(tree).removeprefix("SELECT ")


def _expression(sql: str, trees: list[Tree], schema: Schema, where: str) -> Expression:
    columns: set[str] | None = set()
    bound = _lambda_names(trees)
    known = {field.name.casefold(): field.name for field in schema}
    for found in walk(trees):
        kind = found.get("class")
        if kind in ("STAR", "POSITIONAL_REFERENCE", "SUBQUERY"):
            columns = None
        elif kind == "PARAMETER":
            raise SqlError(f"{where}: parameters ($1, ?) have no value here; write it out.")
        elif kind == "FUNCTION" and (root := _called_on(found).casefold()) in known:
            if columns is not None:
                columns.add(known[root])
        elif kind == "COLUMN_REF":
            root = found["column_names"][0]
            if root.casefold() in known:
                if columns is not None:
                    columns.add(known[root.casefold()])
            elif root.casefold() in bound | VALUES or len(found["column_names"]) > 1:
                pass  # A lambda's own name, a value's, or qualified: DuckDB binds it.
            elif not _has_subquery(trees):
                raise ColumnNotFound(root, schema.names, where)
    reads = None if columns is None else frozenset(columns)
    return Expression(sql, reads, varies(trees, known.keys()))


def _called_on(function: Tree) -> str:
    """What stands before the first dot of a function's name: of `s.upper()` a column."""
    path = function.get("qualified_name", {}).get("path", [])
    return path[0] if len(path) > 1 else function.get("catalog") or function.get("schema") or ""


def _has_subquery(trees: list[Tree]) -> bool:
    return any(found.get("class") == "SUBQUERY" for found in walk(trees))


def _lambda_names(trees: list[Tree]) -> set[str]:
    names: set[str] = set()
    for found in walk(trees):
        if found.get("class") == "LAMBDA":
            for inner in walk(found.get("lhs")):
                if inner.get("class") == "COLUMN_REF":
                    names.add(inner["column_names"][-1].casefold())
    # List comprehensions and aliases that a later item of the list reuses.
    return names | {tree["alias"].casefold() for tree in trees if tree.get("alias")}


def check(describe: Callable[[], Schema], where: str) -> Schema:
    """Run a `describe` and say at which call of the user's it failed."""
    try:
        return describe()
    except ColumnNotFound:
        raise
    except (SqlError, SchemaMismatch) as error:
        raise type(error)(f"{where}: {error}") from None
