"""What a frame gives when it is asked: rows, files, names and types, text."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

from millpond.errors import OptionError
from millpond.formats.iceberg import Catalog
from millpond.lazy import extra
from millpond.options import size
from millpond.plan import build, sinks
from millpond.plan import nodes as n
from millpond.plan.partitioning import partitioning
from millpond.runner import Runner
from millpond.schema import Schema
from millpond.targets import WriteResult

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    import pyarrow as pa


class Results:
    """A plan, and what can be asked of it. `DataFrame` adds the ways to another plan."""

    def __init__(self, runner: Runner, plan: n.Node | Callable[[], n.Node]) -> None:
        self._runner = runner
        self._given = plan
        self._kept: n.Node | None = None

    @property
    def plan(self) -> n.Node:
        """The logical plan. A Python function without `schema=` is tried on a few rows here."""
        if self._kept is not None:
            return self._kept
        if callable(self._given):
            self._given = self._given()
        return self._given

    # ---- results ---------------------------------------------------------------------

    def count(self) -> int:
        """How many rows there are."""
        return self._runner.count(self.plan)

    def take(self, n: int) -> list[dict[str, Any]]:
        """The first `n` rows as dicts."""
        return self._rows(build.limit(self.plan, n, f"take({n!r})"))

    def take_all(self) -> list[dict[str, Any]]:
        """All rows as dicts."""
        return self._rows(self.plan)

    def _rows(self, plan: n.Node) -> list[dict[str, Any]]:
        from millpond.engine.rows import table_rows

        rows = table_rows(self._runner.table(plan))
        # Sums of whole numbers are HUGEINT, which Arrow only has as a decimal.
        whole = [f.name for f in plan.schema if f.type in ("HUGEINT", "UHUGEINT")]
        for row in rows if whole else ():
            row.update({name: int(row[name]) for name in whole if row[name] is not None})
        return rows

    def to_arrow(self) -> pa.Table:
        """All rows as an Arrow table."""
        return self._runner.table(self.plan)

    def to_pandas(self) -> pd.DataFrame:
        """All rows as a pandas frame. Needs the extra `pandas`."""
        extra("pandas", extra="pandas", what="to_pandas()")
        from millpond.engine.values import as_format

        return as_format(self.to_arrow(), "pandas")

    def to_polars(self) -> pl.DataFrame:
        """All rows as a Polars frame. Needs the extra `polars`."""
        return extra("polars", extra="polars", what="to_polars()").from_arrow(self.to_arrow())

    def iter_batches(self, batch_size: int = 1024, format: str = "arrow") -> Iterator[Any]:
        """Batches of exactly `batch_size` rows, the last one shorter, in the given format."""
        build.whole(batch_size, "iter_batches()", "batch_size", least=1)
        return self._sized(batch_size, checked_format(format, "iter_batches()"))

    def _sized(self, batch_size: int, format: str) -> Iterator[Any]:
        from millpond.engine.pieces import sized
        from millpond.engine.values import as_format

        schema = self._runner.arrow_schema(self.schema)
        for batch in sized(self._runner.batches(self.plan), schema, batch_size):
            yield as_format(batch, format)

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self.to_arrow().__arrow_c_stream__(requested_schema)

    def compute(self) -> Self:
        """Compute now and keep the rows; frames derived later reuse them."""
        if self._kept is None:
            self._kept = self._runner.keep(self.plan)
        return self

    def is_computed(self) -> bool:
        """Whether the rows are kept."""
        return self._kept is not None

    def recompute(self) -> Self:
        """Forget kept rows and compute again."""
        self._kept = None
        return self.compute()

    # ---- files -----------------------------------------------------------------------

    def write_parquet(
        self, path: str | os.PathLike[str], *, mode: str = "error",
        partition_by: str | Sequence[str] | None = None, **parquet_options: Any,
    ) -> WriteResult:  # fmt: skip
        """Write Parquet, all or nothing: the folder `path` with one file per partition.

        A path that ends in `.parquet` is one file, unless a partition count was given.
        `mode`: "error" refuses a target that holds files, "overwrite" replaces them, "append"
        adds to them. Other options are those of DuckDB's COPY, such as `compression="zstd"`.
        `partition_by` puts rows into folders named `key=value`, in no particular order within.
        """
        return self._write("parquet", path, mode, parquet_options, partition_by)

    def write_csv(
        self, path: str | os.PathLike[str], *, mode: str = "error",
        partition_by: str | Sequence[str] | None = None, **csv_options: Any,
    ) -> WriteResult:  # fmt: skip
        """Write CSV with a header, as `write_parquet`; also `.csv.gz` and `.csv.zst`."""
        return self._write("csv", path, mode, {"header": True, **csv_options}, partition_by)

    def write_json(
        self, path: str | os.PathLike[str], *, mode: str = "error",
        partition_by: str | Sequence[str] | None = None, **json_options: Any,
    ) -> WriteResult:  # fmt: skip
        """Write one JSON object a line, as `write_parquet`; `array=True` for an array."""
        return self._write("json", path, mode, json_options, partition_by)

    def write_arrow(
        self, path: str | os.PathLike[str], *, mode: str = "error", **arrow_options: Any
    ) -> WriteResult:
        """Write Arrow IPC files, as `write_parquet`; `compression="lz4"` or `"zstd"`."""
        return self._write("arrow", path, mode, arrow_options)

    def write_fixed(
        self, path: str | os.PathLike[str], fields: Mapping[str, int] | None = None, *,
        mode: str = "error",
    ) -> WriteResult:  # fmt: skip
        """Write binary records of fixed width, as `write_parquet`; `fields` as in `read_fixed`.

        Without `fields`, the widths are those that a `read_fixed` below has.
        """
        where = f"write_fixed({str(path)!r})"
        widths = fields or sinks.widths(self.plan, where)
        return self._write("fixed", path, mode, {"fields": json.dumps(dict(widths))})

    def write_delta(
        self, uri: str | os.PathLike[str], *, mode: str = "error",
        partition_by: str | Sequence[str] | None = None, **parquet_options: Any,
    ) -> WriteResult:  # fmt: skip
        """Write a Delta Lake table, or to one, in a single transaction of its log.

        `mode`: "error" refuses a table that is there, "append" adds to it (same columns),
        "overwrite" replaces all rows and the columns; older versions stay readable. Types
        that Delta lacks become wider ones. Raises `TableChanged` where another writer was
        faster and both cannot stand. Needs the extra `delta`.
        """
        return self._runner.write_delta(
            self.plan, os.fspath(uri), mode, partition_by, parquet_options
        )

    def write_iceberg(
        self, table: str, *, mode: str = "error", partition_by: str | Sequence[str] | None = None,
        catalog: Catalog = None, **parquet_options: Any,
    ) -> WriteResult:  # fmt: skip
        """Write an Iceberg table by its name in a catalogue, in a single commit.

        `catalog` as in `read_iceberg`, modes as in `write_delta`, but "overwrite" keeps the
        columns. `partition_by` makes identity partitions. Needs the extra `iceberg`.
        """
        return self._runner.write_iceberg(
            self.plan, table, mode, partition_by, catalog, parquet_options
        )

    def write_dataset(
        self, path: str, *, rows_per_shard: int | None = None, shard_bytes: str | int = "256MB",
        align: int | None = None,
    ) -> WriteResult:  # fmt: skip
        """Write a training set for `millpond.open_dataset`: shards and one index, all or nothing.

        Shards hold about `shard_bytes`, or exactly `rows_per_shard` rows. `align` keeps
        samples from straddling chunks of a store. `path` must be empty. Rows keep the
        frame's order, and the same rows make the same shards, on however many workers: one
        task writes one. Reads all rows twice: once to know where they are to be cut.
        """
        most = size("shard_bytes", shard_bytes)
        path = os.fspath(path)
        return self._runner.write(sinks.dataset_sink(self.plan, path, rows_per_shard, most, align))

    def _write(
        self, format: str, path: str | os.PathLike[str], mode: str, options: Mapping[str, Any],
        partition_by: str | Sequence[str] | None = None,
    ) -> WriteResult:  # fmt: skip
        plan = sinks.sink(
            self.plan,
            format,
            path,
            mode,
            options,
            partition_by,
            explain=self._runner.dialect.explain,
        )
        return self._runner.write(plan)

    # ---- looking ---------------------------------------------------------------------

    @property
    def schema(self) -> Schema:
        """Names and DuckDB types."""
        return self.plan.schema

    @property
    def columns(self) -> list[str]:
        """Names."""
        return list(self.plan.schema.names)

    @property
    def num_partitions(self) -> int:
        """How many partitions the rows come in, without running anything."""
        return partitioning(self.plan).n or self._runner.partitions(self.plan)

    def explain(
        self, *, optimized: bool = True, physical: bool = False, analyze: bool = False
    ) -> str:
        """The plan as text: as written, optimised, or as stages and tasks."""
        return self._runner.explain(
            self.plan, optimized=optimized, physical=physical, analyze=analyze
        )

    def show(self, n: int = 10) -> None:
        """Print the first `n` rows as a table."""
        from millpond.report.table import print_table

        plan = build.limit(self.plan, n, f"show({n!r})")
        print_table(self._rows(plan), self.columns)

    def __repr__(self) -> str:
        return f"DataFrame({self.schema})"

    def _repr_html_(self) -> str:
        from millpond.report.table import html_table

        return html_table(self.take(20), self.columns)


def checked_format(format: str, where: str) -> str:
    if format not in ("arrow", "pandas", "numpy"):
        raise OptionError(f"{where}: format={format!r} is none of 'arrow', 'pandas', 'numpy'.")
    if format == "pandas":
        extra("pandas", extra="pandas", what=f"{where} with format='pandas'")
    return format
