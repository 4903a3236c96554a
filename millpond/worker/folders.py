"""Rows of a task → files in folders named `key=value`, one or more for each value.

DuckDB spreads the rows of Parquet, and counts those of each file. Of a text format it counts
none (and 1.4 spreads no JSON): there each value is a statement of its own. The names of the
folders are ours, so that they are the same in every version of DuckDB: values are escaped, and
NULL is `__HIVE_DEFAULT_PARTITION__`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from urllib.parse import quote as escaped
from urllib.parse import unquote

from millpond.engine.cursor import Cursor
from millpond.errors import SchemaMismatch
from millpond.expr import quote
from millpond.formats.scan import NO_VALUE
from millpond.physical.stages import OutputFile, Task, ToFile
from millpond.storage import LocalStorage, Staged, Storage
from millpond.storage.checksums import checksum_of
from millpond.worker.worker import Worker

_KEY = "__millpond_key"
_ROWS = "__millpond_rows"
_LONGEST = 230  # Bytes of a value; file systems end names at 255, and the column's is there, too.
Written = tuple[str, int, tuple[str, ...]]  # A file, its rows, and the texts of its keys.


def write_folders(
    cursor: Cursor, sql: str, task: Task, worker: Worker, check: Callable[[], None]
) -> dict[str, Any]:
    """The files of a task, staged aside in one place. Gives fields of a `TaskResult`."""
    output = task.output
    assert isinstance(output, ToFile)
    storage = worker.storage(output.directory)
    tag = f"{task.run}-s{task.id.stage}a{task.id.attempt}p{task.id.partition}"
    # A folder on the same disk as the staged files, so that these are made by a rename.
    room = storage.stage(f"{output.directory}/rows", tag, below=output.directory)
    folder, staged = f"{room.local}.d", list[Staged]()
    try:
        names = [f"{_KEY}{i}" for i in range(len(output.keys))]
        query = _with_keys(sql, output, names)
        write = _spread if output.format == "parquet" else _each_value
        made = []
        for i, (path, count, texts) in enumerate(write(cursor, query, folder, output, names)):
            values = tuple(text[1:] if text[0] == "v" else None for text in texts)
            target = _target(output, values, task.id.partition, i)
            staged.append(storage.stage(target, f"{tag}f{i}", below=output.directory))
            os.replace(path, staged[-1].local)
            made.append(sealed(storage, staged[-1], count, values))
            staged[-1] = made[-1].staged
            check()
    except BaseException:
        storage.discard(staged)
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        storage.discard([room])
    return {
        "files": tuple(made),
        "rows": sum(file.rows for file in made),
        "size_bytes": sum(file.staged.size_bytes for file in made),
    }


def sealed(
    storage: Storage, staged: Staged, rows: int, values: tuple[str | None, ...] = (),
    *, checksum: str = "",
) -> OutputFile:  # fmt: skip
    """Seal a file that was written, and take its checksum if its writer did not."""
    # Before it is sealed: an object store takes the file away.
    local = staged.local
    seen = checksum or checksum_of(LocalStorage(), local, os.path.getsize(local))
    return OutputFile(storage.seal(staged), rows, seen, values)


def _with_keys(sql: str, output: ToFile, names: Sequence[str]) -> str:
    """The rows, and for each key one more column: 'n' for NULL, else 'v' and its text."""
    items = [
        f"coalesce('v' || {_short(key, output)}, 'n') AS {quote.name(name)}"
        for key, name in zip(output.keys, names, strict=True)
    ]
    all_ = "*" if output.keeps_keys else f"* EXCLUDE ({quote.names(output.keys)})"
    return f"SELECT {all_}, {', '.join(items)} FROM (\n{sql}\n)"


def _short(key: str, output: ToFile) -> str:
    """The text of a key; an error where it would be too long for the name of a folder."""
    text = f"{quote.name(key)}::VARCHAR"
    said = (
        f"write to {output.directory!r}: a text of {key!r} takes more than {_LONGEST} bytes in the "
        "name of a folder. Partition by something shorter, such as its hash."
    )
    # Escaped, a byte is three at most.
    long = f"strlen({text}) > {_LONGEST // 3} AND strlen(url_encode({text})) > {_LONGEST}"
    return f"CASE WHEN {long} THEN error({quote.value(said)}) ELSE {text} END"


def _spread(
    cursor: Cursor, query: str, folder: str, output: ToFile, names: Sequence[str]
) -> Iterator[Written]:
    for path, count in sorted(cursor.copy_apart(query, folder, output.options, names)):
        parents = os.path.relpath(path, folder).split("/")[:-1]
        yield path, count, tuple(unquote(parent.partition("=")[2]) for parent in parents)


def _each_value(
    cursor: Cursor, query: str, folder: str, output: ToFile, names: Sequence[str]
) -> Iterator[Written]:
    keys = quote.names(names)
    # In order, so that a statement passes over the rows of most other values.
    cursor.keep(_ROWS, f"FROM (\n{query}\n) ORDER BY {keys}")
    os.mkdir(folder)
    for i, texts in enumerate(cursor.rows(f"SELECT DISTINCT {keys} FROM {_ROWS} ORDER BY ALL")):
        path = f"{folder}/{i}"
        pairs = zip(names, texts, strict=True)
        chosen = " AND ".join(f"{quote.name(name)} = {quote.value(text)}" for name, text in pairs)
        sql = f"SELECT * EXCLUDE ({keys}) FROM {_ROWS} WHERE {chosen}"
        yield path, cursor.copy(sql, path, output.format, output.options), texts


def _target(output: ToFile, values: Sequence[str | None], partition: int, i: int) -> str:
    pairs = zip(output.keys, values, strict=True)
    folders = [f"{_name(key)}={NO_VALUE if v is None else _name(v)}" for key, v in pairs]
    if any(len(folder) > 255 for folder in folders):
        raise SchemaMismatch(
            f"write to {output.directory!r}: {max(folders, key=len)!r} is longer than a name of a "
            "folder may be (255 bytes). Rename the column, or partition by something shorter."
        )
    if NO_VALUE in values:
        raise SchemaMismatch(
            f"write to {output.directory!r}: the text {NO_VALUE!r} means NULL in the name of a "
            "folder. Replace it by another one."
        )
    name = output.name.replace("{partition}", f"{partition:05d}-{i}")
    return "/".join([output.directory.rstrip("/"), *folders, name])


def _name(text: str) -> str:
    return escaped(text, safe="")
