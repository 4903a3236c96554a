"""The checked way to make a `DataSink`: mode, options, and the names of its files."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from millpond.errors import OptionError, SchemaMismatch
from millpond.expr import quote
from millpond.formats.shard_size import SHARD_NAME, ShardSize, checked_align
from millpond.plan import build
from millpond.plan import nodes as n
from millpond.plan.partitioning import partitioning
from millpond.plan.sink_options import Explain, literals

MODES = ("error", "overwrite", "append")
ENDINGS = {
    "parquet": (".parquet", ".parq", ".pq"),
    "csv": (".csv", ".tsv", ".csv.gz", ".csv.zst", ".tsv.gz", ".tsv.zst"),
    "json": (
        *(".json", ".jsonl", ".ndjson", ".json.gz", ".jsonl.gz", ".ndjson.gz"),
        *(".json.zst", ".jsonl.zst", ".ndjson.zst"),
    ),
    "arrow": (".arrow", ".feather", ".ipc"),
    "fixed": (".bin", ".dat", ".fixed"),
}


def sink(
    node: n.Node, format: str, path: str | os.PathLike[str], mode: str, options: Mapping[str, Any],
    partition_by: str | Sequence[str] | None = None, *, explain: Explain,
) -> n.DataSink:  # fmt: skip
    """Write `node` to a folder, or to one file where the path and the partitions say so.

    `explain` is the dialect's: DuckDB says whether it knows the options.
    """
    where = f"write_{format}({path!r})"
    try:
        target = os.fspath(path)
    except TypeError:
        raise OptionError(f"{where}: needs a path.") from None
    where = f"write_{format}({target!r})"
    checked_mode(mode, where)
    if not target:
        raise OptionError(f"{where}: the path is empty.")
    _check_schema(node, format, where)
    said = literals(options, format, node.schema, where, explain)
    said += _compression(format, target, options)
    keys = partition_keys(node, partition_by, where)
    count = partitioning(node).n
    if (
        not keys
        and target.lower().endswith(ENDINGS[format])
        and count in (None, 1)
        and mode != "append"
    ):
        whole = node if count == 1 else n.EvenPartition(node, 1, by_rows=True)
        return n.DataSink(whole, format, target, mode, said)
    name = f"part-{{partition}}{ENDINGS[format][0]}"
    return n.DataSink(node, format, target.rstrip("/"), mode, said, name, keys)


def dataset_sink(
    node: n.Node, path: str, rows_per_shard: int | None, size_bytes: int, align: int | None
) -> n.DataSink:
    """Write `node` as a training set: shards and an index."""
    where = f"write_dataset({path!r})"
    if not path:
        raise OptionError(f"{where}: the path is empty.")
    if not len(node.schema):
        raise SchemaMismatch(f"{where}: the frame has no columns; a sample needs at least one.")
    if rows_per_shard is not None:
        build.whole(rows_per_shard, where, "rows_per_shard", least=1)
    build.whole(size_bytes, where, "shard_bytes", least=1)
    options = {"rows_per_shard": rows_per_shard, "shard_bytes": size_bytes, "align": align}
    given = tuple((key, str(value)) for key, value in options.items() if value is not None)
    checked_align(align, where)
    return n.DataSink(node, "dataset", path.rstrip("/"), "error", given, SHARD_NAME)


def shard_size(sink: n.DataSink) -> ShardSize:
    """What the user asked of the shards of a `dataset_sink`."""
    options = {key: int(value) for key, value in sink.options}
    rows, align = options.get("rows_per_shard"), options.get("align")
    return ShardSize(rows, options["shard_bytes"], align)


def checked_mode(mode: str, where: str) -> None:
    if mode not in MODES:
        raise OptionError(f"{where}: mode={mode!r} is none of {', '.join(map(repr, MODES))}.")


def partition_keys(
    node: n.Node, partition_by: str | Sequence[str] | None, where: str
) -> tuple[str, ...]:
    """The columns that `partition_by` names, as the frame spells them."""
    fields = node.schema.named(partition_by or (), where)
    for field in fields:
        if field.type.endswith("]") or field.type.startswith(("STRUCT", "MAP", "UNION")):
            raise SchemaMismatch(
                f"{where}: {field.name!r} is {field.type}, which cannot be a folder's name. "
                "Partition by a plain column."
            )
    if len(set(fields)) < len(fields) or len(fields) == len(node.schema):
        raise SchemaMismatch(
            f"{where}: partition_by={partition_by!r} must name different columns, and leave at "
            f"least one for the files. There are: {', '.join(node.schema.names)}."
        )
    return tuple(field.name for field in fields)


def _compression(format: str, path: str, options: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Of the ending: DuckDB writes to a staged file, whose name says nothing."""
    codec = {"gz": "gzip", "zst": "zstd"}.get(path.lower().rpartition(".")[2])
    if format in ("csv", "json") and codec and "compression" not in options:
        return (("compression", quote.value(codec)),)
    return ()


def _check_schema(node: n.Node, format: str, where: str) -> None:
    if not len(node.schema):
        raise SchemaMismatch(f"{where}: the frame has no columns; a file needs at least one.")
    if format == "fixed":
        for field in node.schema:
            if field.type not in ("BLOB", "VARCHAR"):
                raise SchemaMismatch(
                    f"{where}: the column {field.name!r} is {field.type}; a field of a record "
                    "holds a BLOB or a VARCHAR of its width."
                )


def widths(node: n.Node, where: str) -> dict[str, int]:
    """The widths of the columns of `node` that come from `read_fixed`, by name."""
    import json

    known: dict[str, int] = {}
    stack = [node]
    while stack:
        at = stack.pop()
        stack += n.inputs_of(at)
        if isinstance(at, n.DataSource) and at.scan.format == "fixed":
            known |= json.loads(dict(at.scan.options)["fields"])
    unknown = [name for name in node.schema.names if name not in known]
    if unknown:
        raise OptionError(f"{where}: how wide is {unknown[0]!r}? Pass fields={{name: bytes, …}}.")
    return {name: known[name] for name in node.schema.names}
