"""A cursor of the engine at its end."""

from pathlib import Path

import pytest

from millpond.engine.duckdb import Engine
from millpond.errors import MillpondError, OutOfMemory, SqlError


def test_interrupting_a_cursor_that_is_closed_does_nothing(tmp_path: Path) -> None:
    engine = Engine(threads=1, memory_limit_bytes=2**28, scratch=str(tmp_path))
    with engine.cursor() as cursor:
        assert cursor.rows("SELECT 1") == [(1,)]
    cursor.interrupt()  # A cancelled task may end in the same moment.
    engine.close()


TOO_MUCH = "(SELECT length(string_agg(repeat('x', 1_000) || j, '')) FROM range(1_000_000) u(j))"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("late", "kind"),
    [
        (f"SELECT {TOO_MUCH}", OutOfMemory),
        ("SELECT error('Out of Memory Error: so the user says')::BIGINT", SqlError),
    ],
)
def test_what_fails_in_the_middle_of_a_stream_keeps_its_class(
    tmp_path: Path, late: str, kind: type[MillpondError]
) -> None:
    """Arrow's stream passes on the text alone; the schedule tries again by the class."""
    engine = Engine(threads=1, memory_limit_bytes=2**26, scratch=str(tmp_path))
    sql = f"SELECT i FROM range(1_000_000) t(i) UNION ALL {late}"
    with engine.cursor() as cursor, pytest.raises(kind) as caught:
        list(cursor.reader(sql, 2_048))
    assert type(caught.value) is kind
    engine.close()
