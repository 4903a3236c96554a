"""What to read of a source: `Scan` says how, `Split` says which rows. Plain values."""

from dataclasses import dataclass

from millpond.expr import quote
from millpond.formats.memory import ArrowRows
from millpond.schema import Field, Schema

FILE = "__millpond_file"
ROW = "__millpond_row"
NO_VALUE = "__HIVE_DEFAULT_PARTITION__"  # The name of a hive folder whose key is NULL.
IDENTITY = (FILE, ROW)  # Hidden columns: a row's place in the input.


@dataclass(frozen=True, slots=True)
class State:
    """The manifest of an output that named its files."""

    root: str
    number: int


@dataclass(frozen=True, slots=True)
class FileSlice:
    """Rows of one file: `n_rows` from `first_row`, or all of them (`n_rows` None).

    `values` are those of the scan's `keys` in all of its rows, as text; None is NULL. `place` is
    the file's among those of the source, where rows tell theirs and not all files are read.
    """

    path: str
    first_row: int = 0
    n_rows: int | None = None
    values: tuple[str | None, ...] = ()
    place: int = 0


@dataclass(frozen=True, slots=True)
class Split:
    """A range of a source's rows that one task reads.

    `rows` is for what the user made from Python objects: it travels inside its split.
    """

    slices: tuple[FileSlice, ...] = ()
    rows: ArrowRows | None = None


@dataclass(frozen=True, slots=True)
class Scan:
    """How to read a split: the format, its options as (name, SQL literal), what to give.

    `schema` holds the columns that are read; `filter` is a predicate over them that
    prunes row groups and rows; `identity` asks for the two hidden columns as well.
    `keys` are columns that come with the slices and not out of the files: a table's
    partitions. `null_keys` are keys of hive folders that the reader gives as text, as some
    of them are NULL.
    """

    format: str
    schema: Schema
    options: tuple[tuple[str, str], ...] = ()
    filter: str = ""
    limit: int | None = None
    identity: bool = False
    keys: tuple[str, ...] = ()
    null_keys: tuple[str, ...] = ()


def scan_sql(scan: Scan, splits: tuple[Split, ...], table: str = "") -> str:
    """The query that reads `splits`; `table` names the registered table of rows in memory."""
    slices = [s for split in splits for s in split.slices]
    if table or not slices:
        base = _select(scan, table or _no_rows(scan), "")
        return _narrowed(base, scan)
    runs = _runs(slices)
    if dict(scan.options).get("union_by_name"):
        return _narrowed(_by_name(scan, runs), scan)
    each = [_run_sql(scan, run) for run in runs]
    return _narrowed(each[0] if len(each) == 1 else _all(each), scan)


def _all(each: list[str]) -> str:
    return " UNION ALL ".join(f"({sql})" for sql in each)


def _runs(slices: list[FileSlice]) -> list[list[FileSlice]]:
    """Neighbours that one call of the reader gives: whole files with the same values."""
    runs: list[list[FileSlice]] = []
    for piece in slices:
        last = runs[-1][-1] if runs else None
        whole = piece.n_rows is None and last is not None and last.n_rows is None
        if last is not None and whole and piece.values == last.values:
            runs[-1].append(piece)
        else:
            runs.append([piece])
    return runs


def _by_name(scan: Scan, runs: list[list[FileSlice]]) -> str:
    """Columns that no file of these splits has are NULL; the types are those of all files."""
    parts = [f"SELECT * FROM {_no_rows(scan)}"]
    for run in runs:
        items = "*"
        if scan.keys:
            # Some writers put the keys into the files as well.
            given = quote.value([key.casefold() for key in scan.keys])
            items = f"COLUMNS(lambda c: lower(c) NOT IN {given}){_constants(scan, run[0])}"
        base = f"SELECT {items} FROM {_reader(scan, [piece.path for piece in run])}"
        parts.append(f"({base}{_rows_of(run[0])})")
    items = ", ".join(_typed(f, scan) for f in scan.schema)
    return f"SELECT {items} FROM ({' UNION ALL BY NAME '.join(parts)})"


def _constants(scan: Scan, piece: FileSlice) -> str:
    values = dict(zip(scan.keys, piece.values, strict=True))
    return "".join(f", {_constant(f, values[f.name])}" for f in scan.schema if f.name in values)


def _constant(field: Field, value: str | None) -> str:
    return f"{quote.value(value)}::{field.type} AS {quote.name(field.name)}"


def reader(format: str, paths: list[str], options: tuple[tuple[str, str], ...]) -> str:
    """DuckDB's table function over `paths`."""
    function = {"parquet": "read_parquet", "csv": "read_csv", "json": "read_json"}[format]
    extra = "".join(f", {name} = {literal}" for name, literal in options)
    return f"{function}({quote.value(paths)}{extra})"


def _reader(scan: Scan, paths: list[str]) -> str:
    return reader(scan.format, paths, scan.options)


def _run_sql(scan: Scan, run: list[FileSlice]) -> str:
    source = _reader(scan, [piece.path for piece in run])
    if not scan.keys:
        return _select(scan, source, _rows_of(run[0]), run[0].place)
    values = dict(zip(scan.keys, run[0].values, strict=True))
    items = [
        _constant(f, values[f.name]) if f.name in values else quote.name(f.name)
        for f in scan.schema
    ]
    return f"SELECT {', '.join(items)} FROM {source}{_rows_of(run[0])}"


def _rows_of(part: FileSlice) -> str:
    if part.n_rows is None:
        return ""
    # Parquet only: DuckDB skips the row groups that this range does not touch.
    last = part.first_row + part.n_rows - 1
    return f" WHERE file_row_number BETWEEN {part.first_row} AND {last}"


def _select(scan: Scan, source: str, tail: str, place: int = 0) -> str:
    # Rows that were kept may have come back in plainer types.
    kept = scan.format in ("memory", "arrow")
    columns = ", ".join(
        _typed(f, scan) if kept or f.name in scan.null_keys else quote.name(f.name)
        for f in scan.schema
    )
    if scan.identity:
        number = f"file_index + {place}" if place else "file_index"
        columns += f", {number} AS {quote.name(FILE)}, file_row_number AS {quote.name(ROW)}"
    return f"SELECT {columns or 'NULL'} FROM {source}{tail}"


def _typed(field: Field, scan: Scan) -> str:
    name = quote.name(field.name)
    value = f"nullif({name}, {quote.value(NO_VALUE)})" if field.name in scan.null_keys else name
    return f"{value}::{field.type} AS {name}"


def _narrowed(sql: str, scan: Scan) -> str:
    if scan.filter:
        sql = f"SELECT * FROM ({sql}) WHERE (\n{scan.filter}\n)"
    return f"{sql} LIMIT {scan.limit}" if scan.limit is not None else sql


def _no_rows(scan: Scan) -> str:
    nulls = ", ".join(f"NULL::{f.type} AS {quote.name(f.name)}" for f in scan.schema)
    return f"(SELECT {nulls} WHERE false)"
