"""A node that several read is computed once, in every shape."""

import pytest

from tests.support.sessions import Counted


@pytest.mark.parametrize("shape", ["fused", "staged"])
def test_a_random_column_is_the_same_for_all_that_read_it(shape: str) -> None:
    with Counted(shape=shape) as run:
        drawn = run.session.from_items(list(range(500))).map("item, random() AS r")
        pairs = drawn.join(drawn.rename({"r": "again"}), "item")
        assert pairs.filter("r = again").count() == 500


def test_a_plan_that_reads_itself_many_times_stays_small() -> None:
    with Counted(shape="fused") as run:
        frame = run.session.from_items([1])
        for _ in range(30):
            frame = frame.union(frame).distinct()
        assert frame.take_all() == [{"item": 1}]
        assert len(frame.explain(physical=True)) < 20_000
