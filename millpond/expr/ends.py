"""Where SQL text ends: before the `;` that only comments, and more of them, follow; and where
its inputs stand: `{0}` outside of quotes and comments.
"""

import re
from collections.abc import Sequence

from millpond.errors import SqlError

# What a ';' may stand in, and be none. What is not closed here does not parse either.
_TOKENS = re.compile(
    r"""(?P<comment>--[^\n\r]*|/\*)|(?P<end>;)
    |[eE]'(?:[^'\\]|\\.|'')*' | '(?:[^']|'')*' | "(?:[^"]|"")*"
    |\$(?P<tag>\w*)\$.*?\$(?P=tag)\$ | \{(?P<input>\d+)\} | \w+ | \s+ | .""",
    re.VERBOSE | re.DOTALL,
)
_NESTED = re.compile(r"/\*|\*/")


def ended(text: str) -> str:
    """SQL without the semicolons, and what comments follow them, at its end."""
    if ";" not in text:
        return text.strip()
    end, place = len(text), 0
    while place < len(text):
        found = _TOKENS.match(text, place)
        assert found is not None  # Its last choice is any character.
        place = found.end()
        if found["end"]:
            end = min(end, found.start())
        elif found["comment"] == "/*":
            place = _comment_end(text, place)
        elif not found["comment"] and not found[0].isspace():
            end = len(text)
    return text[:end].strip()


def placed(text: str, names: Sequence[str]) -> str:
    """SQL with the names of inputs for `{0}`, `{1}`, …; other braces, texts, comments stay.

    >>> placed("FROM {0} WHERE s ~ '[ab]{0}' -- {0}", ["t"])
    "FROM t WHERE s ~ '[ab]{0}' -- {0}"
    """
    parts, place = list[str](), 0
    while place < len(text):
        found = _TOKENS.match(text, place)
        assert found is not None  # Its last choice is any character.
        place = found.end()
        if found["comment"] == "/*":
            place = _comment_end(text, place)
        number = int(found["input"] or len(names))
        parts.append(names[number] if number < len(names) else text[found.start() : place])
    return "".join(parts)


def _comment_end(text: str, place: int) -> int:
    """After a comment that began before `place`: DuckDB's may hold others."""
    depth = 1
    for found in _NESTED.finditer(text, place):
        depth += 1 if found[0] == "/*" else -1
        if depth == 0:
            return found.end()
    return len(text)


def listed(items: Sequence[str], where: str) -> str:
    """Items of a select list as one text. Each may end in a comment or a semicolon."""
    for item in items:
        if not isinstance(item, str):
            many = isinstance(item, list | tuple)
            hint = " Pass each item by itself, as in f(*items)." if many else ""
            raise SqlError(f"{where}: needs SQL text, not {item!r}.{hint}")
    return "\n, ".join(map(ended, items))
