"""Apache Iceberg tables, to read: catalogue and metadata by the library, the files by ourselves.

Columns are found in files by their ids, as Iceberg means it, so a renamed column is the same
column; by their names only in tables that say so.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from millpond.errors import (
    FileUnreadable,
    MillpondError,
    OptionError,
    PathNotFound,
    SchemaMismatch,
    StorageError,
    TableChanged,
)
from millpond.formats.tables import Snapshot, check_place, moment
from millpond.lazy import extra
from millpond.storage import STORES, FileInfo, Storage
from millpond.storage.paths import scheme

Stores = Callable[[str], Storage]
Catalog = str | os.PathLike[str] | Mapping[str, str] | None

UNSUPPORTED = frozenset({"TIME WITH TIME ZONE", "INTERVAL", "BIT", "TIMESTAMP_NS", "TIME_NS"})
OTHER = {"TINYINT": "INTEGER", "SMALLINT": "INTEGER", "UTINYINT": "INTEGER", "USMALLINT": "INTEGER"}
HOME = "warehouse"  # Where the SQLite catalogue lies if none is configured.
_NUMBER = re.compile(r"v?(\d+)")
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
    at = None if as_of is None else moment(as_of, "as_of", where)
    with explained(table, where):
        found = _load(storage, table, catalog, where)
        scan = found.scan(snapshot_id=_chosen(found, snapshot_id, at, where))
        tasks = sorted(scan.plan_files(), key=lambda task: str(task.file.file_path))
        deleted = next((task for task in tasks if task.delete_files), None)
        if deleted is not None:
            raise FileUnreadable(
                f"{where}: rows of {deleted.file.file_path} were deleted by delete files, which "
                "are not supported. Have its writer compact the table (rewrite_data_files)."
            )
        columns = scan.projection()
        _check_defaults(columns, where)
        by_name = _NAME_MAPPING in found.metadata.properties
        _check_names(found, columns, by_name, where)
        keys = _keys(found, columns, [task.file for task in tasks])
        files = tuple(_file(storage, task.file, found.location(), where) for task in tasks)
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


# ---- finding a table -----------------------------------------------------------------


def _load(storage: Stores, table: str, catalog: Catalog, where: str) -> Any:
    if "/" not in table and not table.endswith(".metadata.json"):
        return open_catalog(storage, catalog, where).load_table(table)
    static = extra("pyiceberg.table", extra="iceberg", what="an Iceberg table").StaticTable
    path = table if table.endswith(".metadata.json") else _newest(storage, table, where)
    return static.from_metadata(path, _properties(storage, path))


def _newest(storage: Stores, folder: str, where: str) -> str:
    """The newest metadata file of a table's folder."""
    listed = storage(folder).list(f"{folder.rstrip('/')}/metadata")
    found = [info for info in listed if info.path.endswith(".metadata.json")]
    if not found:
        raise PathNotFound(folder, f"{where}: no Iceberg table")
    return max(found, key=_age).path


def _age(info: FileInfo) -> tuple[int, float, str]:
    """By the number in a name: `00010-ID.metadata.json`, or `v10.metadata.json` of Hadoop."""
    name = info.path.rpartition("/")[2]
    number = _NUMBER.match(name)
    return int(number[1]) if number else -1, info.modified_s, name


def open_catalog(storage: Stores, catalog: Catalog, where: str) -> Any:
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


def _chosen(table: Any, snapshot_id: int | None, wanted: datetime | None, where: str) -> int | None:
    if snapshot_id is not None and table.snapshot_by_id(snapshot_id) is None:
        known = ", ".join(str(found.snapshot_id) for found in table.metadata.snapshots[-5:])
        raise OptionError(f"{where}: no snapshot {snapshot_id}; the last ones are {known}.")
    if wanted is None:
        return snapshot_id
    found = table.snapshot_as_of_timestamp(int(wanted.timestamp() * 1000))
    if found is None:
        raise OptionError(f"{where}: the table had no snapshot yet at {wanted.isoformat()}.")
    return int(found.snapshot_id)


# ---- what its files hold -------------------------------------------------------------


def _file(storage: Stores, file: Any, table: str, where: str) -> FileInfo:
    check_place(table, file.file_path, where)
    path = place(storage, file.file_path)
    return FileInfo(path, file.file_size_in_bytes, "")  # A file of a table is never changed.


def place(storage: Stores, location: str) -> str:
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


def _check_defaults(columns: Any, where: str) -> None:
    """Refuse columns that older files lack and that are not NULL there (format version 3)."""
    for field_id in _ids(columns):
        field = columns.find_field(field_id)
        if getattr(field, "initial_default", None) is not None:
            raise FileUnreadable(
                f"{where}: the column {field.name!r} has a value for files that lack it "
                "(initial-default), which is not supported. Rewrite the table's files."
            )


def _ids(schema: Any) -> list[int]:
    return list(schema.field_ids)


def _keys(table: Any, columns: Any, files: Sequence[Any]) -> list[int]:
    """The columns whose value is one and the same in each file, as the metadata says it."""
    specs = table.specs()
    known = [
        {f.source_id for f in specs[spec_id].fields if _is_identity(f)}
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


def _is_identity(field: Any) -> bool:
    return str(field.transform) == "identity"


def _values(table: Any, columns: Any, keys: Sequence[int], file: Any) -> tuple[str | None, ...]:
    fields = table.specs()[file.spec_id].fields
    texts: list[str | None] = []
    for key in keys:
        # A column may have other transforms too: `truncate(k)` beside `k` itself.
        place, field = next(
            (i, f) for i, f in enumerate(fields) if f.source_id == key and _is_identity(f)
        )
        value = file.partition[place]
        shown = field.transform.to_human_string(columns.find_type(key), value)
        texts.append(None if value is None else shown)
    return tuple(texts)


@contextmanager
def explained(table: str, where: str) -> Iterator[None]:
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
