"""Ray clusters on this machine whose nodes share no storage but the test's own folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from small_pipelines import options

from millpond.runtime.ray import RayRuntime


@contextmanager
def cluster(n_nodes: int = 2) -> Iterator[Any]:
    """A head without CPUs, where the test is connected, and `n_nodes` nodes of one CPU."""
    import ray
    from ray.cluster_utils import Cluster

    # A dead node is noticed within six seconds, not fifteen; a busy one is not taken for dead.
    soon = {"health_check_period_ms": 1000, "health_check_failure_threshold": 6}
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": soon})
    try:
        for _ in range(n_nodes):
            found.add_node(num_cpus=1, wait=False)
        found.wait_for_nodes()
        yield found
    finally:
        ray.shutdown()
        found.shutdown()


@contextmanager
def connected(found: Any, folder: Path) -> Iterator[RayRuntime]:
    """A runtime on a cluster of `cluster`, which has no tokens: nobody else reaches it."""
    runtime = RayRuntime(options(folder), address=found.address, allow_insecure=True)
    try:
        yield runtime
    finally:
        runtime.close()
