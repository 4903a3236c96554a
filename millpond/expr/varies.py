"""Whether SQL may give other rows in a second run over the same ones.

Where it is not certain, it may: then nothing is reused by another run, and two attempts of a
task are never mixed.
"""

from collections.abc import Collection

from millpond.expr.trees import Tree, walk

# A test holds these lists against the catalogue of the DuckDB that is installed.
VOLATILE = frozenset(
    {
        *("random", "uuid", "gen_random_uuid", "uuidv4", "uuidv7", "nextval", "currval"),
        *("setseed", "setval", "stats", "error", "vector_type", "sleep_ms", "write_log"),
        *("current_connection_id", "current_query", "current_query_id", "pg_sleep"),
        *("current_transaction_id", "txid_current", "current_setting", "getvariable"),
    }
)
# Constant within one run, other in the next.
CLOCK = frozenset(
    {
        *("now", "today", "get_current_time", "current_date", "current_time", "age", "ago"),
        *("current_timestamp", "get_current_timestamp", "transaction_timestamp"),
        *("localtime", "localtimestamp", "current_localtime", "current_localtimestamp"),
        *("pg_conf_load_time", "pg_postmaster_start_time"),
    }
)
# Words that DuckDB takes for functions without parentheses, where no column is called so.
VALUES = frozenset(
    {
        *("current_date", "current_time", "current_timestamp", "localtime", "localtimestamp"),
        *("current_catalog", "current_role", "current_schema", "current_user"),
        *("session_user", "user"),
    }
)
# Aggregates and window functions whose value may depend on the order in which threads meet
# the rows.
ORDER_SENSITIVE = frozenset(
    {
        *("first", "last", "any_value", "arbitrary", "list", "array_agg", "string_agg"),
        *("group_concat", "listagg", "arg_min", "arg_max", "min_by", "max_by", "argmin", "argmax"),
        *("arg_min_null", "arg_max_null", "arg_min_nulls_last", "arg_max_nulls_last", "mode"),
        *("histogram", "histogram_values", "map_from_entries", "lttb"),
        *("json_group_array", "json_group_object", "json_group_structure"),
        *("variant_group_array", "variant_group_object"),
        *("row_number", "ntile", "first_value", "last_value", "nth_value", "lag", "lead", "fill"),
        *("approx_quantile", "approx_top_k", "reservoir_quantile", "product"),
    }
)
# Functions in the place of a table whose rows follow from their arguments. Others read files,
# other SQL, or what the database is like.
_TABLES_OF_ARGUMENTS = frozenset(
    {
        *("range", "generate_series", "generate_subscripts", "unnest", "repeat", "repeat_row"),
        *("json_each", "json_tree", "regexp_split_to_table"),
    }
)


def varies(trees: object, columns: Collection[str] = ()) -> bool:
    """May these give other rows in a second run? `columns` are those known, in lower case."""
    return any(_varies(found, columns) for found in walk(trees))


def _varies(found: Tree, columns: Collection[str]) -> bool:
    name = str(found.get("function_name", "")).casefold()
    if found.get("sample") or name in VOLATILE or name in CLOCK or name in ORDER_SENSITIVE:
        return True
    kind = found.get("type")
    if kind == "TABLE_FUNCTION":
        called = str(found["function"].get("function_name", "")).casefold()
        return called not in _TABLES_OF_ARGUMENTS
    if kind == "BASE_TABLE":
        return "." in str(found.get("table_name", ""))  # A file, whose name has an ending.
    if kind == "COLUMN_REF":
        names = [word.casefold() for word in found["column_names"]]
        return len(names) == 1 and names[0] in VALUES & CLOCK and names[0] not in columns
    # Rows that tie come in any order, and so do groups: which are counted is not said.
    if found.get("class") == "WINDOW":
        return any(str(found.get(end, "")).endswith("_ROWS") for end in ("start", "end"))
    modifiers = {m["type"]: m for m in found.get("modifiers") or ()}
    few = "LIMIT_MODIFIER" in modifiers or "LIMIT_PERCENT_MODIFIER" in modifiers
    one_of = modifiers.get("DISTINCT_MODIFIER", {}).get("distinct_on_targets")
    return bool(few or one_of) and "ORDER_MODIFIER" not in modifiers
