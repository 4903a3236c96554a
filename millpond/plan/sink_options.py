"""What a user says of how files are written → names and literals of DuckDB's COPY.

DuckDB knows which options there are, and their values: it is asked at the call. Which files
there are is ours to say: partitions, `mode` and `partition_by` do.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

from millpond.errors import OptionError, SqlError
from millpond.expr import quote
from millpond.schema import Schema

Literals = tuple[tuple[str, str], ...]
Explain = Callable[[str, Mapping[str, Schema]], object]  # `Dialect.explain`.

_OURS = {
    **dict.fromkeys(("append", "overwrite", "overwrite_or_ignore"), "mode= says that"),
    **dict.fromkeys(("partition_by", "write_partition_columns"), "partition_by= says that"),
    **dict.fromkeys(
        ("file_size_bytes", "per_thread_output", "row_groups_per_file", "batches_per_file"),
        "each partition is one file: repartition(n) says how many",
    ),
    **dict.fromkeys(
        ("format", "file_extension", "filename_pattern", "hive_file_pattern", "use_tmp_file",
         "return_files", "return_stats", "write_empty_file", "preserve_order"),
        "files get their names, and are counted, by the session",
    ),
}  # fmt: skip
_ARROW_CODECS = ("lz4", "zstd")


def literals(
    options: Mapping[str, Any], format: str, schema: Schema, where: str, explain: Explain
) -> Literals:
    """The options as literals, all of them known, and with values that fit."""
    found = tuple(
        (_name(key, where), _literal(key, options[key], where)) for key in sorted(options)
    )
    match format:
        case "arrow":
            _check_arrow(options, where)
        case "fixed":
            return tuple((key, str(options[key])) for key in sorted(options))
        case _ if options:
            _check_copy(found, format, schema, where, explain)
    return found


def _name(key: str, where: str) -> str:
    if not key.isidentifier():
        raise OptionError(f"{where}: {key!r} is no option's name.")
    if (why := _OURS.get(key.lower())) is not None:
        raise OptionError(f"{where}: {key}= is no option here: {why}.")
    return key


def _literal(key: str, item: Any, where: str) -> str:
    try:
        return quote.value(item)
    except (TypeError, AttributeError):
        raise OptionError(
            f"{where}: {key}={item!r} is {type(item).__name__}; an option is a text, a number, "
            "True or False, a list of texts or a dict."
        ) from None


def _check_copy(found: Literals, format: str, schema: Schema, where: str, explain: Explain) -> None:
    """Have DuckDB read the statement. It runs nothing."""
    try:
        explain(quote.copy("FROM __in0", "target", format, found), {"__in0": schema})
    except SqlError as error:
        said = re.sub(r"^[A-Z]\w*( \w+)* Error: ", "", str(error)).rstrip(".")
        # In another paragraph: Candidate options: "a", "b".
        near = re.search(r"Candidate options: (.*)", str(error.__cause__))
        hint = f" Near are: {near[1]}." if near else ""
        # DuckDB 1.4 does not name the option whose value is wrong; values may be keys.
        given = ", ".join(key for key, _ in found)
        raise OptionError(f"{where}: {said} (of the options {given}).{hint}") from None


def _check_arrow(options: Mapping[str, Any], where: str) -> None:
    choice = f"compression={' or '.join(map(repr, _ARROW_CODECS))}"
    for key, item in options.items():
        if key != "compression":
            near = "Did you mean 'compression'? " if get_close_matches(key, ["compression"]) else ""
            raise OptionError(f"{where}: no option {key!r}. {near}There is {choice}.")
        if item is not None and item not in _ARROW_CODECS:
            raise OptionError(f"{where}: compression={item!r} is none. There is {choice}.")
