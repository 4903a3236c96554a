"""When the only node of a cluster gets a whole plan as one task."""

from dataclasses import replace

import pytest

from millpond.options import options
from millpond.physical.planner import plan_stages
from millpond.physical.shape import OnlyNode, Physical
from millpond.physical.stages import Resources, ToPart
from millpond.runtime.place import Capacity, only_node
from millpond.session import DataFrame, Session
from tests.support.runtime_values import begun, source, submitted

HAS = Capacity(slots=9, node_slots=8, node_bytes=10**10, nodes=1, may_grow=True)
NODE = OnlyNode(cpus=8, memory_bytes=10**10, may_grow=True)


@pytest.mark.parametrize(
    ("has", "given", "found"),
    [
        (HAS, {}, NODE),
        (HAS, {"shape": "fused", "data_root": "/r", "task_timeout": 5}, NODE),
        (HAS, {"data_root": "/r"}, "a rerun finds the tasks of a cluster again"),
        (HAS, {"task_timeout": 5}, "task_timeout bounds a task"),
        (replace(HAS, nodes=3), {"shape": "fused"}, "the cluster has 3 nodes"),
        (replace(HAS, nodes=0), {}, "the cluster has no nodes"),
        (replace(HAS, node_bytes=None), {}, "the cluster's only node does not tell its memory"),
    ],
)
def test_what_it_depends_on(has: Capacity, given: dict[str, object], found: object) -> None:
    assert only_node(has, options(runtime="ray", **given)) == found


def planned(frame: DataFrame, session: Session, **changed: object) -> Physical:
    given = {"cluster": NODE, "memory_bytes": NODE.memory_bytes} | changed
    return plan_stages(frame.plan, replace(session._work.settings(), **given))  # type: ignore[arg-type]


@pytest.fixture
def session() -> Session:
    return Session(options(threads=2, split_bytes=1 << 20))


def test_its_one_task_wants_the_node_and_leaves_a_part(session: Session) -> None:
    with session as sp:
        found = planned(sp.sql("SELECT range AS i FROM range(9)").sort("i desc"), sp)
    (stage,) = found.stages
    assert found.shape == "fused"
    assert stage.resources == Resources(whole_node=True)
    assert stage.output == ToPart()


def test_rows_of_the_session_travel_in_pieces_if_they_are_many(session: Session) -> None:
    with session as sp:
        few, many = (sp.from_items(list(range(n))).sort("item") for n in (1000, 200_000))
        assert planned(few, sp).shape == "fused"
        found = planned(many, sp)
    assert (found.shape, found.reason) == ("staged", "2 MB of rows go to the cluster in pieces")


def test_much_work_is_left_for_nodes_that_may_join(
    session: Session, events_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with session as sp:
        frame = sp.read_parquet(events_path).sort("id")
        assert planned(frame, sp).shape == "fused"
        monkeypatch.setattr("millpond.physical.shape.WHOLE_BYTES_PER_CPU", 1000)
        found = planned(frame, sp)
        assert (found.shape, found.reason) == ("staged", "0.0 GB is work for nodes that may join")
        own = replace(NODE, may_grow=False)
        assert planned(frame, sp, cluster=own).shape == "fused"
        assert planned(frame, sp, shape="fused").shape == "fused"


def test_it_takes_all_processors_of_the_largest_node_that_there_is_when_it_starts() -> None:
    schedule = begun(source(0, 1, resources=Resources(whole_node=True)), slots=9, node_slots=8)
    (task,) = submitted(schedule.free_slots(9))
    assert (task.alone, task.rows_at_once, task.resources.cpus) == (True, None, 8.0)
    schedule.capacity(Capacity(5, 4))
    from millpond.errors import WorkerLost

    schedule.failed(task.id, WorkerLost("its node is gone, and a smaller one came"))
    (again,) = submitted(schedule.free_slots(5))
    assert (again.alone, again.resources.cpus) == (True, 4.0)
