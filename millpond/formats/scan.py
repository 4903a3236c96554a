"""What to read of a source: `Scan` says how, `Split` says which rows. Plain values."""

from dataclasses import dataclass

from millpond.expr import quote
from millpond.formats.memory import ArrowRows
from millpond.schema import Schema

FILE = "__millpond_file"
ROW = "__millpond_row"
IDENTITY = (FILE, ROW)  # Hidden columns: a row's place in the input.


@dataclass(frozen=True, slots=True)
class FileSlice:
    """Rows of one file: `n_rows` from `first_row`, or all of them (`n_rows` None)."""

    path: str
    first_row: int = 0
    n_rows: int | None = None


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
    """

    format: str
    schema: Schema
    options: tuple[tuple[str, str], ...] = ()
    filter: str = ""
    limit: int | None = None
    identity: bool = False


def scan_sql(scan: Scan, splits: tuple[Split, ...], table: str = "") -> str:
    """The query that reads `splits`; `table` names the registered table of rows in memory."""
    slices = [s for split in splits for s in split.slices]
    if table or not slices:
        base = _select(scan, table or _no_rows(scan), "")
        return _narrowed(base, scan)
    if dict(scan.options).get("union_by_name"):
        return _narrowed(_by_name(scan, slices), scan)
    whole = all(s.n_rows is None for s in slices)
    if whole:
        return _narrowed(_select(scan, _reader(scan, [s.path for s in slices]), ""), scan)
    each = [_slice_sql(scan, s) for s in slices]
    return _narrowed(" UNION ALL ".join(f"({sql})" for sql in each), scan)


def _by_name(scan: Scan, slices: list[FileSlice]) -> str:
    """Columns that no file of these splits has are NULL; the types are those of all files."""
    parts = [f"SELECT * FROM {_no_rows(scan)}"]
    for piece in slices:
        base = f"SELECT * FROM {_reader(scan, [piece.path])}"
        parts.append(f"({base}{_rows_of(piece)})")
    items = ", ".join(
        f"{quote.name(f.name)}::{f.type} AS {quote.name(f.name)}" for f in scan.schema
    )
    return f"SELECT {items} FROM ({' UNION ALL BY NAME '.join(parts)})"


def reader(format: str, paths: list[str], options: tuple[tuple[str, str], ...]) -> str:
    """DuckDB's table function over `paths`."""
    function = {"parquet": "read_parquet", "csv": "read_csv", "json": "read_json"}[format]
    extra = "".join(f", {name} = {literal}" for name, literal in options)
    return f"{function}({quote.value(paths)}{extra})"


def _reader(scan: Scan, paths: list[str]) -> str:
    return reader(scan.format, paths, scan.options)


def _slice_sql(scan: Scan, part: FileSlice) -> str:
    return _select(scan, _reader(scan, [part.path]), _rows_of(part))


def _rows_of(part: FileSlice) -> str:
    if part.n_rows is None:
        return ""
    # Parquet only: DuckDB skips the row groups that this range does not touch.
    last = part.first_row + part.n_rows - 1
    return f" WHERE file_row_number BETWEEN {part.first_row} AND {last}"


def _select(scan: Scan, source: str, tail: str) -> str:
    columns = quote.names(scan.schema.names)
    if scan.format in (
        "memory",
        "arrow",
    ):  # Rows that were kept may have come back in plainer types.
        columns = _typed(scan)
    if scan.identity:
        columns += f", file_index AS {quote.name(FILE)}, file_row_number AS {quote.name(ROW)}"
    return f"SELECT {columns or 'NULL'} FROM {source}{tail}"


def _typed(scan: Scan) -> str:
    names = ((quote.name(f.name), f.type) for f in scan.schema)
    return ", ".join(f"{name}::{kind} AS {name}" for name, kind in names)


def _narrowed(sql: str, scan: Scan) -> str:
    if scan.filter:
        sql = f"SELECT * FROM ({sql}) WHERE (\n{scan.filter}\n)"
    return f"{sql} LIMIT {scan.limit}" if scan.limit is not None else sql


def _no_rows(scan: Scan) -> str:
    nulls = ", ".join(f"NULL::{f.type} AS {quote.name(f.name)}" for f in scan.schema)
    return f"(SELECT {nulls} WHERE false)"
