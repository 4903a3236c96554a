"""Two steps of one chain that look alike read what is before each of them."""

from tests.support.sessions import Counted


def test_the_same_sql_after_two_functions_of_different_columns() -> None:
    def wide(row: dict) -> dict:
        return {"a": row["a"] + 1, "extra": "x"}

    def narrow(row: dict) -> dict:
        return {"a": row["a"] * 10}

    with Counted(shape="staged") as run:
        frame = run.session.from_items([{"a": 1}, {"a": 2}])
        once = frame.map(wide, schema={"a": "BIGINT", "extra": "VARCHAR"}).map("a + 1 AS a")
        twice = once.map(narrow, schema={"a": "BIGINT"}).map("a + 1 AS a")
        assert twice.take_all() == [{"a": 31}, {"a": 41}]
