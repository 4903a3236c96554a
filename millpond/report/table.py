"""A few rows as a table, for a terminal and for a notebook."""

import html
import re
from collections.abc import Sequence
from typing import Any

# All but tab and newline; and what turns the direction of writing.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def print_table(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
    """Print rows with rich; no colour, no cut in the middle of a name."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_edge=False, pad_edge=False)
    for column in columns:
        first = rows[0].get(column) if rows else None
        numbers = isinstance(first, int | float) and not isinstance(first, bool)
        table.add_column(Text(_shown(column)), justify="right" if numbers else "left")
    for row in rows:
        table.add_row(*(Text(_cell(row[column])) for column in columns))
    Console(highlight=False).print(table)


def html_table(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> str:
    """Rows as an HTML table; everything is escaped."""
    head = "".join(f"<th>{html.escape(_shown(column))}</th>" for column in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(_cell(row[c]))}</td>" for c in columns) + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _shown(text: str) -> str:
    """`text` without what moves a terminal's cursor, changes its colours, or its title."""
    return _CONTROLS.sub(lambda found: repr(found[0])[1:-1], text)


def _cell(item: Any) -> str:
    if item is None:
        return "NULL"
    text = f"{item:.6g}" if isinstance(item, float) else _shown(str(item))
    return text if len(text) <= 80 else text[:77] + "…"
