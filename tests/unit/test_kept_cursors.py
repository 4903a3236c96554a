"""A task's connection is kept for the next one, with its query and the place of its streams."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from millpond.engine.duckdb import VERSION, Engine
from millpond.errors import SqlError
from millpond.worker.streams import Stream

KEPT = 0 if VERSION.startswith("1.") else 1  # DuckDB 1.4 opens a stream when it is registered.
SUM = "SELECT sum(x)::BIGINT AS s, count(*) AS n FROM __s0"


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = Engine(threads=2, memory_limit_bytes=2**28, scratch=str(tmp_path))
    yield engine
    engine.close()


def stream(*values: Any, kind: pa.DataType | None = None) -> Stream:
    batch = pa.record_batch({"x": pa.array(values, kind or pa.int64())})
    return Stream(batch.schema, lambda: iter([batch]), lambda error: None)


def asked(engine: Engine, rows: Stream, sql: str = SUM) -> list[dict[str, Any]]:
    with engine.kept_cursor() as cursor:
        cursor.register_stream("__s0", rows, once=True)
        return [row for batch in cursor.reader(sql) for row in batch.to_pylist()]


def test_the_next_task_gets_its_own_rows(engine: Engine) -> None:
    assert asked(engine, stream(1, 2)) == [{"s": 3, "n": 2}]
    assert asked(engine, stream(7)) == [{"s": 7, "n": 1}]
    assert asked(engine, stream()) == [{"s": None, "n": 0}]
    assert len(engine._idle) == KEPT


def test_other_columns_and_other_queries_are_bound_anew(engine: Engine) -> None:
    assert asked(engine, stream(1, 2)) == [{"s": 3, "n": 2}]
    texts = stream("a", "b", kind=pa.string())
    assert asked(engine, texts, "SELECT max(x) AS m FROM __s0") == [{"m": "b"}]
    assert asked(engine, stream("c", kind=pa.string()), "SELECT max(x) AS m FROM __s0") == [
        {"m": "c"}
    ]
    assert asked(engine, stream(1, 2)) == [{"s": 3, "n": 2}]
    assert len(engine._idle) == KEPT


def test_the_rows_of_a_task_that_is_over_are_let_go(engine: Engine) -> None:
    asked(engine, stream(1, 2))
    assert all(slot.stream is None for one in engine._idle for slot in one.slots.values())


def test_what_is_kept_can_be_listed(engine: Engine) -> None:
    asked(engine, stream(1, 2))
    columns = "SELECT column_name AS c, sum(x)::BIGINT AS s FROM duckdb_columns(), __s0 GROUP BY c"
    with engine.kept_cursor() as cursor:
        cursor.register_stream("__s0", stream(5), once=True)
        found = [row for batch in cursor.reader(columns) for row in batch.to_pylist()]
    assert {"c": "x", "s": 5} in found


@pytest.mark.parametrize("how", ["a table that spills", "a table"])
def test_the_place_of_a_stream_may_be_that_of_a_table(engine: Engine, how: str) -> None:
    asked(engine, stream(1, 2))
    with engine.kept_cursor() as cursor:
        if how == "a table":
            cursor.register("__s0", pa.table({"x": [5, 6]}))
        else:
            cursor.register_stream("__s0", stream(5, 6), once=False, opens_again=False)
        twice = "SELECT (SELECT sum(x)::BIGINT FROM __s0) AS s, count(*) AS n FROM __s0"
        assert [row for batch in cursor.reader(twice) for row in batch.to_pylist()] == [
            {"s": 11, "n": 2}
        ]
    assert asked(engine, stream(7)) == [{"s": 7, "n": 1}]


@pytest.mark.parametrize("what", ["run", "rows", "register", "keep", "left in the middle"])
def test_what_did_more_than_ask_streams_is_not_kept(engine: Engine, what: str) -> None:
    with engine.kept_cursor() as cursor:
        cursor.register_stream("__s0", stream(1, 2), once=True)
        if what == "left in the middle":
            next(iter(cursor.reader(SUM)))
        else:
            list(cursor.reader(SUM))
        match what:
            case "run":
                cursor.run("CREATE TEMP TABLE t AS SELECT 1")
            case "rows":
                cursor.rows("SELECT setseed(0.5)")
            case "register":
                cursor.register("t", pa.table({"a": [1]}))
            case "keep":
                cursor.keep("t", "SELECT 1 AS a")
    assert not engine._idle


def test_what_failed_or_was_interrupted_is_not_kept(engine: Engine) -> None:
    with pytest.raises(SqlError):
        asked(engine, stream(1), "SELECT error('no') AS x FROM __s0")
    with engine.kept_cursor() as cursor:
        cursor.register_stream("__s0", stream(1, 2), once=True)
        list(cursor.reader(SUM))
        cursor.interrupt()
    assert not engine._idle


def test_an_interrupt_that_comes_late_does_not_meet_the_next_task(engine: Engine) -> None:
    with engine.kept_cursor() as late:
        late.register_stream("__s0", stream(1, 2), once=True)
        list(late.reader(SUM))
    stop = threading.Event()

    def interrupt() -> None:
        while not stop.is_set():
            late.interrupt()

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        for i in range(100):
            assert asked(engine, stream(i)) == [{"s": i, "n": 1}]
    finally:
        stop.set()
        thread.join()


def test_an_instance_that_was_left_takes_its_connections_with_it(engine: Engine) -> None:
    asked(engine, stream(1))
    engine.drop(engine._root)
    assert not engine._idle
    assert asked(engine, stream(5)) == [{"s": 5, "n": 1}]
