"""A session: where frames come from. It opens a workplace, and closes it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from millpond.dataframe import DataFrame, plan_of
from millpond.errors import OptionError, SchemaMismatch
from millpond.events import Event
from millpond.expr.parse import check
from millpond.formats.iceberg import Catalog
from millpond.formats.memory import ArrowRows, table_of, table_of_pandas
from millpond.formats.scan import Scan
from millpond.options import Options, options
from millpond.plan import build
from millpond.plan import nodes as n
from millpond.runner import Runner
from millpond.sources import Paths, Sources
from millpond.workplace import Workplace

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


_DEEPEST = 63  # Arrow's own bound for messages.


def init(
    data_root: str | None = None, *, runtime: str | None = None, address: str | None = None,
    threads: int | None = None, memory_limit: str | int | None = None,
    storage_options: Mapping[str, str] | None = None, progress: bool | None = None,
    seed: int | None = None, shape: str | None = None, verify: str | None = None,
    name: str | None = None, allow_insecure: bool | None = None,
    task_timeout: float | None = None,
) -> Session:  # fmt: skip
    """Open a session in this process: no service, no port, nothing left behind.

    With `data_root`, finished work is kept there and a rerun resumes. `runtime="ray"` runs
    on a Ray cluster. Options also come from `MILLPOND_…`; an argument wins. The rest:
    docs/reference/options.md.

    >>> with millpond.init() as sp:
    ...     sp.from_items([1, 2]).count()
    2
    """
    given = dict(locals())
    return Session(options(**given))


class Session:
    """Makes frames and runs them. Made by `init`.

    Threads may share one; their runs take turns. Processes may not: a forked child opens
    its own.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self._work = Workplace(options)
        self._runner = Runner(self._work)
        self._sources = Sources(
            self._work.worker.engine,
            self._work.worker.storage,
            durable=self._work.options.data_root is not None,
        )

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._work.close(failed=kind is not None)

    def close(self) -> None:
        """End the session: workers, engine and scratch are gone afterwards."""
        self._work.close()

    def listen(self, listener: Callable[[Event], None]) -> None:
        """Call `listener` with every event of later runs; see `millpond.events`."""
        if not callable(listener):
            raise OptionError(f"listen(): needs a function, not {type(listener).__name__}.")
        self._work.listeners.append(listener)

    @property
    def parts_folder(self) -> str:
        """Where this machine's tasks write their parts."""
        return self._work.worker_options.parts

    def __repr__(self) -> str:
        where = self.options.data_root or "no data_root"
        return f"Session(runtime={self.options.runtime!r}, {where})"

    # ---- sources ---------------------------------------------------------------------

    def read_parquet(
        self, paths: Paths, *, columns: Sequence[str] | None = None, recursive: bool = False,
        union_by_name: bool = False,
    ) -> DataFrame:  # fmt: skip
        """Parquet files: a path, a folder, a glob, a URI, or a list of them.

        Folders named `key=value` give columns. Other folders are entered if `recursive`. In a
        folder, names that begin with `_` or `.`, documents (`README`, `*.md`) and files of other
        formats (`*.json`) are left out; whatever else lies beside files that end in `.parquet`
        must be named by a pattern, or is an error. What is named is read.
        All files must have the same columns, unless `union_by_name`, which fills what
        one of them lacks with NULL.
        """
        where = _call("read_parquet", paths)
        return self._frame(
            self._sources.parquet(
                paths, where, columns=columns, recursive=recursive, union_by_name=union_by_name
            )
        )

    def read_csv(
        self, paths: Paths, schema: Mapping[str, str] | None = None, delim: str = ",", *,
        header: bool | None = None,
    ) -> DataFrame:  # fmt: skip
        """CSV files, also gzip or zstd. Types are found out once, unless `schema` says them."""
        where = _call("read_csv", paths)
        return self._frame(
            self._sources.csv(paths, where, schema=schema, delim=delim, header=header)
        )

    def read_json(self, paths: Paths, schema: Mapping[str, str] | None = None) -> DataFrame:
        """JSON files: one object a line, or an array per file; also gzip or zstd."""
        return self._frame(self._sources.json(paths, _call("read_json", paths), schema=schema))

    def read_arrow(self, paths: Paths) -> DataFrame:
        """Arrow IPC files or streams (Feather); local ones are mapped, not copied."""
        return self._frame(self._sources.arrow(paths, _call("read_arrow", paths)))

    def read_text(self, paths: Paths, *, whole: bool = False) -> DataFrame:
        """Text in UTF-8, also gzip or zstd: a row per line (`path`, `line`), or with `whole`
        one per file (`path`, `text`)."""
        return self._frame(self._sources.text(paths, _call("read_text", paths), whole=whole))

    def read_fixed(self, paths: Paths, fields: Mapping[str, int]) -> DataFrame:
        """Binary records of fixed width: `fields` gives the bytes of each, all BLOBs."""
        return self._frame(self._sources.fixed(paths, fields, _call("read_fixed", paths)))

    def read_delta(
        self, uri: str | os.PathLike[str], *, version: int | None = None,
        timestamp: str | datetime | None = None, columns: Sequence[str] | None = None,
    ) -> DataFrame:  # fmt: skip
        """A Delta Lake table as it is now, at a version, or at a time (UTC if it names no zone).

        Filters on its partition columns leave out whole files by the log alone. Deletion
        vectors and column mapping are refused. Needs the extra `delta`.
        """
        return self._frame(
            self._work.tables.delta(uri, columns=columns, version=version, timestamp=timestamp)
        )

    def read_iceberg(
        self, table: str | os.PathLike[str], *, catalog: Catalog = None,
        snapshot: int | None = None, as_of: str | datetime | None = None,
        columns: Sequence[str] | None = None,
    ) -> DataFrame:  # fmt: skip
        """An Iceberg table as it is now, at a snapshot's id, or at a time.

        `table` is its name in a catalogue (`"db.trips"`), its folder, or a `.metadata.json`.
        `catalog` names a configured one, gives its properties, or names a folder with an
        SQLite catalogue; without it, the configured `default` or the folder `warehouse`.
        Delete files are refused. Needs the extra `iceberg`.
        """
        return self._frame(
            self._work.tables.iceberg(
                table, columns=columns, catalog=catalog, snapshot=snapshot, as_of=as_of
            )
        )

    def _frame(self, plan: n.Node) -> DataFrame:
        return DataFrame(self._runner, plan)

    def from_items(self, items: Iterable[Any]) -> DataFrame:
        """Python values: dicts become columns, anything else a column `item`.

        >>> sp.from_items([{"a": 1}, {"a": 2}]).columns
        ['a']
        """
        return self.from_arrow(table_of(items))

    def from_arrow(self, rows: Any) -> DataFrame:
        """Anything with `__arrow_c_stream__`: pyarrow, Polars, a DuckDB relation."""
        import pyarrow as pa

        try:
            table = rows if isinstance(rows, pa.Table) else pa.table(rows)
        except (TypeError, ValueError) as error:
            raise OptionError(
                "from_arrow(): needs what Arrow can read (a table, a Polars frame, a DuckDB "
                f"relation), not {type(rows).__name__} ({error}). from_items() takes lists."
            ) from error
        if not table.num_columns:
            raise SchemaMismatch("from_arrow(): the rows have no columns.")
        for field in table.schema:
            if (deep := _depth(field.type)) > _DEEPEST:
                raise SchemaMismatch(
                    f"from_arrow(): {field.name!r} is nested {deep} levels deep; {_DEEPEST} can be "
                    "moved between processes. Keep it as JSON text."
                )
        schema = check(lambda: self._work.worker.engine.schema_of(table), "from_arrow()")
        return self._frame(n.DataSource(Scan("memory", schema), rows=ArrowRows(table)))

    def from_pandas(self, frame: pd.DataFrame) -> DataFrame:
        """A pandas frame, without its index."""
        return self.from_arrow(table_of_pandas(frame))

    # ---- queries ---------------------------------------------------------------------

    def sql(self, query: str, **frames: DataFrame) -> DataFrame:
        """SQL over whole frames by name, in DuckDB's dialect.

        >>> sp.sql("SELECT sum(item)::INTEGER AS s FROM t", t=sp.from_items([1, 2])).take(1)
        [{'s': 3}]
        """
        plans = {name: plan_of(frame, f"sql({name}=…)") for name, frame in frames.items()}
        return self._frame(build.global_sql(query, plans, "sql()", self._runner.dialect))

    def partial_sql(
        self, query: str, *frames: DataFrame, co_partitioned: bool | None = None
    ) -> DataFrame:
        """SQL on each partition; inputs are `{0}`, `{1}`, …, other braces are left alone.

        Partition counts are equal, or 1: that input goes to every partition.
        """

        plans = [plan_of(frame, "partial_sql()") for frame in frames]
        d = self._runner.dialect
        return self._frame(build.partial_sql(query, plans, "partial_sql()", d, co_partitioned))

    def wait(self, *frames: DataFrame) -> None:
        """Compute several frames, and do what lazy writes among them ask for."""
        for frame in frames:
            plan = plan_of(frame, "wait()")
            if isinstance(plan, n.DataSink):
                self._runner.write(plan)
            else:
                frame.compute()


def _call(method: str, paths: Paths) -> str:
    """The call as its errors show it: of many paths, the first."""
    if isinstance(paths, list | tuple) and len(paths) > 2:
        return f"{method}([{str(paths[0])!r}, … {len(paths)} paths])"
    shown = os.fspath(paths) if isinstance(paths, os.PathLike) else paths
    return f"{method}({shown!r})"


def _depth(kind: pa.DataType) -> int:
    return 1 + max((_depth(kind.field(i).type) for i in range(kind.num_fields)), default=0)
