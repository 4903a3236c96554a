"""Folders named `key=value`: types of the keys, and a source whose rows have them as columns."""

from __future__ import annotations

from dataclasses import dataclass

from millpond.engine.duckdb import Engine
from millpond.expr import quote
from millpond.formats.find import Found
from millpond.formats.scan import NO_VALUE, Scan
from millpond.plan.nodes import DataSource
from millpond.schema import Field, Schema

Options = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Hive:
    """Types of the `key=value` folders. Some folders of `null_keys` stand for NULL.

    DuckDB takes the names of keys as folders write them. Where that is in another way
    (`plain_keys` is false), the values come with the files, as those of a table do.
    """

    types: tuple[tuple[str, str], ...]
    null_keys: tuple[str, ...]
    plain_keys: bool = True

    @property
    def options(self) -> Options:
        if not self.types or not self.plain_keys:
            return (("hive_partitioning", "false"),)
        items = ", ".join(f"{quote.name(key)}: {kind}" for key, kind in self.types)
        return (("hive_partitioning", "true"), ("hive_types", "{" + items + "}"))

    def described(self, of_files: Schema) -> Schema:
        """With the keys that DuckDB does not see: beside the columns, or instead of one."""
        if self.plain_keys:
            return of_files
        given = {key.casefold(): Field(key, kind) for key, kind in self.types}
        fields = [given.pop(f.name.casefold(), f) for f in of_files]
        return Schema((*fields, *given.values()))

    def source(self, format: str, schema: Schema, options: Options, found: Found) -> DataSource:
        if not self.plain_keys:
            values = tuple(
                tuple(None if v == NO_VALUE else v for _, v in pairs) for pairs in found.hive
            )
            keys = tuple(key for key, _ in self.types)
            scan = Scan(format, schema, (*options, *self.options), keys=keys)
            return DataSource(scan, found.files, values=values, state=found.state)
        # Where a folder is NULL, the scan converts: DuckDB 1.4 takes its name for a value.
        kinds = ((key, "VARCHAR" if key in self.null_keys else kind) for key, kind in self.types)
        told = (*options, *Hive(tuple(kinds), ()).options)
        scan = Scan(format, schema, told, null_keys=self.null_keys)
        return DataSource(scan, found.files, state=found.state)


def hive_of(found: Found, engine: Engine) -> Hive:
    """Types of the folders, from all of their values."""
    types, null_keys = [], []
    for place, (key, _) in enumerate(found.hive[0]):
        values = {pairs[place][1] for pairs in found.hive}
        types.append((key, _type_of(sorted(values - {NO_VALUE}), engine)))
        if NO_VALUE in values:
            null_keys.append(key)
    return Hive(tuple(types), tuple(null_keys), found.plain_keys)


def _type_of(values: list[str], engine: Engine) -> str:
    # A number is one only if nothing is lost: '1.50' would become 2, and '007' 7.
    for kind, test in (
        ("BIGINT", "coalesce(TRY_CAST(v AS BIGINT)::VARCHAR = v, false)"),
        ("DATE", "TRY_CAST(v AS DATE) IS NOT NULL"),
        ("TIMESTAMP", "TRY_CAST(v AS TIMESTAMP) IS NOT NULL"),
    ):
        with engine.cursor() as cursor:
            ((fits,),) = cursor.rows(
                f"SELECT bool_and({test}) "
                f"FROM (SELECT unnest({quote.value(values)}::VARCHAR[]) AS v)"
            )
        if fits:
            return kind
    return "VARCHAR"
