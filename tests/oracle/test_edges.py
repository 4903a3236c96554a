"""Exchanges at their edges: more partitions than rows, all rows in one, thousands of them."""

from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pytest

from millpond.dataframe import DataFrame
from millpond.options import options
from millpond.session import Session
from tests.support.open_files import open_at

pytestmark = pytest.mark.slow
ROWS = 3_000


@pytest.fixture(scope="module")
def sp() -> Iterator[Session]:
    with Session(options(shape="staged", threads=2, verify="rows", progress=False)) as session:
        yield session


def rows(sp: Session, n: int = ROWS) -> DataFrame:
    return sp.from_arrow(pa.table({"a": np.arange(n), "same": [7] * n, "none": pa.nulls(n)}))


EXCHANGES: dict[str, Callable[[DataFrame, int], DataFrame]] = {
    "hash": lambda f, n: f.repartition(n, hash_by="a"),
    "hash of one value": lambda f, n: f.repartition(n, hash_by="same"),
    "hash of NULLs": lambda f, n: f.repartition(n, hash_by="none"),
    "given": lambda f, n: f.repartition(n, by=f"a % {n}"),
    "by rows": lambda f, n: f.repartition(n, by_rows=True),
    "sort": lambda f, n: f.repartition(n).sort("a desc"),
    "sort of one value": lambda f, n: f.repartition(n).sort("same"),
    "random": lambda f, n: f.repartition(n).random_shuffle(1),
}


@pytest.mark.parametrize("name", EXCHANGES)
@pytest.mark.parametrize("n_rows", [0, 1, 5])
def test_more_partitions_than_rows(name: str, n_rows: int, sp: Session) -> None:
    found = EXCHANGES[name](rows(sp, n_rows), 40).to_arrow().column("a").to_pylist()

    assert sorted(found) == list(range(n_rows))


def test_two_thousand_partitions_need_no_two_thousand_files(sp: Session) -> None:
    ours, most = sp._work.scratch, 0

    def look(_: object) -> None:
        nonlocal most
        most = max(most, open_at(ours))

    sp.listen(look)
    hashed = rows(sp).repartition(2_000, hash_by="a")

    assert hashed.num_partitions == 2_000
    assert hashed.group_by("a").agg("count(*) AS n").count() == ROWS
    assert most < 20
