"""Writes to Apache Iceberg tables: the files are ours, and the library commits them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

from millpond.errors import OptionError, SchemaMismatch, TargetNotEmpty
from millpond.expr import quote
from millpond.formats.iceberg import Catalog, Stores, explained, open_catalog, place
from millpond.lazy import extra
from millpond.storage import OutputFile, open_file

if TYPE_CHECKING:
    import pyarrow as pa


class Target:
    """A table to be written to: found, or to be created by the commit itself.

    `columns` are those that its files must have, `field_ids` says so to DuckDB's COPY, files
    belong below `folder`, and each holds one value of the `keys`.
    """

    def __init__(
        self, storage: Stores, table: str, columns: pa.Schema, mode: str, where: str, *,
        catalog: Catalog, keys: Sequence[str] | None,
    ) -> None:  # fmt: skip
        self._storage, self._where, self._mode, self._name = storage, where, mode, table
        errors = extra("pyiceberg.exceptions", extra="iceberg", what="an Iceberg table")
        with explained(table, where):
            opened = open_catalog(storage, catalog, where)
            try:
                found = opened.load_table(table)
            except errors.NoSuchTableError:
                found = None
            if found is None:
                space = tuple(table.split("."))[:-1]
                if space:
                    opened.create_namespace_if_not_exists(space)
                self._transaction = opened.create_table_transaction(table, columns)
                with self._transaction.update_spec() as spec:
                    for key in keys or ():
                        spec.add_identity(key)
            else:
                if mode == "error" and found.current_snapshot() is not None:
                    raise TargetNotEmpty(table, where)
                keys = _checked_keys(found, keys, where)
                self._transaction = found.transaction()
            self._created, self.keys = found is None, tuple(keys or ())
            meta = self._transaction.table_metadata
            self.columns = meta.schema().as_arrow()
            self.field_ids = _field_ids(meta.schema().fields)
            self.folder = f"{place(storage, meta.location)}/data"

    def commit(self, outputs: Sequence[OutputFile]) -> int:
        """Make published files the table's, in one transaction; the new snapshot's id."""
        expressions = extra("pyiceberg.expressions", extra="iceberg", what="an Iceberg table")
        errors = extra("pyiceberg.exceptions", extra="iceberg", what="an Iceberg table")
        with explained(self._name, self._where):
            files = [self._data_file(output) for output in outputs]
            if self._mode == "overwrite" and not self._created:
                self._transaction.delete(expressions.AlwaysTrue())
            with self._transaction.update_snapshot().fast_append() as append:
                for file in files:
                    append.append_data_file(file)
            try:
                made = self._transaction.commit_transaction()
            except errors.TableAlreadyExistsError as error:
                raise TargetNotEmpty(self._name, self._where) from error
            return int(made.current_snapshot().snapshot_id)

    def _data_file(self, output: OutputFile) -> Any:
        import pyarrow.parquet as pq

        arrow = extra("pyiceberg.io.pyarrow", extra="iceberg", what="an Iceberg table")
        manifest = extra("pyiceberg.manifest", extra="iceberg", what="an Iceberg table")
        typedef = extra("pyiceberg.typedef", extra="iceberg", what="an Iceberg table")
        meta = self._transaction.table_metadata
        schema, spec, path = meta.schema(), meta.spec(), output.staged.path
        footer = pq.read_metadata(open_file(self._storage(path), path))

        def statistics_of(properties: Mapping[str, str]) -> Any:
            return arrow.data_file_statistics_from_parquet_metadata(
                parquet_metadata=footer,
                stats_columns=arrow.compute_statistics_plan(schema, properties),
                parquet_column_mapping=arrow.parquet_path_to_id_mapping(schema),
            )

        try:
            statistics = statistics_of(meta.properties)
        except OverflowError:
            # Python has no such dates. The file keeps them; bounds for pruning it has none then.
            statistics = statistics_of({**meta.properties, **_without_times(schema)})
        kinds = [schema.find_type(field.source_id) for field in spec.fields]
        values = []
        for text, field, kind in zip(output.values, spec.fields, kinds, strict=True):
            try:
                values.append(_typed(text, kind))
            except (ValueError, OverflowError):
                raise SchemaMismatch(
                    f"{self._where}: the column {field.name!r} holds {text!r}, which the library "
                    "cannot keep as the value of a partition. Dates there are of the years 1 to "
                    "9999; filter the others out, or partition by another column."
                ) from None
        return manifest.DataFile.from_args(
            content=manifest.DataFileContent.DATA,
            file_path=path if "://" in path else f"file://{path}",
            file_format=manifest.FileFormat.PARQUET,
            partition=typedef.Record(*values),
            file_size_in_bytes=output.staged.size_bytes,
            sort_order_id=None,
            spec_id=meta.default_spec_id,
            equality_ids=None,
            key_metadata=None,
            **statistics.to_serialized_dict(),
        )


def _checked_keys(table: Any, keys: Sequence[str] | None, where: str) -> list[str]:
    """The columns that a table is partitioned by, if it can be written to like that."""
    columns, fields = table.schema(), table.spec().fields
    spec = [(columns.find_column_name(f.source_id), str(f.transform)) for f in fields]
    names = [name for name, _ in spec]
    if any(how != "identity" for _, how in spec) or list(keys or names) != names:
        said = ", ".join(name if how == "identity" else f"{how}({name})" for name, how in spec)
        raise OptionError(
            f"{where}: the table is partitioned by {said or 'nothing'}. Pass the same columns as "
            "partition_by=; transforms other than a column itself cannot be written."
        )
    return names


def _field_ids(fields: Sequence[Any]) -> str:
    def ids(field_id: int, kind: Any) -> str:
        if kind.is_struct:
            inner = [(f.name, ids(f.field_id, f.field_type)) for f in kind.fields]
        elif hasattr(kind, "element_type"):
            inner = [("element", ids(kind.element_id, kind.element_type))]
        elif hasattr(kind, "key_type"):
            inner = [("key", ids(kind.key_id, kind.key_type)),
                     ("value", ids(kind.value_id, kind.value_type))]  # fmt: skip
        else:
            return str(field_id)
        own = [("__duckdb_field_id", str(field_id)), *inner]
        return "{" + ", ".join(f"{quote.name(name)}: {text}" for name, text in own) + "}"

    return "{" + ", ".join(
        f"{quote.name(f.name)}: {ids(f.field_id, f.field_type)}" for f in fields
    ) + "}"  # fmt: skip


def _without_times(schema: Any) -> dict[str, str]:
    """Properties of a table by which no bounds of its dates and times are kept."""
    return {
        f"write.metadata.metrics.column.{schema.find_column_name(field_id)}": "counts"
        for field_id in schema.field_ids
        if str(schema.find_type(field_id)).startswith(("date", "timestamp"))
    }


def _typed(text: str | None, kind: Any) -> Any:
    """A partition's value as the library keeps it, from DuckDB's text."""
    if text is None:
        return None
    literals = extra("pyiceberg.expressions.literals", extra="iceberg", what="an Iceberg table")
    match str(kind):
        case "boolean":
            return text == "true"
        case "date":
            return (date.fromisoformat(text) - date(1970, 1, 1)).days
        case "timestamp" | "timestamptz":
            at = datetime.fromisoformat(text)
            since = (at if at.tzinfo else at.replace(tzinfo=UTC)) - datetime(1970, 1, 1, tzinfo=UTC)
            return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
        case "string":
            return text
    return literals.literal(text).to(kind).value
