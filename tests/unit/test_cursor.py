"""A cursor of the engine at its end."""

from pathlib import Path

from millpond.engine.duckdb import Engine


def test_interrupting_a_cursor_that_is_closed_does_nothing(tmp_path: Path) -> None:
    engine = Engine(threads=1, memory_limit_bytes=2**28, scratch=str(tmp_path))
    with engine.cursor() as cursor:
        assert cursor.rows("SELECT 1") == [(1,)]
    cursor.interrupt()  # A cancelled task may end in the same moment.
    engine.close()
