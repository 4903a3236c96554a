"""The types in which rows travel, and those in which people and their functions see them."""

import re

from millpond.schema import Field, Schema

# Quoted names and ENUM values are passed over; what remains are words of types.
_TYPE_WORDS = re.compile(
    r"""ENUM\((?:[^')]|'(?:[^']|'')*')*\)|"(?:[^"]|"")*"|'(?:[^']|'')*'"""
    r"|\b(?:UHUGEINT|HUGEINT|BIGNUM|BIT|UUID|JSON|TIME WITH TIME ZONE|TIME_NS)\b"
)
_PLAIN = {"HUGEINT": "DECIMAL(38,0)", "UHUGEINT": "DECIMAL(38,0)"}


def wire(schema: Schema) -> Schema:
    """The types in which rows travel: those that Arrow has itself, without a loss.

    An ENUM's dictionary would not fit into a segment. DuckDB's extension types for the
    others are left alone: DuckDB 1.4 mixes up the rows of some booleans in that mode.
    """
    return _retyped(schema, {})


def plain(schema: Schema) -> Schema:
    """The types in which people and their functions see rows."""
    return _retyped(schema, _PLAIN)


def huge_as_decimal(kind: str) -> str:
    """The type with DECIMAL(38,0) for huge integers, wherever they stand in it."""
    return _TYPE_WORDS.sub(lambda found: _PLAIN.get(found[0], found[0]), kind)


def _retyped(schema: Schema, words: dict[str, str]) -> Schema:
    def other(found: re.Match[str]) -> str:
        word = found[0]
        quoted = word[0] in "'\""
        return word if quoted else words.get(word, "VARCHAR")

    return Schema(tuple(Field(f.name, _TYPE_WORDS.sub(other, f.type)) for f in schema))
