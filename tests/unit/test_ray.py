"""What the Ray runtime refuses, without a cluster."""

import pytest

from millpond.errors import OptionError, OutOfMemory, WorkerLost
from millpond.runtime.node import Versions

ray = pytest.importorskip("ray")
place = pytest.importorskip("millpond.runtime.ray")

pytestmark = pytest.mark.slow  # Importing ray takes a second.
OURS = Versions("3.12", "1.0", "1.4.0", "20.0")


def test_a_node_with_another_version_is_refused_by_name() -> None:
    theirs = Versions("3.11", "1.0", "1.4.0", "20.0")
    with pytest.raises(OptionError, match=r"node n7 has Python 3\.11.*has Python 3\.12"):
        place._check_same(OURS, theirs, "n7")
    place._check_same(OURS, OURS, "n7")


def test_an_address_without_a_cluster_says_what_to_check() -> None:
    with pytest.raises(OptionError, match="ray status"):
        place._connect("bogus://address", None)


@pytest.mark.parametrize(
    ("error", "ours"),
    [
        (ray.exceptions.WorkerCrashedError(), WorkerLost),
        (ray.exceptions.NodeDiedError("node n1 died"), WorkerLost),
        (ray.exceptions.TaskCancelledError(), WorkerLost),
        (ray.exceptions.OutOfMemoryError("killed by the monitor"), OutOfMemory),
        (KeyError("a bug"), KeyError),
    ],
)
def test_errors_of_ray_become_ours(error: BaseException, ours: type[BaseException]) -> None:
    assert type(place._translated(error)) is ours
