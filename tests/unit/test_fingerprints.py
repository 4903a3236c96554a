"""Plans have one fingerprint only if they give the same rows: whatever else is edited, tells."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import millpond
from millpond.options import options
from millpond.session import Session

Make = Callable[[Session, str], millpond.DataFrame]


@pytest.fixture(scope="module", params=["staged", "fused"])
def sp(request: pytest.FixtureRequest) -> Iterator[Session]:
    with Session(options(shape=request.param, threads=2, progress=False)) as session:
        yield session


def fingerprints(sp: Session, frame: millpond.DataFrame) -> list[str]:
    return [stage.fingerprint for stage in sp._work.stages(frame.plan).stages]


def source(sp: Session, path: str) -> millpond.DataFrame:
    return sp.read_csv(path, {"a": "BIGINT", "b": "VARCHAR"}, header=False)


def one_more(batch: Any) -> Any:
    return batch


def in_sql(n: int) -> Make:
    def f(x: int) -> int:
        return x + n

    return lambda sp, path: source(sp, path).map("a, f(a) AS x", udfs=[f])


def batches(**how: Any) -> Make:
    return lambda sp, path: source(sp, path).map_batches(
        one_more, schema={"a": "BIGINT", "b": "VARCHAR"}, **how
    )


def written(**how: Any) -> Make:
    return lambda sp, path: source(sp, path).write_parquet_lazy(f"{path}.out", **how)


EDITS: dict[str, tuple[Make, Make]] = {
    "a query": (
        lambda sp, path: source(sp, path).map("a + 1 AS x"),
        lambda sp, path: source(sp, path).map("a + 2 AS x"),
    ),
    "a filter": (
        lambda sp, path: source(sp, path).filter("a > 1"),
        lambda sp, path: source(sp, path).filter("a > 2"),
    ),
    "a type of the input": (
        lambda sp, path: sp.read_csv(path, {"a": "BIGINT", "b": "VARCHAR"}, header=False),
        lambda sp, path: sp.read_csv(path, {"a": "DOUBLE", "b": "VARCHAR"}, header=False),
    ),
    "how the input is read": (
        lambda sp, path: sp.read_csv(path, {"a": "VARCHAR"}, header=False),
        lambda sp, path: sp.read_csv(path, {"a": "VARCHAR"}, header=False, delim=";"),
    ),
    "a seed": (
        lambda sp, path: source(sp, path).random_shuffle(1),
        lambda sp, path: source(sp, path).random_shuffle(2),
    ),
    "a direction": (
        lambda sp, path: source(sp, path).sort("a"),
        lambda sp, path: source(sp, path).sort("a desc"),
    ),
    "the size of a batch": (batches(batch_size=10), batches(batch_size=20)),
    "the format of a batch": (batches(format="arrow"), batches(format="pandas")),
    "a key": (batches(key="1"), batches(key="2")),
    "an option of a file": (written(compression="zstd"), written(compression="snappy")),
    "the keys of folders": (written(), written(partition_by="b")),
    "a function in SQL": (in_sql(1), in_sql(2)),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_gives_another_fingerprint(sp: Session, tmp_path: Path, edit: str) -> None:
    path = tmp_path / "in.csv"
    path.write_text("1,x\n2,y\n")
    before, after = EDITS[edit]
    first = fingerprints(sp, before(sp, str(path)))
    assert all(first)
    assert fingerprints(sp, before(sp, str(path))) == first
    assert fingerprints(sp, after(sp, str(path)))[-1] != first[-1]


@pytest.mark.parametrize("step", [lambda f: f, lambda f: f.repartition(3, hash_by="a").sort("b")])
def test_other_bytes_give_another_fingerprint(
    sp: Session, tmp_path: Path, step: Callable[[Any], Any]
) -> None:
    path, found = tmp_path / "in.csv", []
    for text in ("1,x\n", "2,x\n", "1,x\n2,x\n"):
        path.write_text(text)
        found.append(fingerprints(sp, step(source(sp, str(path))))[-1])
    assert len(set(found)) == 3


def test_rows_given_count_by_their_values(sp: Session) -> None:
    found = [fingerprints(sp, sp.from_items(items))[-1] for items in ([1, 2], [1, 2], [1, 3])]
    assert found[0] == found[1] != found[2]
