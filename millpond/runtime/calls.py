"""Which calls run on a node, told by files: who renames a call's file first decides its end.

Ray ends the program that cancels a call in the moment of its end, and tells nobody whether
a call has begun (docs/decisions/0122). So each process leaves a file while it runs a call,
and the node's service takes the file of a call that is not wanted: it cannot end any more,
but by being cancelled.
"""

import os
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

from millpond.storage.oserrors import explained

_DROPPED, _ENDED, _TAKEN = "dropped", "ended", "taken"  # What becomes of a call's name.
_CANCELLED_S = 60.0  # For which a call that was taken waits to be cancelled.


@dataclass(frozen=True, slots=True)
class Dropped:
    """Of some calls those that began on a node; of any other it knows nothing.

    Those that were `taken` run until somebody cancels them. The answers of the others count:
    they have ended, or (on a full disk) may yet begin.
    """

    taken: tuple[str, ...]
    others: tuple[str, ...]


class Calls:
    """The calls of one session on one node. All of its processes share `folder`, which exists.

    A process begins and ends a call, another drops it. However they race, the process ends
    the call, or the call is taken, or it never begins.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._last = ""  # The file of the call that this process ended last.

    def begin(self, call: str) -> bool:
        """Note that this process runs it. False: it was dropped, and is not to be run.

        Raises `DiskFull` and other `MillpondError`s if it cannot be noted.
        """
        with suppress(FileNotFoundError):
            os.unlink(self._last)
        running = self._path(call, str(os.getpid()))
        with explained(running, "stage"):
            os.close(os.open(running, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        # Only now: who drops it looks for the file after leaving word.
        if not os.path.exists(self._path(call, _DROPPED)):
            return True
        self.end(call)
        return False

    def end(self, call: str) -> None:
        """Note that this process has ended it. It does not return if the call was taken."""
        running = self._path(call, str(os.getpid()))
        self._last = f"{running}.{_ENDED}"
        try:
            os.rename(running, self._last)
        except FileNotFoundError:
            time.sleep(_CANCELLED_S)
            os.kill(os.getpid(), signal.SIGKILL)  # Whoever took it has died.

    def drop(self, calls: Iterable[str]) -> Dropped:
        """Take these where they run, and let none begin here."""
        told = {call: self._leave_word(call) for call in calls}
        taken, others = [], {call for call, is_told in told.items() if not is_told}
        for name in os.listdir(self.folder):
            call, _, rest = name.partition(".")
            if call in told and rest != _DROPPED:
                is_ours = rest.endswith(_TAKEN) or (rest.isdigit() and self._take(name))
                taken += [call] if is_ours else []
                others.add(call)
        return Dropped(tuple(taken), tuple(others.difference(taken)))

    def close(self) -> None:
        """From here on no call begins."""
        os.rename(self.folder, f"{self.folder}.closed")

    def _take(self, name: str) -> bool:
        path = os.path.join(self.folder, name)
        try:
            os.rename(path, f"{path}.{_TAKEN}")
        except FileNotFoundError:
            return False  # It has just ended.
        return True

    def _leave_word(self, call: str) -> bool:
        try:
            os.close(os.open(self._path(call, _DROPPED), os.O_CREAT | os.O_WRONLY, 0o600))
        except OSError:  # Such as a full disk: what runs can still be taken.
            return False
        return True

    def _path(self, call: str, what: str) -> str:
        return os.path.join(self.folder, f"{call}.{what}")
