"""Delta Lake: the log by the library `deltalake`, the files by ourselves. Its only importer."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from numbers import Integral
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

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
from millpond.storage import FileInfo, OutputFile, Storage
from millpond.storage.paths import check_name, scheme

if TYPE_CHECKING:
    import pyarrow as pa

UNSUPPORTED = frozenset({"TIME", "TIME WITH TIME ZONE", "INTERVAL", "BIT", "TIMESTAMP_NS"})
OTHER = {"UUID": "VARCHAR"}


def snapshot(
    storage: Storage,
    uri: str,
    where: str,
    *,
    version: int | None = None,
    timestamp: str | datetime | None = None,
) -> Snapshot:
    """The state of the table at `uri`: the newest, that of a version, or that of a time.

    Raises `PathNotFound` where no table is, and `FileUnreadable` for a table that uses what
    is not supported: deletion vectors that hold rows, and column mapping.
    """
    import pyarrow as pa

    if version is not None and timestamp is not None:
        raise OptionError(f"{where}: pass version= or timestamp=, not both.")
    if version is not None and (isinstance(version, bool) or not isinstance(version, Integral)):
        raise OptionError(f"{where}: version={version!r} is no version. Pass a whole number.")
    at = None if timestamp is None else moment(timestamp, "timestamp", where)
    base = storage.local_path(uri) or uri.rstrip("/")
    with _explained(storage, uri, where):
        table = _table(storage, base)
        if version is not None:
            _go_to(table, int(version), where)
        if at is not None:
            _go_back(table, at, where)
        _check_readable(table, where)
        columns = pa.schema(table.schema().to_arrow())
        actions = pa.table(table.get_add_actions())
        keys = tuple(table.metadata().partition_columns)
    files = _files(actions, base, where)
    values = _values(actions, keys)
    order = sorted(range(len(files)), key=lambda i: ([v or "" for v in values[i]], files[i].path))
    return Snapshot(
        columns,
        tuple(files[i] for i in order),
        (("union_by_name", "true"), ("hive_partitioning", "false")),
        keys,
        tuple(values[i] for i in order) if keys else (),
    )


class _NotATable(FileUnreadable):
    """A folder with files of something else."""


@dataclass(frozen=True, slots=True)
class Present:
    """A table that is there: its columns, and those that it is partitioned by."""

    columns: pa.Schema
    keys: tuple[str, ...]


def current(storage: Storage, uri: str, mode: str, where: str) -> Present | None:
    """The table at `uri`, to be written to; None if there is none.

    Raises `FileUnreadable` for one that does not take such a write, or has rules for its
    rows that we would not check.
    """
    try:
        with _explained(storage, uri, where):
            table = _table(storage, storage.local_path(uri) or uri.rstrip("/"))
            _check_readable(table, where)
            _check_writable(table, mode, where)
            return _present(table)
    except (PathNotFound, _NotATable):
        return None


def _present(table: Any) -> Present:
    import pyarrow as pa

    return Present(pa.schema(table.schema().to_arrow()), tuple(table.metadata().partition_columns))


def commit(
    storage: Storage,
    uri: str,
    outputs: Sequence[OutputFile],
    *,
    columns: Any,
    keys: Sequence[str],
    mode: str,
    present: Present | None,
    where: str,
) -> int:
    """Make published files part of the table in one transaction; the table's new version.

    `columns` are those that `delta_schema` gives.

    Raises `TableChanged` where another writer's commit came in between and the two cannot
    both stand; nothing is changed then.
    """
    transaction = extra("deltalake.transaction", extra="delta", what="write_delta()")
    library = extra("deltalake", extra="delta", what="write_delta()")
    base = storage.local_path(uri) or uri.rstrip("/")
    if any("" in output.values for output in outputs):
        raise SchemaMismatch(
            f"{where}: an empty text in a partition column would come back as NULL from a Delta "
            "table. Replace it by another one."
        )
    zoned = [str(field.type) == 'PrimitiveType("timestamp")' for field in columns.fields]
    utc = {f.name for f, is_zoned in zip(columns.fields, zoned, strict=True) if is_zoned}
    actions = [_add(transaction, output, base, keys, utc) for output in outputs]
    with _explained(storage, uri, where):
        if present is not None:
            table = _table(storage, base)
            now = _present(table)
            if now.keys != present.keys or (mode == "append" and now.columns != present.columns):
                raise TableChanged(
                    f"{where}: another writer has changed the table's columns meanwhile. Nothing "
                    "was written; read it again, and write again."
                )
            how = "overwrite" if mode == "overwrite" else "append"
            table.create_write_transaction(actions, how, columns, list(keys))
        else:
            try:
                transaction.create_table_with_add_actions(
                    base, columns, actions, mode="error", partition_by=list(keys),
                    storage_options=_words(storage),
                )  # fmt: skip
            except library.exceptions.DeltaError:
                # One of the same moment, or ours, and the answer was lost: its files tell.
                there = set(_paths(_table(storage, base))) if _is_table(storage, base) else None
                if there is None or any(action.path in there for action in actions):
                    raise
                raise TableChanged(f"{where}: another writer has made a table there.") from None
        return int(_table(storage, base).version())


def delta_schema(columns: pa.Schema, where: str) -> Any:
    """The library's own columns; `SchemaMismatch` where Delta has no such type."""
    import pyarrow as pa

    library = extra("deltalake", extra="delta", what="write_delta()")
    try:
        return library.Schema.from_arrow(pa.schema([f.with_type(_utc(f.type)) for f in columns]))
    except Exception as error:  # The library raises what its own conversions happen to.
        said = str(error).partition("\n")[0]
        raise SchemaMismatch(f"{where}: Delta cannot keep one of the columns ({said}).") from None


def _utc(kind: pa.DataType) -> pa.DataType:
    """The type with UTC under the only name for it that the library knows."""
    import pyarrow as pa

    if pa.types.is_timestamp(kind) and kind.tz:
        return pa.timestamp(kind.unit, "UTC")
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_utc(field.type)) for field in kind])
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_utc(kind.value_type)))
    if pa.types.is_map(kind):
        return pa.map_(_utc(kind.key_type), _utc(kind.item_type))
    return kind


def _table(storage: Storage, base: str) -> Any:
    library = extra("deltalake", extra="delta", what="a Delta table")
    return library.DeltaTable(base, storage_options=_words(storage))


def _is_table(storage: Storage, base: str) -> bool:
    library = extra("deltalake", extra="delta", what="a Delta table")
    return bool(library.DeltaTable.is_deltatable(base, storage_options=_words(storage)))


def _paths(table: Any) -> list[str]:
    import pyarrow as pa

    return [unquote(path) for path in pa.table(table.get_add_actions())["path"].to_pylist()]


def _words(storage: Storage) -> dict[str, str] | None:
    return storage.words() or None


def _go_to(table: Any, version: int, where: str) -> None:
    newest = table.version()
    if not 0 <= version <= newest:
        raise OptionError(f"{where}: no version {version}; the table has 0 to {newest}.")
    table.load_as_version(version)


def _go_back(table: Any, wanted: datetime, where: str) -> None:
    table.load_as_version(wanted)
    made_ms = table.history(1)[0].get("timestamp", 0)
    # The library gives the first version where there is none that old.
    if made_ms > wanted.timestamp() * 1000:
        first = datetime.fromtimestamp(made_ms / 1000, UTC).isoformat()
        raise OptionError(f"{where}: the table is younger; its first version is of {first}.")


def _check_readable(table: Any, where: str) -> None:
    import pyarrow as pa

    if table.metadata().configuration.get("delta.columnMapping.mode", "none") != "none":
        raise FileUnreadable(
            f"{where}: the table uses column mapping, which is not supported: its files have other "
            "names for the columns. Write it anew without (delta.columnMapping.mode = none)."
        )
    features = table.protocol().reader_features or []
    if "deletionVectors" in features and len(pa.table(table.deletion_vectors())):
        raise FileUnreadable(
            f"{where}: rows of the table were deleted by deletion vectors, which are not "
            "supported. Have its writer apply them first (REORG TABLE … APPLY (PURGE))."
        )


def _check_writable(table: Any, mode: str, where: str) -> None:
    settings = table.metadata().configuration
    if mode == "overwrite" and settings.get("delta.appendOnly", "").lower() == "true":
        raise FileUnreadable(
            f"{where}: the table only takes appends (delta.appendOnly = true). Pass "
            "mode='append', or write to another path."
        )
    rules = [name for name in settings if name.startswith("delta.constraints")]
    words = ("delta.invariants", "delta.generationExpression", "delta.identity.start")
    text = table.schema().to_json()
    rules += [word for word in words if word in text]
    if rules:
        raise FileUnreadable(
            f"{where}: the table has rules for its rows ({', '.join(rules)}), which are not "
            "checked here. Write to it with a writer that does."
        )


def _files(actions: pa.Table, base: str, where: str) -> list[FileInfo]:
    paths = [_path(base, unquote(name), where) for name in actions["path"].to_pylist()]
    sizes, times = (actions[name].to_pylist() for name in ("size_bytes", "modification_time"))
    # A file of a table is never changed.
    return [
        FileInfo(path, size, str(ms), ms // 1000)
        for path, size, ms in zip(paths, sizes, times, strict=True)
    ]


def _path(base: str, name: str, where: str) -> str:
    """Where a file lies that the log names; a clone's log names files of another table."""
    if scheme(name) or name[:1] == "/":
        check_place(base, name, where)
        return name
    check_name(base, name)
    return f"{base}/{name}"


def _values(actions: pa.Table, keys: Sequence[str]) -> list[tuple[str | None, ...]]:
    import pyarrow as pa
    import pyarrow.compute as pc

    if not keys:
        return [()] * len(actions)
    held = actions["partition"].combine_chunks()
    # By place: a name that begins with a dot would be a path.
    places = [held.type.get_field_index(key) for key in keys]
    columns = [pc.struct_field(held, place).cast(pa.string()).to_pylist() for place in places]
    return list(zip(*columns, strict=True))


def _add(
    transaction: Any, output: OutputFile, base: str, keys: Sequence[str], utc: set[str]
) -> Any:
    values = dict(zip(keys, output.values, strict=True))
    for key in utc & set(values):  # A time in a log is in UTC, and does not say so.
        values[key] = (text := values[key]) and text.removesuffix("+00")
    assert output.staged.path.startswith(base + "/")
    return transaction.AddAction(
        path=output.staged.path[len(base) + 1 :],
        size=output.staged.size_bytes,
        partition_values=values,
        modification_time=int(time.time() * 1000),
        data_change=True,
        stats=json.dumps({"numRecords": output.rows}),
    )


@contextmanager
def _explained(storage: Storage, uri: str, where: str) -> Iterator[None]:
    """The library's errors as ours, without secrets."""
    errors = extra("deltalake.exceptions", extra="delta", what="a Delta table")
    failure: MillpondError
    try:
        yield
        return
    except MillpondError:
        raise
    except errors.TableNotFoundError:
        if next(iter(storage.list(uri)), None) is None:
            failure = PathNotFound(uri, f"{where}: no Delta table")
        else:
            failure = _NotATable(
                f"{where}: there are files, but no Delta table (no _delta_log). Of plain Parquet, "
                "read_parquet() reads the folder."
            )
    except errors.DeltaProtocolError as error:
        failure = FileUnreadable(f"{where}: {_said(error, storage)}")
    except errors.CommitFailedError as error:
        failure = TableChanged(
            f"{where}: another writer has changed the table meanwhile ({_said(error, storage)}). "
            "Nothing was written; read it again, and write again."
        )
    except Exception as error:  # The library raises what its own parts happen to.
        failure = StorageError(f"{where}: {_said(error, storage)}")
    # Not `from error`, so that no traceback shows the library's own text.
    raise failure from None


def _said(error: Exception, storage: Storage) -> str:
    return storage.strike(str(error).strip().partition("\n")[0].rstrip("."))
