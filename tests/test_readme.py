"""Every expression in the README's table of what a frame can do."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

import millpond

TEXT = (Path(__file__).parent.parent / "README.md").read_text()
TABLE = TEXT.split("| you want | you write |")[1].split("\n\n")[0]
EXPRESSIONS = [code for line in TABLE.splitlines()[2:] for code in re.findall(r"`([^`]+)`", line)]

ROWS = """SELECT i AS a, i * 2 AS b, i % 3 AS k, [i, i + 1] AS xs FROM range(40) AS t(i)"""


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What the table's expressions name, in a folder that has its files."""
    data = tmp_path_factory.mktemp("readme") / "data"
    data.mkdir()
    for name, kind in {"a.parquet": "parquet", "a.csv": "csv", "a.json": "json"}.items():
        duckdb.execute(f"COPY ({ROWS}) TO '{data / name}' (FORMAT {kind})")
    (data / "a.txt").write_text("one\ntwo\n")
    (data / "a.bin").write_bytes(bytes(200))
    table = pa.table({"a": [1, 2]})
    with pa.ipc.new_file(data / "a.arrow", table.schema) as writer:
        writer.write_table(table)
    with millpond.init(progress=False) as sp:
        frame = sp.read_parquet(str(data / "a.parquet"))
        yield {"sp": sp, "df": frame, "table": table, "folder": data.parent}


def test_the_table_was_found() -> None:
    assert len(EXPRESSIONS) > 50


@pytest.mark.slow
@pytest.mark.parametrize("code", EXPRESSIONS)
def test_an_expression_of_the_table(
    code: str, words: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(words["folder"])
    result = eval(code, dict(words))
    if isinstance(result, millpond.DataFrame):
        assert result.count() > 0
