"""A sort key is a BLOB whatever it is made of, in every DuckDB."""

import pytest

from tests.support.sessions import Counted


@pytest.mark.parametrize("by", ["b", "b desc", "i", "b, i desc"])
def test_small_keys_sort_over_partitions(by: str) -> None:
    items = [{"b": i % 3 == 0 if i % 5 else None, "i": i % 7} for i in range(200)]
    with Counted(shape="staged") as run:
        frame = run.session.from_items(items).repartition(4, by_rows=True)
        sort = run.session.from_items(items).sort(by).take_all()
        assert frame.sort(by).take_all() == sort
