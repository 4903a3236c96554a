"""The command `millpond`: arguments → the same calls that a script makes; exit codes.

0: done. 1: the work failed. 2: the command was wrong. An error is one clear message;
`--debug` shows where it came from.
"""

import argparse
import os
import re
import runpy
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from millpond.dataframe import DataFrame
from millpond.errors import MillpondError, OptionError, PathNotFound, SqlError, TargetNotEmpty
from millpond.options import duration, options, set_defaults
from millpond.report.page import page
from millpond.report.record import from_json
from millpond.report.tally import size
from millpond.runtime.gc import gc
from millpond.session import Session, init
from millpond.storage import Range, open_storage
from millpond.storage.paths import hidden
from millpond.version import VERSION

DONE, FAILED, WRONG, INTERRUPTED = 0, 1, 2, 130

FORMATS = {
    ".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json",
    ".ndjson": "json", ".arrow": "arrow", ".feather": "arrow",
}  # fmt: skip
_PAGE = "millpond-report.html"
_PACKED = {".gz": "gzip", ".zst": "zstd"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the process's exit code."""
    parser = _parser()
    told = parser.parse_args(arguments)
    try:
        code: int = told.command(told)
        # A reader that went away (`millpond … | head`) is noticed here, not after our end.
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("millpond: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except (MillpondError, OSError) as error:
        if told.debug:
            traceback.print_exc()
        else:
            print(f"millpond: {error}", file=sys.stderr)
        return WRONG if isinstance(error, OptionError) else FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="millpond", description="Distributed DuckDB for the data that trains models."
    )
    parser.add_argument("--version", action="version", version=f"millpond {VERSION}")
    every = argparse.ArgumentParser(add_help=False)
    every.add_argument("--debug", action="store_true", help="show the traceback of an error")
    every.add_argument("--threads", metavar="N", help="processors to use (all)")
    every.add_argument("--memory-limit", metavar="SIZE", help="such as 4GB (80%% of what is there)")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], help: str) -> argparse.ArgumentParser:  # fmt: skip # noqa: E501
        made = commands.add_parser(name, help=help, description=help, parents=[every])
        made.set_defaults(command=run)
        return made

    sql = command("sql", _sql, "Run a query, such as \"SELECT count(*) FROM 'file.parquet'\".")
    sql.add_argument("query")
    sql.add_argument("--to", metavar="PATH", help="write to a file or a folder, by its ending")
    sql.add_argument("--overwrite", action="store_true", help="replace what is at --to")
    sql.add_argument("-n", "--rows", type=_count, default=100, help="rows to show (100)")
    for name, run, help in (
        ("head", _head, "Show the first rows of a file or folder."),
        ("schema", _schema, "Show names and types of a file or folder."),
        ("count", _count_rows, "Count the rows of a file or folder."),
    ):
        made = command(name, run, help)
        made.add_argument("path", metavar="PATH", help="a path, folder, glob or URI")
        made.add_argument("--format", choices=sorted(set(FORMATS.values())))
        if name == "head":
            made.add_argument("-n", "--rows", type=_count, default=10, help="how many (10)")
    script = command("run", _run, "Run a Python script with options for its sessions.")
    script.add_argument("--data-root", metavar="PATH", help="keep finished work there, and resume")
    script.add_argument("script")
    script.add_argument("arguments", nargs=argparse.REMAINDER, help="for the script")
    report = command("report", _report, "Draw the recorded runs of a data root as an HTML page.")
    report.add_argument("data_root", metavar="DATA_ROOT")
    report.add_argument("--to", metavar="FILE", help=f"where (./{_PAGE}, which is replaced)")
    report.add_argument("--overwrite", action="store_true", help="replace what is at --to")
    clear = command("gc", _gc, "Clear a data root of what no live session and no rerun can need.")
    clear.add_argument("data_root", metavar="DATA_ROOT")
    clear.add_argument("--older-than", metavar="TIME", help="also finished work, such as 7d or 36h")
    clear.add_argument("--dry-run", action="store_true", help="only say what would go")
    return parser


def _count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 0")
    return int(text)


# ---- commands ------------------------------------------------------------------------


def _sql(told: argparse.Namespace) -> int:
    with _session(told) as sp:
        try:
            frame = sp.sql(told.query)
        except SqlError as error:
            raise SqlError(f"{error}{_about_folders(told.query)}") from error
        if told.to is not None:
            return _write(frame, told.to, overwrite=told.overwrite)
        kept = frame.limit(told.rows + 1).compute()  # One more tells whether there are more.
        kept.show(told.rows)
        if kept.count() > told.rows:
            print(f"The first {told.rows:,} rows; --rows N shows more, --to PATH writes all.")
    return DONE


def _about_folders(query: str) -> str:
    """SQL reads files, by their endings; folders it takes for names of tables."""
    named = re.findall(r"\b(?:from|join)\s+'([^']+)'", query, re.IGNORECASE)
    folders = (name for name in named if os.path.isdir(name))
    found = next(folders, "").rstrip("/")
    return f" {found!r} is a folder: read its files, FROM '{found}/**/*.parquet'." if found else ""


def _head(told: argparse.Namespace) -> int:
    with _session(told) as sp:
        _read(sp, told).show(told.rows)
    return DONE


def _schema(told: argparse.Namespace) -> int:
    with _session(told) as sp:
        schema = _read(sp, told).schema
    width = max(len(name) for name in schema.names)
    for field in schema:
        print(f"{field.name:{width}}  {field.type}")
    return DONE


def _count_rows(told: argparse.Namespace) -> int:
    with _session(told) as sp:
        print(_read(sp, told).count())
    return DONE


def _run(told: argparse.Namespace) -> int:
    """The script as `__main__`. What it raises itself is shown as Python shows it."""
    script = told.script
    if not os.path.isfile(script):
        raise OptionError(f"run: no script at {script!r}.")
    set_defaults(threads=told.threads, memory_limit=told.memory_limit, data_root=told.data_root)
    sys.argv = [script, *told.arguments]
    sys.path.insert(0, os.path.dirname(os.path.abspath(script)))
    try:
        runpy.run_path(script, run_name="__main__")
    except MillpondError as error:
        if told.debug:
            raise
        place = _place(error, script)
        print(f"{place}: {error}", file=sys.stderr)
        return FAILED
    except Exception as error:  # The script's own end: shown from its own first line on.
        tb = error.__traceback__
        while tb is not None and tb.tb_frame.f_code.co_filename != script:
            tb = tb.tb_next
        traceback.print_exception(type(error), error, tb or error.__traceback__)
        return FAILED
    return DONE


def _place(error: BaseException, script: str) -> str:
    """The line of the script that an error came from."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == script]
    return f"{script}:{lines[-1]}" if lines else script


def _report(told: argparse.Namespace) -> int:
    root = told.data_root if "://" in told.data_root else os.path.abspath(told.data_root)
    storage = open_storage(root, options().storage_options)
    found = [file for file in storage.list(f"{root}/events") if file.path.endswith(".json")]
    if not found:
        raise PathNotFound(f"{root}/events", f"report {told.data_root!r}")
    texts = storage.read_many([Range(file.path, 0, file.size_bytes) for file in found])
    runs = [run for text in texts if (run := from_json(bytes(text))) is not None]
    target = told.to or _PAGE
    if told.to and os.path.exists(target) and not told.overwrite:
        raise FileExistsError(f"{target!r} exists; --overwrite replaces it.")
    Path(target).write_text(page(runs, f"Millpond: {told.data_root}"))
    print(f"{len(runs):,} run{'' if len(runs) == 1 else 's'} in {target}")
    return DONE


def _gc(told: argparse.Namespace) -> int:
    older_than = duration("--older-than", told.older_than) if told.older_than else None
    storage_options = dict(options().storage_options)
    freed = gc(told.data_root, older_than=older_than, dry_run=told.dry_run,
               storage_options=storage_options)  # fmt: skip
    for kind, (files, n_bytes) in sorted(freed.kinds.items()):
        print(f"{kind}: {files:,} file{'' if files == 1 else 's'}, {size(n_bytes)}")
    print(f"{size(freed.size_bytes)} {'would be freed' if told.dry_run else 'freed'}")
    return DONE


# ---- what they share -----------------------------------------------------------------


def _session(told: argparse.Namespace) -> Session:
    return init(threads=told.threads, memory_limit=told.memory_limit)


def _read(sp: Session, told: argparse.Namespace) -> DataFrame:
    path: str = told.path
    match told.format or _format(_first_file(path)) or "parquet":
        case "csv":
            return sp.read_csv(path)
        case "json":
            return sp.read_json(path)
        case "arrow":
            return sp.read_arrow(path)
    return sp.read_parquet(path)


def _first_file(path: str) -> str:
    """A file that tells what a local folder holds."""
    if "://" in path or not os.path.isdir(path):
        return path
    names = sorted(str(file.relative_to(path)) for file in Path(path).rglob("*"))
    shown = (name for name in names if not any(map(hidden, name.split("/"))))
    return next((os.path.join(path, name) for name in shown if _format(name)), path)


def _format(path: str) -> str | None:
    stem, ending = os.path.splitext(path.lower())
    return FORMATS.get(os.path.splitext(stem)[1] if ending in _PACKED else ending)


def _write(frame: DataFrame, target: str, *, overwrite: bool) -> int:
    """A path with an ending is one file, which appears when it is whole; others are folders."""
    format = _format(target)
    if format is None and os.path.splitext(target)[1]:
        raise OptionError(f"--to {target!r}: the ending must be one of {', '.join(FORMATS)}.")
    mode = "overwrite" if overwrite else "error"
    if format is None or "://" in target or os.path.isdir(target):
        rows, n_bytes = _write_folder(frame, target, format or "parquet", mode, {})
    else:
        if os.path.exists(target) and not overwrite:
            raise FileExistsError(f"{target!r} exists; --overwrite replaces it.")
        rows, n_bytes = _write_file(frame, target, format)
    print(f"{rows:,} rows, {size(n_bytes)} in {target}")
    return DONE


def _options(target: str) -> dict[str, str]:
    """What the ending of a file says beside its format."""
    stem, ending = os.path.splitext(target.lower())
    said = {"compression": _PACKED[ending]} if ending in _PACKED else {}
    tabs = (stem if said else target.lower()).endswith(".tsv")
    return {**said, "delim": "\t"} if tabs else said


def _write_folder(
    frame: DataFrame, target: str, format: str, mode: str, options: dict[str, str]
) -> tuple[int, int]:
    write = {
        "arrow": frame.write_arrow,
        "csv": frame.write_csv,
        "json": frame.write_json,
        "parquet": frame.write_parquet,
    }
    try:
        result = write[format](target, mode=mode, **options)
    except TargetNotEmpty:
        raise FileExistsError(f"{target!r} holds files; --overwrite replaces them.") from None
    return result.rows, result.bytes


def _write_file(frame: DataFrame, target: str, format: str) -> tuple[int, int]:
    beside = os.path.dirname(os.path.abspath(target))
    # The same file system, so that the last step is a rename.
    with tempfile.TemporaryDirectory(dir=beside, prefix=".millpond-") as folder:
        rows, n_bytes = _write_folder(
            frame.repartition(1), folder, format, "error", _options(target)
        )
        (made,) = (file for file in Path(folder).rglob("part-*") if file.is_file())
        os.replace(made, target)
    return rows, n_bytes
