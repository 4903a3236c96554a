"""Sources: types fixed once at the call, every row once, in both shapes."""

import gzip
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from millpond.errors import (
    FileUnreadable,
    OptionError,
    PathNotFound,
    SchemaMismatch,
)
from millpond.options import options
from millpond.session import Session


@pytest.fixture(params=["fused", "staged"])
def sp(request: pytest.FixtureRequest) -> Iterator[Session]:
    with Session(options(shape=request.param, split_bytes=1, threads=2)) as session:
        yield session


def values(frame: Any, name: str) -> list[Any]:
    return [row[name] for row in frame.take_all()]


# ---- CSV -----------------------------------------------------------------------------


def write(folder: Path, **files: str) -> str:
    for name, text in files.items():
        folder.mkdir(exist_ok=True)
        (folder / name.replace("__", ".")).write_text(text)
    return str(folder)


def test_a_header_never_becomes_a_row(sp: Session, tmp_path: Path) -> None:
    folder = write(tmp_path, a__csv="id,s\n1,x\n2,y\n", b__csv="id,s\n3,z\n", c__csv="id,s\n")

    frame = sp.read_csv(folder)

    assert str(frame.schema) == "id BIGINT, s VARCHAR"
    assert values(frame.repartition(7, by_rows=True), "id") == [1, 2, 3]
    assert values(frame.repartition(2), "id") == [1, 2, 3]


def test_csv_types_fit_all_files_not_only_the_first(sp: Session, tmp_path: Path) -> None:
    folder = write(tmp_path, a__csv="k,v\n1,2\n", b__csv="k,v\n1.5,x\n")

    frame = sp.read_csv(folder)

    assert frame.schema.types == ("DOUBLE", "VARCHAR")
    assert values(frame, "v") == ["2", "x"]


def test_infinite_dates_of_csv_and_those_written_otherwise(sp: Session, tmp_path: Path) -> None:
    # DuckDB's sniffer calls the format %Y-%m-%d, but does not read by it.
    dates = ["2020-01-01"] * 25_000 + ["infinity", "-infinity", "2020/02/03"]
    path = write(tmp_path, a__csv="\n".join(["d", *dates]))

    told = sp.read_csv(path).filter("d <> '2020-01-01'").map("d::VARCHAR AS d")
    assert sorted(values(told, "d")) == ["-infinity", "2020-02-03", "infinity"]


def test_csv_quotes_delimiters_and_newlines(sp: Session, tmp_path: Path) -> None:
    folder = write(tmp_path, a__csv='a;b\n1;"x;y"\n2;"two\nlines ""q"""\n', b__csv="a;b\n3;ü\n")

    frame = sp.read_csv(folder, delim=";")

    assert values(frame, "b") == ["x;y", 'two\nlines "q"', "ü"]


def test_csv_with_a_schema_and_without_a_header(sp: Session, tmp_path: Path) -> None:
    folder = write(tmp_path, a__csv="1,2024-01-02\n", b__csv="2,2024-01-03\n")

    frame = sp.read_csv(folder, {"id": "integer", "day": "DATE"}, header=False)

    assert str(frame.schema) == "id INTEGER, day DATE"
    assert values(frame, "day") == [date(2024, 1, 2), date(2024, 1, 3)]


def test_csv_headers_that_differ_are_named(sp: Session, tmp_path: Path) -> None:
    folder = write(tmp_path, a__csv="id,s\n1,x\n", b__csv="s,id\ny,2\n")

    with pytest.raises(SchemaMismatch, match=r"b\.csv"):
        sp.read_csv(folder)


def test_csv_compressed(sp: Session, tmp_path: Path) -> None:
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"id\n1\n2\n"))
    duckdb.execute(f"COPY (SELECT 3 AS id) TO '{tmp_path}/b.csv.zst' (HEADER, COMPRESSION zstd)")

    assert values(sp.read_csv(str(tmp_path)), "id") == [1, 2, 3]


def test_empty_csv_files_need_a_schema(sp: Session, tmp_path: Path) -> None:
    folder = write(tmp_path, a__csv="")

    with pytest.raises(FileUnreadable, match="schema="):
        sp.read_csv(folder)
    assert sp.read_csv(folder, {"id": "INTEGER"}).take_all() == []


# ---- JSON ----------------------------------------------------------------------------


def test_json_lines_and_arrays(sp: Session, tmp_path: Path) -> None:
    folder = write(
        tmp_path,
        a__json='{"a": 1, "b": {"c": [1, 2]}}\n{"a": 2}\n',
        b__json='[{"a": 3.5}, {"a": 4}]',
    )
    (tmp_path / "c.json.gz").write_bytes(gzip.compress(b'{"a": 5, "n": "new"}\n'))

    frame = sp.read_json(folder)

    assert values(frame, "a") == [1, 2, 3.5, 4, 5]
    assert values(frame, "b")[:2] == [{"c": [1, 2]}, None]
    assert values(frame, "n")[-1] == "new"


def test_json_with_a_schema(sp: Session, tmp_path: Path) -> None:
    folder = write(tmp_path, a__json='{"a": "7", "more": 1}\n{}\n')

    frame = sp.read_json(folder, {"a": "INTEGER", "z": "DATE"})

    assert frame.take_all() == [{"a": 7, "z": None}, {"a": None, "z": None}]


def test_broken_json_is_named(sp: Session, tmp_path: Path) -> None:
    folder = write(tmp_path, a__json='{"a": 1}\n{"a": \n')

    with pytest.raises(FileUnreadable, match=r"a\.json"):
        sp.read_json(folder)


# ---- Parquet -------------------------------------------------------------------------


def parquet(path: Path, **columns: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=2)


def test_hive_folders_give_columns_of_one_type(sp: Session, tmp_path: Path) -> None:
    parquet(tmp_path / "year=2023/kind=7" / "a.parquet", x=[1, 2])
    parquet(tmp_path / "year=2024/kind=a b" / "a.parquet", x=[3])

    frame = sp.read_parquet(str(tmp_path))

    assert str(frame.schema) == "x BIGINT, kind VARCHAR, year BIGINT"
    rows = {row["x"]: (row["year"], row["kind"]) for row in frame.take_all()}
    assert rows == {1: (2023, "7"), 2: (2023, "7"), 3: (2024, "a b")}
    assert frame.filter("year = 2023").count() == 2


@pytest.mark.parametrize("by_name", [False, True])
def test_a_hive_folder_of_nulls(sp: Session, tmp_path: Path, by_name: bool) -> None:
    parquet(tmp_path / "K=1" / "a.parquet", x=[1])
    parquet(tmp_path / "K=__HIVE_DEFAULT_PARTITION__" / "a.parquet", x=[2])

    frame = sp.read_parquet(tmp_path, union_by_name=by_name)

    assert str(frame.schema) == "x BIGINT, K BIGINT"
    assert frame.take_all() == [{"x": 1, "K": 1}, {"x": 2, "K": None}]
    assert frame.filter("k IS NULL").take_all() == [{"x": 2, "K": None}]
    assert frame.select("k").filter("k = 1").count() == 1


@pytest.mark.parametrize("folder", ["k=z", "k=2024-01-02"])
def test_hive_folders_of_text_formats_may_be_null(sp: Session, tmp_path: Path, folder: str) -> None:
    write(tmp_path / folder, a__csv="x\n1\n", a__json='{"x": 1}\n')
    write(tmp_path / "k=__HIVE_DEFAULT_PARTITION__", a__csv="x\n2\n", a__json='{"x": 2}\n')

    for frame in (sp.read_csv(f"{tmp_path}/*/*.csv"), sp.read_json(f"{tmp_path}/*/*.json")):
        rows = {row["x"]: row["k"] is None for row in frame.take_all()}
        assert rows == {1: False, 2: True}
        assert frame.schema.field("k", "k").type == ("VARCHAR" if folder == "k=z" else "DATE")


def test_folders_are_entered_only_if_recursive(sp: Session, tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", x=[1])
    parquet(tmp_path / "more" / "b.parquet", x=[2])
    (tmp_path / "_SUCCESS").write_text("")

    assert values(sp.read_parquet(str(tmp_path) + "/"), "x") == [1]
    assert values(sp.read_parquet(tmp_path, recursive=True), "x") == [1, 2]
    assert values(sp.read_parquet(f"{tmp_path}/*/*.parquet"), "x") == [2]
    with pytest.raises(PathNotFound):
        sp.read_parquet(f"{tmp_path}/*.csv")
    (tmp_path / "a.parquet").unlink()
    with pytest.raises(FileUnreadable, match=r"below it, such as '.*b\.parquet'. Pass recursive=T"):
        sp.read_parquet(tmp_path)


def test_a_folder_whose_name_looks_like_a_glob_is_a_folder(sp: Session, tmp_path: Path) -> None:
    folder = tmp_path / "k=[1]*"
    sp.from_items([1]).write_parquet(folder)
    parquet(folder / "beside.parquet", item=[2])

    with pytest.warns(UserWarning, match=r"1 files beside .* are not read"):
        assert values(sp.read_parquet(folder), "item") == [1]


def test_a_folder_is_its_files_of_the_format(sp: Session, tmp_path: Path) -> None:
    write(tmp_path / "in", README__md="# Hi", LICENSE="free", _SUCCESS="", b__csv="x\n2\n")
    write(tmp_path / "in", c__jsonl='{"x": 3}\n', __a__parquet__crc="sum")
    parquet(tmp_path / "in" / "a.parquet", x=[1])
    parquet(tmp_path / "in" / "k.PARQUET", x=[7])

    assert values(sp.read_parquet(tmp_path / "in"), "x") == [1, 7]
    assert values(sp.read_csv(tmp_path / "in"), "x") == [2]
    assert values(sp.read_json(tmp_path / "in"), "x") == [3]


def test_a_folder_without_a_file_of_the_format(sp: Session, tmp_path: Path) -> None:
    """Its files are read for what they are, but for those that are known to be something else."""
    parquet(tmp_path / "hive" / "000000_0", x=[1])
    write(tmp_path / "odd", a__tbl="x\n1\n", b__tbl="x\n2\n", README="")
    write(tmp_path / "other", a__csv="x\n1\n")

    assert values(sp.read_parquet(tmp_path / "hive"), "x") == [1]
    assert values(sp.read_csv(tmp_path / "odd"), "x") == [1, 2]
    with pytest.raises(
        FileUnreadable, match=r"read_parquet.*: no file in .* ends in \.parquet, .*a"
    ):
        sp.read_parquet(tmp_path / "other")


def test_no_file_of_a_folder_is_left_out_by_guessing(sp: Session, tmp_path: Path) -> None:
    """They may be more rows, or not."""
    write(tmp_path, a__csv="x\n1\n", b__txt="x\n2\n")
    with pytest.raises(FileUnreadable, match=r"has .*b\.txt' beside .*a\.csv', .*/\*\*/\*\.csv'"):
        sp.read_csv(tmp_path)
    assert values(sp.read_csv(f"{tmp_path}/**/*.csv"), "x") == [1]
    assert values(sp.read_csv(f"{tmp_path}/*"), "x") == [1, 2]


def test_schemas_that_differ_name_columns_and_files(sp: Session, tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", x=[1], s=["a"])
    parquet(tmp_path / "b.parquet", x=[2.5], more=[1])

    with pytest.raises(SchemaMismatch, match=r"b\.parquet lacks s VARCHAR and has also more") as e:
        sp.read_parquet(str(tmp_path))
    assert "other types: x DOUBLE" in str(e.value)

    frame = sp.read_parquet(str(tmp_path), union_by_name=True)
    assert frame.take_all() == [
        {"x": 1.0, "s": "a", "more": None},
        {"x": 2.5, "s": None, "more": 1},
    ]
    assert frame.select("more").take_all() == [{"more": None}, {"more": 1}]


def test_a_file_of_two_row_groups_makes_five_partitions(sp: Session, tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", x=list(range(4)))

    frame = sp.read_parquet(str(tmp_path)).repartition(5)

    assert frame.num_partitions == 5
    assert values(frame, "x") == [0, 1, 2, 3]


def test_truncated_files_are_named(sp: Session, tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", x=[1])
    (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-3])

    with pytest.raises(FileUnreadable, match=r"b\.parquet"):
        sp.read_parquet(str(tmp_path))


def test_columns_in_the_order_asked(sp: Session, tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", x=[1], y=[2], z=[3])

    assert sp.read_parquet(str(tmp_path), columns=["z", "x"]).take_all() == [{"z": 3, "x": 1}]


def test_names_and_paths_with_quotes_and_unicode(sp: Session, tmp_path: Path) -> None:
    folder = tmp_path / 'it\'s "x" ü [1]'
    parquet(folder / "a'b.parquet", **{'sel"ect': [1], "ß from": [2]})

    frame = sp.read_parquet(str(folder))

    assert frame.filter('"ß from" = 2').take_all() == [{'sel"ect': 1, "ß from": 2}]


# ---- Arrow, text, fixed --------------------------------------------------------------


def test_arrow_files_and_streams(sp: Session, tmp_path: Path) -> None:
    table = pa.table({"x": [1, 2, 3], "s": ["a", None, "c"], "b": [True, False, None]})
    with pa.ipc.new_file(str(tmp_path / "a.arrow"), table.schema) as file:
        file.write_table(table, max_chunksize=2)
    with pa.ipc.new_stream(str(tmp_path / "b.arrow"), table.schema) as stream:
        stream.write_table(table)

    frame = sp.read_arrow(str(tmp_path))

    assert frame.filter("b").select("s", "x").take_all() == [{"s": "a", "x": 1}] * 2
    twice = sp.sql("SELECT count(*) AS n FROM f a JOIN f b USING (x)", f=frame)
    assert twice.take_all() == [{"n": 12}]


def test_what_is_no_arrow_file_is_named(sp: Session, tmp_path: Path) -> None:
    with pytest.raises(FileUnreadable, match=r"a\.arrow"):
        sp.read_arrow(write(tmp_path, a__arrow="not arrow at all, but long enough"))


def test_lines_of_text(sp: Session, tmp_path: Path) -> None:
    folder = write(tmp_path, a__txt="one\n\ntwo\r\nthree", b__txt="")
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress("fünf\n".encode()))

    lines = sp.read_text(folder)

    assert lines.columns == ["path", "line"]
    assert values(lines, "line") == ["one", "", "two", "three", "fünf"]
    assert {Path(p).name for p in values(lines, "path")} == {"a.txt", "c.txt.gz"}
    texts = sp.read_text(f"{folder}/[ab].txt", whole=True)
    assert values(texts, "text") == ["one\n\ntwo\r\nthree", ""]


def test_text_that_is_not_utf8_is_named(sp: Session, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"ok\n\xff\xfe\n")

    with pytest.raises(FileUnreadable, match=r"a\.txt"):
        sp.read_text(str(tmp_path)).take_all()


def test_fixed_records(sp: Session, tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"k1vvvk2www")

    frame = sp.read_fixed(str(tmp_path / "a.bin"), {"key": 2, "value": 3})

    assert frame.take_all() == [{"key": b"k1", "value": b"vvv"}, {"key": b"k2", "value": b"www"}]
    assert frame.sort("key desc").select("key").take(1) == [{"key": b"k2"}]
    with pytest.raises(FileUnreadable, match=r"a\.bin"):
        sp.read_fixed(str(tmp_path / "a.bin"), {"key": 3})
    with pytest.raises(OptionError, match="0"):
        sp.read_fixed(str(tmp_path / "a.bin"), {"key": 0})


# ---- Python objects ------------------------------------------------------------------


def test_pandas_keeps_all_rows_in_any_number_of_partitions(sp: Session) -> None:
    pd = pytest.importorskip("pandas")
    given = pd.DataFrame({"a": range(10), "s": [None, "x"] * 5})

    frame = sp.from_pandas(given).repartition(3)

    assert values(frame, "a") == list(range(10))


def test_anything_with_an_arrow_stream(sp: Session) -> None:
    pl = pytest.importorskip("polars")

    assert sp.from_arrow(pl.DataFrame({"a": [1, 2], "s": ["x", None]})).count() == 2
    relation = duckdb.sql("SELECT 42 AS answer")
    assert sp.from_arrow(relation).take_all() == [{"answer": 42}]
    assert sp.from_arrow(sp.from_items([1, 2])).take_all() == [{"item": 1}, {"item": 2}]


def test_no_items_and_no_rows(sp: Session) -> None:
    assert sp.from_items([]).take_all() == []
    assert sp.from_arrow(pa.table({"a": pa.array([], pa.int8())})).count() == 0


@pytest.mark.parametrize("format", ["csv", "json", "text"])
def test_neighbours_among_very_many_small_files_share_a_task(tmp_path: Path, format: str) -> None:
    line = {"csv": "a\n{}\n", "json": '{{"a": {}}}\n', "text": "{}\n"}[format]
    folder = write(tmp_path / "in", **{f"{i:04}__{format}": line.format(i) for i in range(300)})
    (tmp_path / "in" / f"0150.{format}").write_text("")
    with Session(options(shape="staged", threads=2)) as sp:
        frame = getattr(sp, f"read_{format}")(folder)
        assert 64 <= frame.num_partitions <= 80
        rows = values(frame, "line" if format == "text" else "a")
    assert [int(row) for row in rows] == [i for i in range(300) if i != 150]


@pytest.mark.parametrize("rows", ["", "true,5\n", ",\n"])
def test_a_header_that_looks_like_values_is_known_by_its_names(tmp_path: Path, rows: str) -> None:
    """`t` is a boolean and `1` a number, so DuckDB sees one row more."""
    (tmp_path / "a.csv").write_text(f"t,1\n{rows}")
    kinds = {"t": "BOOLEAN", "1": "BIGINT"}
    with Session(options(progress=False)) as sp:
        found = sp.read_csv(tmp_path / "a.csv", schema=kinds).take_all()
        values = [True, 5] if "5" in rows else [None, None]
        assert found == ([dict(zip(kinds, values, strict=True))] if rows else [])
        other = sp.read_csv(tmp_path / "a.csv", schema=kinds, header=False)
        assert other.count() == len(found) + 1
        empty = sp.from_items([{"t": True, "1": 5}]).filter("false")
        empty.write_csv(tmp_path / "out")
        assert sp.read_csv(tmp_path / "out").take_all() == []
