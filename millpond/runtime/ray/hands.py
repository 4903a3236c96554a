"""Processes that hold GPUs from task to task: what a class has loaded stays there.

Tasks of Ray's own would not do: it ends their process after each, to free the GPU.
"""

import time

from millpond.physical.stages import Resources
from millpond.runtime.ray.cluster import Handle, ray
from millpond.runtime.ray.workers import Hand

_IDLE_S, _IDLE_WITH_MORE_S = 60.0, 10.0  # After which it goes: more are CPUs or memory.


class Hands:
    """Those that are idle; who takes one brings it back, or it has died."""

    def __init__(self) -> None:
        self._idle: dict[Resources, list[tuple[float, Handle]]] = {}  # Since when.

    def take(self, resources: Resources) -> Handle:
        """An idle one, or a new one."""
        idle = self._idle.get(resources)
        if idle:
            return idle.pop()[1]
        # It waits beside its GPU: a whole CPU held meanwhile could be the one that the stage
        # before it needs.
        cpus = resources.cpus if resources.cpus > 1 else 0
        made = ray.remote(Hand).options(
            num_cpus=cpus, num_gpus=resources.gpus, memory=resources.memory_bytes, max_restarts=0
        )
        return made.remote()

    def bring(self, resources: Resources, hand: Handle) -> None:
        self._idle.setdefault(resources, []).append((time.monotonic(), hand))

    def end_idle(self, *, room: bool = False) -> None:
        """Those that nobody has taken for long; to make `room`, all that hold CPUs or memory."""
        now_s = time.monotonic()
        for resources, idle in self._idle.items():
            has_more = resources.cpus > 1 or resources.memory_bytes is not None
            limit_s = (-1.0 if room else _IDLE_WITH_MORE_S) if has_more else _IDLE_S
            for since_s, hand in [one for one in idle if now_s - one[0] > limit_s]:
                idle.remove((since_s, hand))
                ray.kill(hand)

    def close(self) -> None:
        for idle in self._idle.values():
            for _, hand in idle:
                ray.kill(hand)
        self._idle.clear()
