"""The public interface: a name, an argument, or a default is not changed without being seen."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import millpond
from millpond.loader import Dataset
from millpond.loader.mixture import Mixture
from millpond.options import options

# By place; behind a star, by name alone. What a call may take besides, by name, is not listed.
INIT = """data_root=None *runtime=None *address=None *threads=None *memory_limit=None
    *storage_options=None *progress=None *seed=None *shape=None *verify=None *name=None"""
LOADER = """batch_size *shuffle=False *seed=None *rank=0 *world=1 *epochs=1 *columns=None
    *filter=None *drop_last=False *pad=False *format='numpy' *prefetch=2 *pack=None *tokens=None"""
S, F = millpond.Session, millpond.DataFrame
FN = "*schema=None *key=None *deterministic=True"
ON_CPUS = f"{FN} *format='arrow' *cpus=1 *gpus=0"
SIGNATURES: dict[Callable[..., Any], str] = {
    millpond.init: INIT,
    millpond.open_dataset: "path storage_options=None",
    millpond.mix: "datasets weights seed=0",
    Dataset.loader: LOADER,
    Mixture.loader: LOADER,
    S.read_parquet: "paths *columns=None *recursive=False *union_by_name=False",
    S.read_csv: "paths schema=None delim=',' *header=None",
    S.read_json: "paths schema=None",
    S.read_arrow: "paths",
    S.read_text: "paths *whole=False",
    S.read_fixed: "paths fields",
    S.read_delta: "uri",
    S.read_iceberg: "table",
    S.from_items: "items",
    S.from_arrow: "rows",
    S.from_pandas: "frame",
    S.sql: "query **frames",
    S.partial_sql: "query *frames *co_partitioned=None",
    S.wait: "*frames",
    S.close: "",
    F.map: f"sql_or_fn *udfs=None {FN}",
    F.select: "*columns_or_sql",
    F.with_columns: "**sql",
    F.rename: "names",
    F.drop: "*names",
    F.flat_map: f"sql_or_fn {FN}",
    F.filter: "sql_or_fn *key=None *deterministic=True",
    F.map_batches: f"fn_or_class *batch_size=122880 {ON_CPUS}",
    F.map_partitions: f"fn {ON_CPUS}",
    F.map_groups: f"by fn {ON_CPUS}",
    F.repartition: "n *hash_by=None *by=None *by_rows=False",
    F.random_shuffle: "seed=None",
    F.partial_sort: "by",
    F.sort: "by",
    F.join: "other on=None how='inner' suffix='_right'",
    F.union: "*others",
    F.distinct: "*columns",
    F.group_by: "*keys",
    F.limit: "n",
    F.sample: "fraction seed=None",
    F.write_parquet: "path *mode='error' **parquet_options",
    F.write_parquet_lazy: "path *mode='error' **parquet_options",
    F.write_csv: "path *mode='error'",
    F.write_json: "path *mode='error'",
    F.write_arrow: "path *mode='error'",
    F.write_fixed: "path fields=None *mode='error'",
    F.write_delta: "uri *mode='error'",
    F.write_dataset: "path *rows_per_shard=None *shard_bytes='256MB' *align=None",
    F.compute: "",
    F.is_computed: "",
    F.recompute: "",
    F.count: "",
    F.take: "n",
    F.take_all: "",
    F.to_arrow: "",
    F.to_pandas: "",
    F.to_polars: "",
    F.iter_batches: "batch_size=1024 format='arrow'",
    F.explain: "*optimized=True *physical=False *analyze=False",
    F.show: "n=10",
}


def told(function: Callable[..., Any]) -> list[str]:
    found = []
    for parameter in inspect.signature(function).parameters.values():
        star = {parameter.KEYWORD_ONLY: "*", parameter.VAR_POSITIONAL: "*"}.get(parameter.kind, "")
        star = "**" if parameter.kind is parameter.VAR_KEYWORD else star
        default = "" if parameter.default is parameter.empty else f"={parameter.default!r}"
        found.append(f"{star}{parameter.name}{default}")
    return [word for word in found if word != "self"]


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda f: f.__qualname__)
def test_a_call_takes_what_it_promises(function: Callable[..., Any]) -> None:
    here, promised = told(function), SIGNATURES[function].split()
    assert set(promised) <= set(here)
    by_place = [word for word in promised if not word.startswith("*")]
    assert [word for word in here if not word.startswith("*")] == by_place


def test_what_init_is_not_told_has_these_defaults() -> None:
    plain = options()
    assert (plain.runtime, plain.seed, plain.shape, plain.verify) == ("local", 0, "auto", "parts")
    assert (plain.data_root, plain.address, plain.progress, plain.name) == (None,) * 4


FROM_OUTSIDE = {  # The variable's text, what it means, and an argument that wins.
    "data_root": ("root", str(Path("root").absolute()), str(Path("other").absolute())),
    "runtime": ("ray", "ray", "local"),
    "address": ("host:6379", "host:6379", None),
    "threads": ("3", 3, 2),
    "memory_limit": ("1GB", 10**9, 2 * 10**9),
    "progress": ("false", False, True),
    "seed": ("5", 5, 0),
    "shape": ("staged", "staged", "auto"),
    "verify": ("rows", "rows", "parts"),
    "name": ("mine", "mine", "yours"),
    "task_timeout": ("30", 30.0, 20.0),
    "allow_insecure": ("true", True, False),
}


@pytest.mark.parametrize("name", FROM_OUTSIDE)
def test_an_option_comes_from_the_environment_and_an_argument_wins(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, meant, argument = FROM_OUTSIDE[name]
    field = "memory_limit_bytes" if name == "memory_limit" else name
    monkeypatch.setenv(f"MILLPOND_{name.upper()}", text)
    assert getattr(options(), field) == meant
    if argument is not None:
        assert getattr(options(**{name: argument}), field) == argument


def test_every_option_is_among_those() -> None:
    rest = {"storage_options"}  # Stores have an environment of their own.
    assert {*inspect.signature(millpond.init).parameters} - rest == {*FROM_OUTSIDE}


def test_names_that_are_not_calls() -> None:
    assert {"schema", "columns", "num_partitions"} <= {
        name for name, item in vars(F).items() if isinstance(item, property)
    } | {name for name, item in inspect.getmembers(F, lambda item: isinstance(item, property))}
    assert set(millpond.WriteResult.__dataclass_fields__) == {"files", "rows", "bytes"}
    assert issubclass(millpond.TaskError, millpond.MillpondError)
    for name in ("__arrow_c_stream__", "_repr_html_"):
        assert callable(getattr(F, name))
