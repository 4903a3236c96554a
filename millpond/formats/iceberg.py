"""Apache Iceberg: catalogue and metadata by the library `pyiceberg`, the files by ourselves.

Its only importer. Columns are found in files by their ids, as Iceberg means it, so a
renamed column is the same column; by their names only in tables that say so.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

from millpond.errors import (
    FileUnreadable,
    MillpondError,
    OptionError,
    PathNotFound,
    SchemaMismatch,
    StorageError,
    TableChanged,
    TargetNotEmpty,
)
from millpond.formats.tables import Snapshot
from millpond.lazy import extra
from millpond.storage import STORES, FileInfo, OutputFile, Storage, open_file
from millpond.storage.paths import scheme

if TYPE_CHECKING:
    import pyarrow as pa

Stores = Callable[[str], Storage]
Catalog = str | os.PathLike[str] | Mapping[str, str] | None

UNSUPPORTED = frozenset({"TIME WITH TIME ZONE", "INTERVAL", "BIT", "TIMESTAMP_NS", "TIME_NS"})
OTHER = {"TINYINT": "INTEGER", "SMALLINT": "INTEGER", "UTINYINT": "INTEGER", "USMALLINT": "INTEGER"}
HOME = "warehouse"  # Where the SQLite catalogue lies if none is configured.
_NAME_MAPPING = "schema.name-mapping.default"


def snapshot(
    storage: Stores,
    table: str,
    where: str,
    *,
    catalog: Catalog = None,
    snapshot_id: int | None = None,
    as_of: str | datetime | None = None,
) -> Snapshot:
    """The state of a table: the newest, that of a snapshot, or that of a time.

    Raises `PathNotFound` where no table is, and `FileUnreadable` for a table that uses what
    is not supported: rows deleted by delete files.
    """
    if snapshot_id is not None and as_of is not None:
        raise OptionError(f"{where}: pass snapshot= or as_of=, not both.")
    with _explained(table, where):
        found = _load(storage, table, catalog, where)
        scan = found.scan(snapshot_id=_chosen(found, snapshot_id, as_of, where))
        tasks = sorted(scan.plan_files(), key=lambda task: str(task.file.file_path))
        deleted = next((task for task in tasks if task.delete_files), None)
        if deleted is not None:
            raise FileUnreadable(
                f"{where}: rows of {deleted.file.file_path} were deleted by delete files, which "
                "are not supported. Have its writer compact the table (rewrite_data_files)."
            )
        columns = scan.projection()
        by_name = _NAME_MAPPING in found.metadata.properties
        _check_names(found, columns, by_name, where)
        keys = _keys(found, columns, [task.file for task in tasks])
        files = tuple(_file(storage, task.file) for task in tasks)
        values = tuple(_values(found, columns, keys, task.file) for task in tasks) if keys else ()
        reading = ("hive_partitioning", "false")
        return Snapshot(
            columns.as_arrow(),
            files,
            (("union_by_name", "true"), reading) if by_name else (reading,),
            tuple(columns.find_column_name(key) for key in keys),
            values,
            () if by_name else tuple(field.field_id for field in columns.fields),
        )


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
        with _explained(table, where):
            opened = _open(storage, catalog, where)
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
            self.folder = f"{_place(storage, meta.location)}/data"

    def commit(self, outputs: Sequence[OutputFile]) -> int:
        """Make published files the table's, in one transaction; the new snapshot's id."""
        expressions = extra("pyiceberg.expressions", extra="iceberg", what="an Iceberg table")
        errors = extra("pyiceberg.exceptions", extra="iceberg", what="an Iceberg table")
        with _explained(self._name, self._where):
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


# ---- finding a table -----------------------------------------------------------------


def _load(storage: Stores, table: str, catalog: Catalog, where: str) -> Any:
    if "/" not in table and not table.endswith(".metadata.json"):
        return _open(storage, catalog, where).load_table(table)
    static = extra("pyiceberg.table", extra="iceberg", what="an Iceberg table").StaticTable
    path = table if table.endswith(".metadata.json") else _newest(storage, table, where)
    return static.from_metadata(path, _properties(storage, path))


def _newest(storage: Stores, folder: str, where: str) -> str:
    """The newest metadata file of a table's folder."""
    listed = storage(folder).list(f"{folder.rstrip('/')}/metadata")
    found = [info for info in listed if info.path.endswith(".metadata.json")]
    if not found:
        raise PathNotFound(folder, f"{where}: no Iceberg table")
    return max(found, key=lambda info: (info.path.rpartition("/")[2], info.modified_s)).path


def _open(storage: Stores, catalog: Catalog, where: str) -> Any:
    """A configured catalogue by name, one by its properties, or SQLite in a folder."""
    library = extra("pyiceberg.catalog", extra="iceberg", what="an Iceberg table")
    config = extra("pyiceberg.utils.config", extra="iceberg", what="an Iceberg table").Config()
    if isinstance(catalog, Mapping):
        given = dict(catalog)
        return library.load_catalog(
            given.pop("name", "default"),
            **_properties(storage, given.get("warehouse", "")),
            **given,
        )
    name = "default" if catalog is None else os.fspath(catalog)
    if config.get_catalog_config(name) is not None:
        return library.load_catalog(name)
    folder = storage(name).local_path(HOME if catalog is None else name)
    if folder is None:
        raise OptionError(
            f"{where}: catalog={name!r} is neither configured nor a folder of this machine. For "
            "tables in a store, pass the properties: catalog={'type': 'sql', 'uri': "
            "'sqlite:////path/catalog.db', 'warehouse': 's3://bucket/folder'}."
        )
    os.makedirs(folder, exist_ok=True)
    return library.load_catalog(
        "default", type="sql", uri=f"sqlite:///{folder}/catalog.db", warehouse=f"file://{folder}"
    )


def _properties(storage: Stores, location: str) -> dict[str, str]:
    """How the library opens files at `location`: by our own storage, with its options."""
    if scheme(location) not in STORES:
        return {}
    words = {f"millpond.{word}": text for word, text in storage(location).words().items()}
    return {"py-io-impl": "millpond.formats.iceberg_io.StorageIO", **words}


def _chosen(
    table: Any, snapshot_id: int | None, as_of: str | datetime | None, where: str
) -> int | None:
    if snapshot_id is not None and table.snapshot_by_id(snapshot_id) is None:
        known = ", ".join(str(found.snapshot_id) for found in table.metadata.snapshots[-5:])
        raise OptionError(f"{where}: no snapshot {snapshot_id}; the last ones are {known}.")
    if as_of is None:
        return snapshot_id
    wanted = datetime.fromisoformat(as_of) if isinstance(as_of, str) else as_of
    wanted = wanted if wanted.tzinfo else wanted.replace(tzinfo=UTC)
    found = table.snapshot_as_of_timestamp(int(wanted.timestamp() * 1000))
    if found is None:
        raise OptionError(f"{where}: the table had no snapshot yet at {wanted.isoformat()}.")
    return int(found.snapshot_id)


# ---- what its files hold -------------------------------------------------------------


def _file(storage: Stores, file: Any) -> FileInfo:
    path = _place(storage, file.file_path)
    return FileInfo(path, file.file_size_in_bytes, "")  # A file of a table is never changed.


def _place(storage: Stores, location: str) -> str:
    # Iceberg takes the letters of a location as they are: nothing in it is escaped.
    location = location.removeprefix("file://")
    return storage(location).local_path(location) or location.rstrip("/")


def _check_names(table: Any, columns: Any, by_name: bool, where: str) -> None:
    """Refuse renames that cannot be followed: of nested fields, or where files have no ids."""
    now = {field_id: columns.find_column_name(field_id) for field_id in _ids(columns)}
    top = {field.field_id for field in columns.fields}
    for schema in table.metadata.schemas:
        for field_id in _ids(schema):
            name = schema.find_column_name(field_id)
            nested = field_id not in top and field_id in now
            last = (now[field_id] or "").rpartition(".")[2] if field_id in now else ""
            if by_name and now.get(field_id, name) != name:
                why = "its files are read by name (schema.name-mapping.default)"
            elif nested and last != name.rpartition(".")[2]:
                why = "it is nested"
            elif by_name and field_id not in now and name in now.values():
                why = "it was dropped and added again, and its files are read by name"
            else:
                continue
            raise FileUnreadable(
                f"{where}: the column {name!r} was renamed, and {why}: this is not supported. "
                "Rewrite the table's files."
            )


def _ids(schema: Any) -> list[int]:
    return list(schema.field_ids)


def _keys(table: Any, columns: Any, files: Sequence[Any]) -> list[int]:
    """The columns whose value is one and the same in each file, as the metadata says it."""
    specs = table.specs()
    known = [
        {f.source_id for f in specs[spec_id].fields if str(f.transform) == "identity"}
        for spec_id in {file.spec_id for file in files}
    ]
    both = set.intersection(*known) if known else set()
    # Bytes have no text that DuckDB and the library agree on.
    words = ("binary", "fixed", "uuid")
    return [
        field.field_id
        for field in columns.fields
        if field.field_id in both and not str(field.field_type).startswith(words)
    ]


def _values(table: Any, columns: Any, keys: Sequence[int], file: Any) -> tuple[str | None, ...]:
    fields = table.specs()[file.spec_id].fields
    texts: list[str | None] = []
    for key in keys:
        place, field = next((i, f) for i, f in enumerate(fields) if f.source_id == key)
        value = file.partition[place]
        shown = field.transform.to_human_string(columns.find_type(key), value)
        texts.append(None if value is None else shown)
    return tuple(texts)


# ---- writing -------------------------------------------------------------------------


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
    from millpond.expr import quote

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


@contextmanager
def _explained(table: str, where: str) -> Iterator[None]:
    """The library's errors as ours."""
    errors = extra("pyiceberg.exceptions", extra="iceberg", what="an Iceberg table")
    try:
        yield
    except MillpondError:
        raise
    except (errors.NoSuchTableError, errors.NoSuchNamespaceError, FileNotFoundError) as error:
        raise PathNotFound(table, f"{where}: {_first_line(error)}") from None
    except (errors.CommitFailedException, errors.ValidationException) as error:
        raise TableChanged(
            f"{where}: another writer has changed the table meanwhile ({_first_line(error)}). "
            "Nothing was written; read it again, and write again."
        ) from None
    except errors.CommitStateUnknownException as error:
        raise StorageError(
            f"{where}: whether the table was changed is not known ({_first_line(error)}). "
            "Look at its newest snapshot before writing again."
        ) from None
    except (ValueError, TypeError, NotImplementedError) as error:
        raise SchemaMismatch(f"{where}: {_first_line(error)}") from None
    except Exception as error:  # Catalogues raise what their own libraries happen to.
        raise StorageError(f"{where}: {type(error).__name__}: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")
