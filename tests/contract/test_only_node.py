"""A cluster with one node runs a plan as this machine would: whole, if nothing asks for stages."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import psutil
import pytest
from ray_cluster import add_node, cluster, lose_node

from millpond.dataframe import DataFrame
from millpond.errors import NodeTaken
from tests.support.sessions import Counted, oracle, tuples

pytestmark = pytest.mark.slow

SORTED = "SELECT * FROM e WHERE price > 100 ORDER BY kind, price DESC, id"


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    pytest.importorskip("ray")
    with cluster(0) as found:
        add_node(found, num_cpus=2)
        yield found


@pytest.fixture(scope="module")
def on_ray(nodes: Any) -> Iterator[Counted]:
    with session(nodes) as run:
        yield run


def session(nodes: Any, **given: Any) -> Counted:
    return Counted(runtime="ray", address=nodes.address, allow_insecure=True, **given)


def in_order(run: Counted, path: str) -> DataFrame:
    run.forget()
    rows = run.session.read_parquet(path).filter("price > 100")
    return rows.sort(["kind", "price desc", "id"])


def shape(frame: DataFrame) -> str:
    return frame.explain(physical=True).partition("\n\n")[2].partition("\n")[0]


def test_rows_are_collected_from_one_task(on_ray: Counted, events_path: str) -> None:
    frame = in_order(on_ray, events_path)
    assert tuples(frame) == oracle(SORTED, e=events_path)
    assert on_ray.tasks == 1
    assert shape(frame).startswith("fused: one machine, and nothing observes partitions; the clus")
    assert "only node has 2 CPUs and " in shape(frame)
    assert frame.count() == len(oracle(SORTED, e=events_path))


def test_files_are_written_by_one_task(on_ray: Counted, events_path: str, tmp_path: Path) -> None:
    """A sort, and partitions of it; nothing else is left beside them."""
    written = in_order(on_ray, events_path).write_parquet(str(tmp_path / "sorted"))
    spread = on_ray.session.read_parquet(events_path).repartition(4, hash_by="user_id")
    assert spread.write_parquet(str(tmp_path / "spread")).rows == 24_000
    assert on_ray.tasks == 2
    rows = [row for path in written.files for row in oracle("FROM f", f=path)]
    assert rows == oracle(SORTED, e=events_path)
    again = oracle("FROM f ORDER BY id", f=str(tmp_path / "spread/*.parquet"))
    assert again == oracle("FROM e ORDER BY id", e=events_path)
    users = [
        {row[0] for row in oracle("SELECT DISTINCT user_id FROM f", f=str(path))}
        for path in sorted((tmp_path / "spread").glob("*.parquet"))
    ]
    assert len(users) == 4
    assert sum(map(len, users)) == len(set.union(*users)) == 1000
    assert not [path for path in tmp_path.rglob("*") if ".millpond" in path.name]


def test_its_memory_and_processors_are_the_nodes(nodes: Any, tmp_path: Path) -> None:
    """`memory_limit` bounds the node; DuckDB has the larger part of it, on both CPUs."""
    with session(nodes, memory_limit="1GB") as run:
        settings = "current_setting('threads') AS n, current_setting('memory_limit') AS m"
        (row,) = run.session.sql(f"SELECT {settings}").take_all()
        assert "has 2 CPUs and 1.0 GB" in shape(run.session.sql("SELECT 1 AS one"))
    assert row["n"] == 2
    with duckdb.connect(config={"memory_limit": "600MB"}) as con:
        ((share,),) = con.execute("SELECT current_setting('memory_limit')").fetchall()
    assert row["m"] == share


def test_a_task_whose_process_is_killed_runs_again_whole(
    on_ray: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = threading.Event()
    place: Any = on_ray.session._work.place()

    def kill() -> None:
        while place._waiting:  # Until it has begun.
            time.sleep(0.01)
        while not killed.is_set():
            for process in psutil.process_iter(["cmdline"]):
                if "ray::run_call" in " ".join(process.info["cmdline"] or ()):
                    process.kill()
                    killed.set()
            time.sleep(0.01)

    killer = threading.Thread(target=kill)

    def submitted(tasks: Any) -> Any:
        futures = submit(tasks)
        if killer.ident is None:
            killer.start()
        return futures

    on_ray.forget()
    submit = place.submit
    monkeypatch.setattr(place, "submit", submitted)
    query = "SELECT sum(hash(i) % 7)::BIGINT AS s FROM range(1_000_000_000) t(i)"
    (row,) = on_ray.session.sql(query).take_all()
    killer.join()
    assert row["s"] == oracle(query)[0][0]
    assert on_ray.retried == 1
    assert on_ray.tasks == 1


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"shape": "staged"}, "shape='staged'"),
        ({"task_timeout": 600}, "task_timeout bounds a task"),
        ({"data_root": ""}, "a rerun finds the tasks of a cluster again"),
    ],
    ids=["shape", "task_timeout", "data_root"],
)
def test_what_asks_for_stages_gets_them(
    nodes: Any, events_path: str, data_root: str, given: dict[str, Any], why: str
) -> None:
    given = given | {"data_root": data_root} if "data_root" in given else given
    with session(nodes, **given) as run:
        frame = in_order(run, events_path)
        assert shape(frame) == f"staged: {why}"
        assert tuples(frame) == oracle(SORTED, e=events_path)
        assert run.tasks > 3


def test_functions_are_called_by_all_processes_of_the_node(
    on_ray: Counted, events_path: str
) -> None:
    on_ray.forget()
    frame = on_ray.session.read_parquet(events_path).map_batches(
        lambda batch: batch.select(["id"]), schema={"id": "BIGINT"}
    )
    assert shape(frame).endswith("is a Python function")
    assert tuples(frame) == oracle("SELECT id FROM e", e=events_path)
    assert on_ray.tasks > 1


def test_a_plan_does_not_wait_for_ever_for_a_node_that_others_use(
    nodes: Any, events_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is free of it is used, and the next plan does not wait at all."""
    import ray

    class Holder:
        def here(self) -> int:
            return 1

    monkeypatch.setattr("millpond.runtime.ray.runtime._WAIT_S", 0.5)
    with session(nodes) as run:
        holder = ray.remote(Holder).options(num_cpus=1).remote()
        assert ray.get(holder.here.remote()) == 1
        try:
            frame = in_order(run, events_path)
            assert shape(frame).startswith("fused: ")
            assert tuples(frame) == oracle(SORTED, e=events_path)
            assert run.tasks > 3
            assert shape(frame) == "staged: others hold some of the cluster's only node"
            with (
                session(nodes, shape="fused") as strict,
                pytest.raises(NodeTaken, match=r"waited 0\.5 s for all 2 CPUs .*shape='auto'"),
            ):
                in_order(strict, events_path).take_all()
        finally:
            ray.kill(holder)


def test_two_sessions_take_turns(nodes: Any, events_path: str) -> None:
    """Each wants the whole node: none starves, none is mixed with the other."""
    found: dict[int, list[Any]] = {}

    def work(number: int, run: Counted) -> None:
        frame = run.session.read_parquet(events_path).filter(f"id % 2 = {number}").sort("id desc")
        found[number] = [tuples(frame) for _ in range(5)]

    with session(nodes) as one, session(nodes) as two:
        threads = [
            threading.Thread(target=work, args=(number, run))
            for number, run in enumerate((one, two))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for number in (0, 1):
        wanted = oracle(f"FROM e WHERE id % 2 = {number} ORDER BY id DESC", e=events_path)
        assert found[number] == [wanted] * 5


def test_a_cluster_that_grew_shares_the_work(nodes: Any, events_path: str) -> None:
    with session(nodes) as run:
        frame = in_order(run, events_path)
        assert shape(frame).startswith("fused: ")
        node = add_node(nodes)
        try:
            place = run.session._work.place()
            while place.capacity().nodes < 2:
                time.sleep(0.1)
            assert shape(frame) == "staged: the cluster has 2 nodes"
            assert tuples(frame) == oracle(SORTED, e=events_path)
            assert run.tasks > 3
        finally:
            lose_node(nodes, node)
