"""Threads of the loader end before the interpreter does.

A thread that wants the interpreter's lock when it is gone is ended by force, in the middle
of numpy or a store's client: the process aborts, after its work was done.
"""

import atexit
import weakref
from typing import Protocol


class Closes(Protocol):
    def close(self) -> None:
        """End the thread, and wait until it has ended."""


_open: "weakref.WeakSet[Closes]" = weakref.WeakSet()


def close_at_exit(owner: Closes) -> None:
    """Close `owner` of a thread when the process ends, unless it is gone by then."""
    _open.add(owner)


@atexit.register
def _close_all() -> None:
    for owner in list(_open):
        owner.close()
