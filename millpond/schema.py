"""Names and types of rows. A type is DuckDB's own word for it, in its canonical spelling.

See docs/decisions/0002-types-are-duckdb-types.md. How a type looks in Arrow, the
engine knows; nothing here imports either library.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from millpond.errors import ColumnNotFound, OptionError, SchemaMismatch


@dataclass(frozen=True, slots=True)
class Field:
    """A column: its name and its DuckDB type, such as `BIGINT` or `STRUCT(a INTEGER)`."""

    name: str
    type: str


@dataclass(frozen=True, slots=True)
class Schema:
    """The columns of a frame, in order. Names are unique without regard to case, as in DuckDB."""

    fields: tuple[Field, ...]

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for field in self.fields:
            if field.name.casefold() in seen:
                raise SchemaMismatch(
                    f"two columns are named {field.name!r}; names must differ in more than "
                    "case. Give one of them another name with AS."
                )
            seen.add(field.name.casefold())

    @classmethod
    def of(cls, pairs: Iterable[tuple[str, str]]) -> "Schema":
        return cls(tuple(Field(name, kind) for name, kind in pairs))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(field.name for field in self.fields)

    @property
    def types(self) -> tuple[str, ...]:
        return tuple(field.type for field in self.fields)

    def __iter__(self) -> Iterator[Field]:
        return iter(self.fields)

    def __len__(self) -> int:
        return len(self.fields)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.find(name) is not None

    def find(self, name: str) -> Field | None:
        folded = name.casefold()
        return next((f for f in self.fields if f.name.casefold() == folded), None)

    def field(self, name: str, where: str) -> Field:
        """The column `name`, or `ColumnNotFound` that names the call `where` it was used."""
        if not isinstance(name, str):
            raise OptionError(f"{where}: a column is named by text, not by {type(name).__name__}.")
        found = self.find(name)
        if found is None:
            raise ColumnNotFound(name, self.names, where)
        return found

    def named(self, names: str | Iterable[str], where: str) -> tuple[Field, ...]:
        """The columns of these names, or of this one."""
        given = [names] if isinstance(names, str) else names
        if not isinstance(given, Iterable):
            raise OptionError(f"{where}: needs names of columns, not {type(given).__name__}.")
        return tuple(self.field(name, where) for name in given)

    def __str__(self) -> str:
        return ", ".join(f"{f.name} {f.type}" for f in self.fields)
