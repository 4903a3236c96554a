"""The JSON trees that DuckDB's parser gives."""

from collections.abc import Iterator
from typing import Any

Tree = dict[str, Any]


def walk(tree: object) -> Iterator[Tree]:
    """Every object of a JSON tree, from the top."""
    stack = [tree]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            yield item
            stack.extend(reversed(list(item.values())))
        elif isinstance(item, list):
            stack.extend(reversed(item))
