"""A Ray cluster as a place to run: the only package that imports ray, in `cluster`.

Ray places tasks and moves bytes; its own retries are off, because one schedule decides for
all runtimes. No port is opened: bytes of parts travel as results of calls. Secrets
(`WorkerOptions`) go to a node's service when that starts, and from there to the worker
processes of the node, never with a task.

`runtime` submits and ends calls, `nodes` follows the cluster, `workers` is what runs there,
`reach` tells whether one answers.
"""

from millpond.runtime.ray.runtime import RayRuntime

__all__ = ["RayRuntime"]
