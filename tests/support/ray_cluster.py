"""Ray clusters on this machine whose nodes share no storage but the test's own folder."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from small_pipelines import options

from millpond.runtime.ray import RayRuntime

STORE_BYTES = 80 * 2**20


@contextmanager
def cluster(n_nodes: int = 2, gpus: int = 0) -> Iterator[Any]:
    """A head without CPUs, where the test is connected, and `n_nodes` nodes of one CPU.

    The first `gpus` of them say that they have a GPU; Ray takes their word for it. Their
    object stores are as small as Ray lets them be, and may not spill: what we leave there
    for too long is an error.
    """
    import ray
    from ray.cluster_utils import Cluster

    # A dead node is noticed within six seconds, not fifteen; a busy one is not taken for dead.
    config = {
        "health_check_period_ms": 1000,
        "health_check_failure_threshold": 6,
        "automatic_object_spilling_enabled": False,
    }
    head = {"num_cpus": 0, "object_store_memory": STORE_BYTES, "_system_config": config}
    found = Cluster(initialize_head=True, head_node_args=head)
    try:
        for number in range(n_nodes):
            add_node(found, num_gpus=int(number < gpus), wait=False)
        found.wait_for_nodes()
        yield found
    finally:
        ray.shutdown()
        found.shutdown()


def add_node(found: Any, **how: Any) -> Any:
    """One more node, of one CPU."""
    return found.add_node(**{"num_cpus": 1, "object_store_memory": STORE_BYTES} | how)


def lose_node(found: Any, node: Any) -> None:
    """The node goes, with all of its processes: its actors would serve reads for a while."""
    (raylet,) = node.all_processes["raylet"]
    below = psutil.Process(raylet.process.pid).children(recursive=True)
    found.remove_node(node, allow_graceful=False)
    for process in below:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    _, alive = psutil.wait_procs(below, timeout=60)
    assert not alive


@contextmanager
def connected(found: Any, folder: Path) -> Iterator[RayRuntime]:
    """A runtime on a cluster of `cluster`, which has no tokens: nobody else reaches it."""
    runtime = RayRuntime(options(folder), address=found.address, allow_insecure=True)
    try:
        yield runtime
    finally:
        runtime.close()
