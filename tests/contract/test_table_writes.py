"""Tables that are written: every type, strange values, modes, conflicts; read by both sides."""

import gc
import threading
from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import servers
from deltalake import DeltaTable
from places import Place, remote
from pyiceberg.catalog import load_catalog

import millpond
from millpond.errors import (
    FileUnreadable,
    NotAtomic,
    OptionError,
    SchemaMismatch,
    SqlError,
    StorageError,
    TableChanged,
    TargetNotEmpty,
)
from millpond.events import TaskFinished
from millpond.formats.iceberg_io import StorageIO
from millpond.options import options
from millpond.session import Session
from millpond.storage.object_client import ObjectClient
from millpond.storage.object_keys import Key
from millpond.storage.object_reads import Fetched

TABLE = pa.table(
    {
        "a": [1, 2, 3, 4],
        "s": ["x/y", None, "é =%", ".."],
        "d": [date(2026, 1, 1), None, date(2026, 1, 2), None],
        "at": pa.array([1, 2, None, 4], pa.timestamp("us", tz="UTC")),
        "plain": pa.array([1, 2, None, 4], pa.timestamp("us")),
        "m": pa.array([Decimal(1), None, Decimal(3), Decimal("0.5")], pa.decimal128(9, 2)),
        "deep": [{"u": 1, "v": ["a", None]}, None, {"u": 2, "v": []}, {"u": None, "v": None}],
        "map": pa.array([[("k", 1)], None, [], [("l", None)]], pa.map_(pa.string(), pa.int64())),
        "b": [b"\x00\xff", None, b"", b"'"],
        "yes": [True, None, False, True],
    }
)


@pytest.fixture(params=["auto", "staged"])
def sp(request: pytest.FixtureRequest) -> Iterator[Session]:
    with Session(options(shape=request.param, split_bytes=100, threads=2)) as session:
        yield session


class Tables:
    """One of the two formats, by the calls that the tests make of both."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.folder = kind, str(folder)

    def name(self, name: str) -> str:
        return f"{self.folder}/{name}" if self.kind == "delta" else f"db.{name}"

    def write(self, frame: Any, name: str, **more: Any) -> Any:
        if self.kind == "delta":
            return frame.write_delta(self.name(name), **more)
        return frame.write_iceberg(self.name(name), catalog=self.folder, **more)

    def read(self, sp: Session, name: str, **more: Any) -> Any:
        if self.kind == "delta":
            return sp.read_delta(self.name(name), **more)
        return sp.read_iceberg(self.name(name), catalog=self.folder, **more)

    def theirs(self, name: str) -> pa.Table:
        """What the library itself reads."""
        if self.kind == "delta":
            return DeltaTable(self.name(name)).to_pyarrow_table()
        catalog = load_catalog("default", type="sql", uri=f"sqlite:///{self.folder}/catalog.db")
        return catalog.load_table(self.name(name)).scan().to_arrow()


@pytest.fixture(params=["delta", "iceberg"])
def tables(request: pytest.FixtureRequest, tmp_path: Path) -> Tables:
    return Tables(request.param, tmp_path)


def ordered(table: pa.Table) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = table.select(TABLE.column_names).sort_by("a").to_pylist()
    return rows


@pytest.mark.slow
@pytest.mark.parametrize("keys", [None, "s", ["s", "d"], ["at", "m", "yes"], "plain"])
def test_what_is_written_is_read_by_us_and_by_the_library(
    sp: Session, tables: Tables, keys: Any
) -> None:
    frame = sp.from_arrow(TABLE)
    written = tables.write(frame, "t", partition_by=keys)
    assert written.rows == 4
    assert len(written.files) >= (4 if keys else 1)
    back = tables.read(sp, "t")
    assert {f.name: f.type for f in back.schema} == {f.name: f.type for f in frame.schema}
    assert ordered(back.to_arrow()) == TABLE.to_pylist()
    assert ordered(tables.theirs("t")) == TABLE.to_pylist()


def test_modes_refuse_add_and_replace(sp: Session, tables: Tables) -> None:
    frame = sp.from_arrow(TABLE)
    tables.write(frame, "t", partition_by="s")
    with pytest.raises(TargetNotEmpty, match="mode='overwrite'"):
        tables.write(frame, "t")
    tables.write(frame, "t", mode="append")  # The partitions are the table's.
    assert tables.read(sp, "t").count() == 8
    assert tables.read(sp, "t").filter("s = '..'").count() == 2
    tables.write(frame.filter("a > 1"), "t", mode="overwrite")
    assert tables.read(sp, "t").count() == tables.theirs("t").num_rows == 3
    with pytest.raises(OptionError, match="partitioned by s"):
        tables.write(frame, "t", mode="append", partition_by="d")
    with pytest.raises(SchemaMismatch, match="the table has the columns"):
        tables.write(frame.select("a", "s"), "t", mode="append")
    with pytest.raises(OptionError, match="mode='add'"):
        tables.write(frame, "t", mode="add")
    assert tables.read(sp, "t").count() == 3


def test_wider_types_take_the_place_of_those_that_a_table_lacks(
    sp: Session, tables: Tables
) -> None:
    columns = "a::UTINYINT AS a, 18446744073709551615::UBIGINT AS b, '[1]'::JSON AS c, a::HUGEINT e"
    tables.write(sp.from_arrow(TABLE).map(columns), "t")
    back = tables.read(sp, "t")
    assert [f.type for f in back.schema][1:] == ["DECIMAL(20,0)", "VARCHAR", "DECIMAL(38,0)"]
    assert back.sort("a").take(1) == [{"a": 1, "b": 18446744073709551615, "c": "[1]", "e": 1}]
    with pytest.raises(SchemaMismatch, match="'i' is INTERVAL"):
        tables.write(sp.from_arrow(TABLE).map("a, INTERVAL 1 DAY AS i"), "u")
    with pytest.raises(SchemaMismatch, match="'b' is BLOB"):
        tables.write(sp.from_arrow(TABLE), "u", partition_by="b")


def test_no_rows_are_a_table_with_columns(sp: Session, tables: Tables) -> None:
    tables.write(sp.from_arrow(TABLE).filter("a > 9"), "t", partition_by="d")
    assert tables.read(sp, "t").count() == 0
    assert set(tables.read(sp, "t").columns) == set(TABLE.column_names)


def test_a_write_that_another_one_overtakes_is_refused_or_follows_it(
    sp: Session, tables: Tables
) -> None:
    """A second writer commits while the first computes: nothing is lost and nothing is mixed."""
    frame = sp.from_arrow(TABLE)
    with Session(options(threads=2)) as other:
        others = other.from_arrow(TABLE).filter("a = 1")
        once: list[int] = []

        def overtake(event: object) -> None:
            if isinstance(event, TaskFinished) and not once:
                once.append(1)
                tables.write(others, "t", mode=mode)

        sp.listen(overtake)
        # Of two overwrites, Delta's library lets the second win, and Iceberg's refuses it.
        for mode, rows in (("error", {1}), ("append", {6}), ("overwrite", {4, 1})):
            once.clear()
            try:
                tables.write(frame, "t", mode=mode)
            except (TableChanged, TargetNotEmpty):
                assert mode != "append"
            assert tables.read(sp, "t").count() in rows
    assert tables.theirs("t").num_rows == tables.read(sp, "t").count()


def test_a_failing_commit_leaves_the_delta_table_and_no_file(
    sp: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "t")
    frame = sp.from_arrow(TABLE)
    frame.write_delta(path, partition_by="s")
    with pytest.raises(SchemaMismatch, match="an empty text in a partition column"):
        frame.map("* REPLACE ('' AS s)").write_delta(path, mode="append")
    assert sum(1 for _ in (tmp_path / "t").rglob("*.parquet")) == 4
    assert not list((tmp_path / "t").rglob(".millpond*"))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/a.txt").write_text("mine")
    with pytest.raises(StorageError, match="no Delta table"):
        frame.write_delta(tmp_path / "notes", mode="overwrite")


STRICT = pa.schema(
    [
        pa.field("a", pa.int32(), nullable=False),
        pa.field("in", pa.struct([pa.field("x", pa.int32(), nullable=False)])),
        pa.field("list", pa.list_(pa.field("element", pa.int32(), nullable=False))),
        pa.field("map", pa.map_(pa.string(), pa.field("value", pa.int32(), nullable=False))),
        ("free", pa.int32()),
    ]
)
GOOD: dict[str, Any] = {"a": 1, "in": {"x": 1}, "list": [1], "map": [("k", 1)], "free": None}


def test_metadata_that_an_error_cut_short_leaves_no_file(tmp_path: Path) -> None:
    files, path = StorageIO(), str(tmp_path / "m.avro")

    with pytest.raises(TypeError), files.new_output(path).create() as stream:
        stream.writelines([b"half", None])
    files.new_output(path).create().write(b"half, and never closed")
    gc.collect()
    assert list(tmp_path.rglob("*.*")) == []

    try:
        raise ZeroDivisionError
    except ZeroDivisionError:  # Written again, while the error is told.
        with files.new_output(path).create() as stream:
            stream.write(b"whole")
    assert files.new_input(path).open().read() == b"whole"
    with pytest.raises(StorageError), files.new_output(f"{path}/below").create() as stream:
        stream.write(b"a folder that is a file")
    assert [found.name for found in tmp_path.rglob("*.*")] == ["m.avro"]


def test_null_is_refused_where_the_table_does_not_allow_it(sp: Session, tables: Tables) -> None:
    if tables.kind == "delta":
        DeltaTable.create(tables.name("t"), STRICT)
    else:
        made = {"type": "sql", "uri": f"sqlite:///{tables.folder}/catalog.db"}
        catalog = load_catalog("default", **made, warehouse=f"file://{tables.folder}")
        catalog.create_namespace("db")
        catalog.create_table("db.t", STRICT)
    free = pa.schema([field.with_nullable(True) for field in STRICT])
    loose = free.set(1, pa.field("in", pa.struct([("x", pa.int32())])))
    good = [GOOD, {**GOOD, "in": None, "list": [], "map": None}, {**GOOD, "list": None, "map": []}]
    tables.write(sp.from_arrow(pa.Table.from_pylist(good, loose)), "t", mode="append")
    rows = tables.read(sp, "t").to_arrow().to_pylist()
    assert [row["in"] for row in rows] == [{"x": 1}, None, {"x": 1}]
    bad: dict[str, Any] = {"a": None, "in": {"x": None}, "list": [1, None], "map": [("k", None)]}
    for name, value in bad.items():
        frame = sp.from_arrow(pa.Table.from_pylist([GOOD, {**GOOD, name: value}], loose))
        with pytest.raises(SqlError, match=f"the column '{name}' holds NULL where the table"):
            tables.write(frame, "t", mode="append")
    assert tables.read(sp, "t").to_arrow().to_pylist() == rows
    assert len(list(Path(tables.folder).rglob("*.parquet"))) == 1


def test_columns_that_change_while_rows_are_appended_end_the_append(
    sp: Session, tmp_path: Path
) -> None:
    path = str(tmp_path / "t")
    sp.from_items([{"a": 1}]).write_delta(path)
    with Session(options(threads=2)) as other:
        once: list[int] = []

        def overtake(event: object) -> None:
            if isinstance(event, TaskFinished) and not once:
                once.append(1)
                other.from_items([{"z": "text"}]).write_delta(path, mode="overwrite")

        sp.listen(overtake)
        with pytest.raises(TableChanged, match="changed the table's columns"):
            sp.from_items([{"a": 2}]).write_delta(path, mode="append")
    assert DeltaTable(path).to_pyarrow_table().to_pylist() == [{"z": "text"}]
    assert len(list(Path(path).glob("*.parquet"))) == 2


def test_a_table_with_rules_for_its_rows_is_not_written_to(sp: Session, tmp_path: Path) -> None:
    path = str(tmp_path / "t")
    sp.from_items([{"a": 1}]).write_delta(path)
    DeltaTable(path).alter.add_constraint({"positive": "a > 0"})
    for mode in ("append", "overwrite"):
        with pytest.raises(FileUnreadable, match=r"rules for its rows \(delta\.constraints\.pos"):
            sp.from_items([{"a": -1}]).write_delta(path, mode=mode)
    assert sp.read_delta(path).take_all() == [{"a": 1}]


def test_a_table_that_only_takes_appends_is_not_overwritten(sp: Session, tmp_path: Path) -> None:
    path = str(tmp_path / "t")
    only = {"delta.appendOnly": "true"}
    DeltaTable.create(path, pa.schema([("a", pa.int64())]), configuration=only)
    sp.from_items([{"a": 1}]).write_delta(path, mode="append")
    with pytest.raises(FileUnreadable, match="only takes appends"):
        sp.from_items([{"a": 2}]).write_delta(path, mode="overwrite")
    assert sp.read_delta(path).take_all() == [{"a": 1}]


def test_an_overwrite_of_a_delta_table_may_change_its_columns(sp: Session, tmp_path: Path) -> None:
    path = str(tmp_path / "t")
    sp.from_arrow(TABLE).write_delta(path)
    sp.from_items([{"z": 1}]).write_delta(path, mode="overwrite")
    assert sp.read_delta(path).take_all() == [{"z": 1}]
    assert sp.read_delta(path, version=0).count() == 4


@pytest.fixture(params=["moto_server", "juicefs_server", "ceph_server"])
def there(request: pytest.FixtureRequest) -> tuple[Place, servers.Server]:
    server: servers.Server = request.getfixturevalue(request.param)
    return remote(server), server


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["auto", "staged"])
def test_tables_in_object_stores(
    there: tuple[Place, servers.Server], tmp_path: Path, shape: str
) -> None:
    place, server = there
    catalog = {
        "type": "sql", "uri": f"sqlite:///{tmp_path}/catalog.db", "warehouse": place.path("lake"),
    }  # fmt: skip
    given = options(shape=shape, threads=2, split_bytes=100, storage_options=server.options())
    with Session(given) as sp:
        frame = sp.from_arrow(TABLE)
        frame.write_delta(place.path("delta"), partition_by="s")
        back = sp.read_delta(place.path("delta"))
        assert ordered(back.to_arrow()) == TABLE.to_pylist()
        assert back.filter("s = 'x/y'").count() == 1
        if server.atomic:
            frame.write_delta(place.path("delta"), mode="append")
            assert sp.read_delta(place.path("delta"), timestamp=datetime.now(UTC)).count() == 8
        else:
            with pytest.raises(NotAtomic, match="ignores conditional writes"):
                frame.write_delta(place.path("delta"), mode="append")
        frame.write_iceberg("db.t", catalog=catalog, partition_by="s")
        assert ordered(sp.read_iceberg("db.t", catalog=catalog).to_arrow()) == TABLE.to_pylist()
        frame.write_iceberg("db.t", catalog=catalog, mode="append")
        assert sp.read_iceberg("db.t", catalog=catalog).filter("s = 'x/y'").count() == 2


def test_delta_keeps_the_columns_that_it_is_partitioned_by(tmp_path: Path) -> None:
    with millpond.init() as sp:
        sp.from_items([{"p": "a", "x": 1}]).write_delta(tmp_path / "t", partition_by="p")
        with pytest.raises(SchemaMismatch, match="partitioned by p, and the rows have no"):
            sp.from_items([{"z": 1}]).write_delta(tmp_path / "t", mode="overwrite")
        assert sp.read_delta(tmp_path / "t").count() == 1


def test_types_that_a_table_lacks_come_back_as_what_it_has(sp: Session, tables: Tables) -> None:
    given = "SELECT [1, 2]::INT[2] AS a, 'c0ffee00-0000-4000-8000-000000000001'::UUID AS b, "
    frame = sp.sql(given + "{'x[3]': [[1]::INT[1]]} AS c")
    for mode in ("error", "append"):
        tables.write(frame, "t", mode=mode)
    back = tables.read(sp, "t")
    assert [f.type for f in back.schema] == ["INTEGER[]", "VARCHAR", 'STRUCT("x[3]" INTEGER[][])']
    row = {"a": [1, 2], "b": "c0ffee00-0000-4000-8000-000000000001", "c": {"x[3]": [[1]]}}
    assert back.take_all() == [row, row]


def test_dates_that_python_lacks_are_kept(sp: Session, tables: Tables) -> None:
    dates = ["infinity", "-infinity", "0044-03-15 (BC)", "10000-01-01", "2026-01-02"]
    values = ", ".join(f"('{d}'::DATE, '{d}'::TIMESTAMP, {i})" for i, d in enumerate(dates))
    frame = sp.sql(f"SELECT * FROM (VALUES {values}) AS v (d, t, i)")
    tables.write(frame, "t")
    back = tables.read(sp, "t")
    assert [row["d"] for row in back.sort("i").map("d::VARCHAR AS d").take_all()] == dates
    assert back.filter("d < DATE '2000-01-01' AND t < TIMESTAMP '2000-01-01'").count() == 2
    assert back.filter("i = 4").map("t::VARCHAR AS t").take_all() == [{"t": "2026-01-02 00:00:00"}]
    with pytest.raises((SchemaMismatch, StorageError), match="'0044-03-15 .BC.'"):  # noqa: RUF043
        tables.write(frame.filter("i = 2"), "u", partition_by="d")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["delta", "iceberg"])
def test_only_the_files_and_columns_that_a_query_needs_are_read(
    moto_server: servers.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Counted at the storage: of which data files are bytes asked for, and how many."""
    place, n = remote(moto_server), 20_000
    catalog = {
        "type": "sql", "uri": f"sqlite:///{tmp_path}/catalog.db", "warehouse": place.path("lake"),
    }  # fmt: skip
    seen: dict[str, int] = {}
    fetch, lock = ObjectClient.fetch, threading.Lock()

    def counted(self: ObjectClient, at: Key, *more: Any) -> Fetched:
        answer = fetch(self, at, *more)
        with lock:
            if at.key.endswith(".parquet"):
                seen[at.key] = seen.get(at.key, 0) + answer.n_bytes
        return answer

    with Session(options(threads=2, storage_options=moto_server.options())) as sp:
        frame = sp.sql(
            "SELECT hash(i) >> 2 AS a, 'k' || i % 4 AS s, md5(i::VARCHAR) || md5((i + 1)::VARCHAR)"
            f" || md5((i + 2)::VARCHAR) AS wide FROM range({4 * n}) AS r (i)"
        ).map("a::BIGINT AS a, s, wide")
        if kind == "delta":
            frame.write_delta(place.path("t"), partition_by="s")
        else:
            frame.write_iceberg("db.t", catalog=catalog, partition_by="s")
        monkeypatch.setattr(ObjectClient, "fetch", counted)
        table = (
            sp.read_delta(place.path("t")) if kind == "delta"
            else sp.read_iceberg("db.t", catalog=catalog)
        )  # fmt: skip
        some = table.filter("s = 'k2'").select("a")
        found = sp.sql(
            "SELECT count(a) AS n, sum(a) > 0 AS more FROM chosen", chosen=some
        ).take_all()
    assert found == [{"n": n, "more": True}]
    assert seen
    assert all("/s=k2/" in path for path in seen)
    footers = 100_000 * len(seen)
    assert sum(seen.values()) <= 1.1 * 8 * n + footers  # One column of 8 bytes, of 104.
