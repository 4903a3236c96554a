"""Delta and Iceberg tables: what their own libraries wrote is read, in both shapes."""

import sys
import traceback
from collections.abc import Iterator
from datetime import UTC, date, datetime, time
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from pyiceberg.catalog import load_catalog
from pyiceberg.partitioning import PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.transforms import TruncateTransform
from pyiceberg.typedef import Record
from pyiceberg.types import LongType, NestedField, StringType

from millpond.errors import FileUnreadable, MissingExtra, OptionError, PathNotFound, StorageError
from millpond.formats import iceberg
from millpond.formats.tables import check_place
from millpond.options import options
from millpond.session import Session

STRANGE = ["x/y", None, "é =%", "a=b", "'", ".."]
DAYS = [date(2026, 1, 1), date(2026, 1, 2), None]


@pytest.fixture(params=["auto", "staged"])
def sp(request: pytest.FixtureRequest) -> Iterator[Session]:
    with Session(options(shape=request.param, split_bytes=1_000, threads=2)) as session:
        yield session


def rows(n: int = 36) -> list[dict[str, Any]]:
    return [
        {"a": i, "s": STRANGE[i % 6], "d": DAYS[i // 6 % 3], "m": Decimal(i) / 4} for i in range(n)
    ]


COLUMNS = pa.schema(
    [("a", pa.int64()), ("s", pa.string()), ("d", pa.date32()), ("m", pa.decimal128(9, 2))]
)


def n_files(frame: Any) -> int:
    """How many files the optimised plan reads."""
    (line,) = [line for line in frame.explain().splitlines() if "DataSource" in line]
    return int(line.split(" files")[0].split()[-1])


@pytest.fixture(scope="module")
def delta_table(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Version 0 has four columns; version 1 adds a row with one more."""
    path = str(tmp_path_factory.mktemp("delta") / "table")
    write_deltalake(path, pa.Table.from_pylist(rows(), schema=COLUMNS), partition_by=["s", "d"])
    more = {**rows(1)[0], "a": 100, "new": "text"}
    columns = COLUMNS.append(pa.field("new", pa.string()))
    write_deltalake(
        path, pa.Table.from_pylist([more], schema=columns), mode="append", schema_mode="merge"
    )
    return path


def test_a_delta_table_is_read_with_strange_and_missing_partition_values(
    sp: Session, delta_table: str
) -> None:
    frame = sp.read_delta(delta_table)
    assert dict(zip(frame.columns, frame.schema.types, strict=True)) == {
        "a": "BIGINT", "m": "DECIMAL(9,2)", "s": "VARCHAR", "d": "DATE", "new": "VARCHAR",
    }  # fmt: skip
    theirs = DeltaTable(delta_table).to_pyarrow_table().select(frame.columns)
    assert frame.sort("a").take_all() == theirs.sort_by("a").to_pylist()
    assert sp.read_delta(delta_table, columns=["d", "a"]).columns == ["d", "a"]


def test_a_filter_on_partition_columns_leaves_files_out(sp: Session, delta_table: str) -> None:
    frame = sp.read_delta(delta_table)
    assert n_files(frame) == 19
    some = frame.filter("s = 'x/y' AND a > 3")
    assert n_files(some) == 4
    assert sorted(row["a"] for row in some.take_all()) == [6, 12, 18, 24, 30, 100]
    none = frame.filter("d IS NULL").filter("s IS NULL")
    assert n_files(none) == 1
    assert sorted(row["a"] for row in none.take_all()) == [13, 31]
    assert frame.filter("d > DATE '2030-01-01'").count() == 0
    assert frame.filter("s = 'x/y' OR a = 1").count() == 8  # Nothing can be left out.


def test_versions_and_times_of_a_delta_table(sp: Session, delta_table: str) -> None:
    assert sp.read_delta(delta_table, version=0).count() == 36
    assert "new" not in sp.read_delta(delta_table, version=0).columns
    assert sp.read_delta(delta_table, timestamp=datetime.now(UTC)).count() == 37
    with pytest.raises(OptionError, match="no version 7; the table has 0 to 1"):
        sp.read_delta(delta_table, version=7)
    with pytest.raises(OptionError, match="its first version is of 20"):
        sp.read_delta(delta_table, timestamp="2001-01-01")
    with pytest.raises(OptionError, match="not both"):
        sp.read_delta(delta_table, version=0, timestamp="2001-01-01")


def test_what_is_no_table_or_not_supported_is_one_clear_error(
    sp: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    for path in ("empty", "nothing"):
        with pytest.raises(PathNotFound, match="no Delta table"):
            sp.read_delta(tmp_path / path)
        with pytest.raises(PathNotFound, match="no Iceberg table"):
            sp.read_iceberg(tmp_path / path)
    mapped = {"delta.columnMapping.mode": "name", "delta.minReaderVersion": "2"}
    table = tmp_path / "mapped"
    write_deltalake(table, pa.table({"a": [1]}))
    log = table / "_delta_log/00000000000000000000.json"
    text = log.read_text().replace('"configuration":{}', f'"configuration":{mapped}')
    log.write_text(text.replace("'", '"'))
    with pytest.raises(FileUnreadable, match="column mapping"):
        sp.read_delta(table)
    for module in ("deltalake", "deltalake.exceptions"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match=r"millpond\[delta\]"):
        sp.read_delta(table)


def test_a_column_whose_name_begins_with_a_dot_is_a_key(sp: Session, tmp_path: Path) -> None:
    for i, name in enumerate((".k", "[0]", "a.b")):
        path = tmp_path / str(i)
        write_deltalake(path, pa.table({name: ["x", "y"], "v": [1, 2]}), partition_by=[name])
        assert sp.read_delta(path).filter("v = 2").take_all() == [{name: "y", "v": 2}]


@pytest.mark.parametrize("given", ["0", 1.0, True])
def test_what_is_no_version_is_an_error(sp: Session, delta_table: str, given: Any) -> None:
    with pytest.raises(OptionError, match="is no version"):
        sp.read_delta(delta_table, version=given)


@pytest.mark.parametrize("given", ["yesterday", 5])
def test_what_is_no_time_is_an_error(
    sp: Session, delta_table: str, iceberg_catalog: str, given: Any
) -> None:
    with pytest.raises(OptionError, match=f"timestamp={given!r} is no time"):
        sp.read_delta(delta_table, timestamp=given)
    with pytest.raises(OptionError, match=f"as_of={given!r} is no time"):
        sp.read_iceberg("db.t", catalog=iceberg_catalog, as_of=given)
    assert sp.read_delta(delta_table, timestamp=date(2999, 1, 1)).count() == 37  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["../outside.parquet", "a/../../outside.parquet", "a//b.parquet"])
def test_a_log_that_leads_out_of_its_table_is_refused(
    sp: Session, tmp_path: Path, name: str
) -> None:
    write_deltalake(tmp_path / "t", pa.table({"a": [1]}))
    (file,) = (tmp_path / "t").glob("*.parquet")
    file.rename(tmp_path / "outside.parquet")
    log = tmp_path / "t/_delta_log/00000000000000000000.json"
    log.write_text(log.read_text().replace(file.name, name))
    with pytest.raises(StorageError, match="would lead out of it"):
        sp.read_delta(tmp_path / "t")


def test_rows_that_deletion_vectors_delete_are_not_read(
    sp: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library writes none, so its answer for a table that has some is made up."""
    switched_on = {"delta.enableDeletionVectors": "true"}
    write_deltalake(tmp_path / "t", pa.table({"a": [1]}), configuration=switched_on)
    assert sp.read_delta(tmp_path / "t").take_all() == [{"a": 1}]  # It has none yet.
    monkeypatch.setattr(DeltaTable, "deletion_vectors", lambda self: pa.table({"path": ["x"]}))
    with pytest.raises(FileUnreadable, match="deleted by deletion vectors"):
        sp.read_delta(tmp_path / "t")


def test_a_table_in_a_store_names_no_file_of_this_machine() -> None:
    check_place("s3://b/t", "s3://c/x.parquet", "read")
    check_place("/t", "s3://c/x.parquet", "read")
    check_place("/t", "/u/x.parquet", "read")
    for path in ("/etc/x.parquet", "file:///etc/x.parquet", "x.parquet"):
        with pytest.raises(StorageError, match="a file of this machine"):
            check_place("s3://b/t", path, "read")


def test_no_traceback_shows_what_the_library_said(sp: Session, tmp_path: Path) -> None:
    with pytest.raises(PathNotFound) as found:
        sp.read_delta(tmp_path / "nothing")
    assert "During handling" not in "".join(traceback.format_exception(found.value))


ICEBERG_COLUMNS = pa.schema(
    [
        *COLUMNS,
        ("at", pa.timestamp("us", tz="UTC")),
        ("deep", pa.struct([("u", pa.int32()), ("v", pa.list_(pa.string()))])),
        ("map", pa.map_(pa.string(), pa.int64())),
        ("id", pa.uuid()),
        ("clock", pa.time64("us")),
    ]
)


def iceberg_rows(n: int) -> list[dict[str, Any]]:
    more = {
        "at": datetime(2026, 1, 1, tzinfo=UTC), "deep": {"u": 1, "v": ["x", None]},
        "map": [("k", 1)], "id": UUID(int=7).bytes, "clock": time(1, 2, 3),
    }  # fmt: skip
    return [row | more for row in rows(n)]


@pytest.fixture(scope="module")
def iceberg_catalog(tmp_path_factory: pytest.TempPathFactory) -> str:
    """`db.t`: 36 rows, then `a` is renamed and becomes wider, `new` is added, and one row more."""
    folder = str(tmp_path_factory.mktemp("iceberg"))
    catalog = load_catalog(
        "default", type="sql", uri=f"sqlite:///{folder}/catalog.db", warehouse=f"file://{folder}"
    )
    catalog.create_namespace("db")
    columns = ICEBERG_COLUMNS.set(0, pa.field("a", pa.int32()))
    table = catalog.create_table("db.t", columns)
    with table.update_spec() as spec:
        spec.add_identity("s").add_identity("d")
    table.append(pa.Table.from_pylist(iceberg_rows(36), schema=columns))
    with table.update_schema() as schema:
        schema.update_column("a", LongType())
        schema.rename_column("a", "b")
        schema.add_column("new", StringType())
    table = catalog.load_table("db.t")
    (row,) = iceberg_rows(1)
    row["b"] = row.pop("a") + 100
    table.append(pa.Table.from_pylist([row | {"new": "text"}], schema=table.schema().as_arrow()))
    return folder


def test_an_iceberg_table_is_read_with_renamed_widened_and_added_columns(
    sp: Session, iceberg_catalog: str
) -> None:
    frame = sp.read_iceberg("db.t", catalog=iceberg_catalog)
    assert frame.schema.field("b", "").type == "BIGINT"
    found = frame.select("b", "s", "d", "m", "new", "clock", "id").sort("b").take_all()
    old = [{"b": row.pop("a"), **row, "new": None} for row in rows()]
    new = {**old[0], "b": 100, "new": "text"}
    more = {"clock": time(1, 2, 3), "id": str(UUID(int=7))}
    assert found == [row | more for row in (*old, new)]
    assert frame.filter("b = 5").take(1)[0]["deep"] == {"u": 1, "v": ["x", None]}
    assert sp.read_iceberg(f"{iceberg_catalog}/db/t", columns=["new"]).columns == ["new"]


def test_filters_and_snapshots_of_an_iceberg_table(sp: Session, iceberg_catalog: str) -> None:
    frame = sp.read_iceberg("db.t", catalog=iceberg_catalog)
    some = frame.filter("s = 'é =%' AND b < 20")
    assert (n_files(frame), n_files(some)) == (19, 3)
    assert sorted(row["b"] for row in some.take_all()) == [2, 8, 14]
    catalog = load_catalog("default", type="sql", uri=f"sqlite:///{iceberg_catalog}/catalog.db")
    first = catalog.load_table("db.t").metadata.snapshots[0].snapshot_id
    assert sp.read_iceberg("db.t", catalog=iceberg_catalog, snapshot=first).count() == 36
    old = sp.read_iceberg("db.t", catalog=iceberg_catalog, snapshot=first)
    assert old.columns == ICEBERG_COLUMNS.names
    now = datetime.now(UTC)
    assert sp.read_iceberg("db.t", catalog=iceberg_catalog, as_of=now).count() == 37
    with pytest.raises(OptionError, match="no snapshot 7"):
        sp.read_iceberg("db.t", catalog=iceberg_catalog, snapshot=7)
    with pytest.raises(OptionError, match="no snapshot yet"):
        sp.read_iceberg("db.t", catalog=iceberg_catalog, as_of="2001-01-01")
    with pytest.raises(PathNotFound, match="Table does not exist"):
        sp.read_iceberg("db.other", catalog=iceberg_catalog)


def test_an_iceberg_table_whose_rows_were_deleted_one_by_one_is_refused(
    sp: Session, iceberg_catalog: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyiceberg.table import FileScanTask

    init = FileScanTask.__init__

    def deleted(self: Any, *args: Any, **named: Any) -> None:
        init(self, *args, **named)
        self.delete_files = {"a file"}

    monkeypatch.setattr(FileScanTask, "__init__", deleted)
    with pytest.raises(FileUnreadable, match="delete files"):
        sp.read_iceberg("db.t", catalog=iceberg_catalog)


def test_the_newest_metadata_is_that_of_the_highest_number(sp: Session, tmp_path: Path) -> None:
    """Hadoop's tables count v9, v10; without a catalogue nothing else tells which is newer."""
    catalog = load_catalog(
        "default", type="sql", uri=f"sqlite:///{tmp_path}/c.db", warehouse=f"file://{tmp_path}"
    )
    catalog.create_namespace("db")
    table = catalog.create_table("db.t", pa.schema([("a", pa.int64())]))
    table.append(pa.table({"a": [1]}))
    table.append(pa.table({"a": [2]}))
    folder = Path(table.location().removeprefix("file://"))
    for number, path in enumerate(sorted(folder.glob("metadata/*.metadata.json")), start=8):
        path.rename(folder / f"metadata/v{number}.metadata.json")
    assert sp.read_iceberg(folder).sort("a").take_all() == [{"a": 1}, {"a": 2}]


def test_renames_that_cannot_be_followed_are_refused(sp: Session, tmp_path: Path) -> None:
    catalog = load_catalog(
        "default",
        type="sql",
        uri=f"sqlite:///{tmp_path}/catalog.db",
        warehouse=f"file://{tmp_path}",
    )
    catalog.create_namespace("db")
    columns = pa.schema([("a", pa.int64()), ("deep", pa.struct([("u", pa.int64())]))])
    by_name = {"schema.name-mapping.default": '[{"field-id": 1, "names": ["a"]}]'}
    for name, old, new, properties, why in (
        ("nested", "deep.u", "w", {}, "it is nested"),
        ("named", "a", "b", by_name, "its files are read by name"),
    ):
        table = catalog.create_table(f"db.{name}", columns, properties=properties)
        table.append(pa.table({"a": [1], "deep": [{"u": 2}]}, columns))
        with table.update_schema() as schema:
            schema.rename_column(old, new)
        with pytest.raises(FileUnreadable, match=f"was renamed, and {why}"):
            sp.read_iceberg(f"db.{name}", catalog=tmp_path)


def test_a_condition_that_varies_leaves_no_file_out(sp: Session, delta_table: str) -> None:
    frame = sp.read_delta(delta_table)
    assert n_files(frame.filter("s = 'x/y'")) < n_files(frame)
    assert n_files(frame.filter("s = 'x/y' OR random() < 0")) == n_files(frame)


def test_a_key_is_found_beside_another_transform_of_its_column(
    sp: Session, iceberg_catalog: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`truncate(s)` before `s`: the library does not write it without more parts of its own."""
    table = load_catalog("default", type="sql", uri=f"sqlite:///{iceberg_catalog}/catalog.db")
    found = table.load_table("db.t")
    (plain, *_) = found.spec().fields
    other = plain.model_copy(update={"transform": TruncateTransform(1), "field_id": 1099})
    spec = PartitionSpec(other, plain, spec_id=7)
    monkeypatch.setattr(type(found), "specs", lambda self: {7: spec})
    file = SimpleNamespace(spec_id=7, partition=Record("x", "x/y"))
    assert iceberg._keys(found, found.schema(), [file]) == [plain.source_id]
    assert iceberg._values(found, found.schema(), [plain.source_id], file) == ("x/y",)


def test_a_value_for_files_that_lack_a_column_is_refused() -> None:
    columns = Schema(NestedField(1, "a", LongType()), NestedField(2, "b", LongType()))
    iceberg._check_defaults(columns, "read")
    with_value = NestedField(2, "b", LongType(), initial_default=7)
    with pytest.raises(FileUnreadable, match=r"'b' has a value for files that lack it"):
        iceberg._check_defaults(Schema(columns.fields[0], with_value), "read")
