"""Looks at files that are about to be opened: many at once, each by one request.

Whoever will open files of an object store says so (`expect`); the first that is opened
brings on looks at those that follow it, so nobody waits for one file after the other. A
look is the file as it is now, and bytes of it: all of a small file, else its beginning, or
its end, where the footer of Parquet lies.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from time import monotonic
from typing import NamedTuple

from millpond.storage.pool import start
from millpond.storage.values import FileInfo

BYTES = 64 << 10  # Of a beginning; and of an end, where pyarrow reads as much of it first.
END_BYTES = 32 << 10  # DuckDB reads 16 KiB of an end before it knows how long the footer is.
AHEAD = 64
KEPT = 4 * AHEAD  # So 16 MiB; each task that runs at once has some ahead.
# A query asks for size and time of each file several times while it is planned.
FRESH_S = 2.0
# What nobody opened: its reader may be slow, or gone.
UNUSED_S = 60.0


class Look(NamedTuple):
    """A file as it was, and its bytes from `offset` on, as many as were asked for."""

    info: FileInfo
    offset: int = 0
    data: memoryview = memoryview(b"")


@dataclass(slots=True)
class _Line:
    """Files in the order in which they are opened. Sizes are as they were; -1 is unknown."""

    paths: list[str]
    sizes: list[int]
    end_bytes: int
    opened: int = 0


@dataclass(slots=True)
class _Asked:
    """A look under way or done. `until`: when it is too old."""

    answer: Future[Look]
    until: float
    used: bool = False


class Looks:
    """The looks of one storage.

    `peek` asks for some bytes of a file, by one request; `read_same` gives more of a file that
    was looked at, if it is the same still.
    """

    def __init__(
        self,
        peek: Callable[[str, int, int], Look],
        read_same: Callable[[FileInfo, int, int], memoryview],
    ) -> None:
        self._peek, self.read_same = peek, read_same
        self._lock = threading.Lock()
        self._places: dict[str, tuple[_Line, int]] = {}
        self._asked: dict[str, _Asked] = {}

    def expect(self, files: Sequence[FileInfo | str], *, end_bytes: int) -> None:
        """These will be opened, in this order; what was seen of them before is forgotten."""
        paths = [file if isinstance(file, str) else file.path for file in files]
        with self._lock:
            sizes = [self._size(file) if isinstance(file, str) else file.size_bytes
                     for file in files]  # fmt: skip
            if len(self._places) > 1_000_000:
                self._places.clear()
            line = _Line(paths, sizes, end_bytes)
            for i, path in enumerate(paths):
                self._places[path] = line, i
                self._asked.pop(path, None)

    def renew(self, path: str) -> bool:
        """Whether a file was expected. What a reader before has seen of it is forgotten."""
        with self._lock:
            asked = self._asked.get(path)
            if asked is not None and asked.used:
                del self._asked[path]
            return path in self._places

    def look(self, path: str) -> Look:
        """The file as it is, or was a moment ago; `PathNotFound` if there is none."""
        mine = Future[Look]()
        mine.set_running_or_notify_cancel()
        with self._lock:
            answer = self._answer(path, mine)
        if answer is mine:
            try:
                mine.set_result(self._ask(path))
            except BaseException as error:
                mine.set_exception(error)
        try:
            return answer.result()
        except BaseException:
            with self._lock:
                self._asked.pop(path, None)
            raise

    def _answer(self, path: str, mine: Future[Look]) -> Future[Look]:
        """The look at `path` that is there or under way; else `mine`. Others begin behind it."""
        now = monotonic()
        asked = self._asked.get(path)
        # What no thread has begun is done by the caller: threads of the pool may wait here.
        if asked is None or now > asked.until or asked.answer.cancel():
            asked = self._asked[path] = _Asked(mine, now + FRESH_S)
        elif not asked.used:
            asked.until = now + FRESH_S
        first, asked.used = not asked.used, True
        for other in self._following(path) if first else ():
            there = self._asked.get(other)
            if there is None or now > there.until:
                self._asked.pop(other, None)
                self._asked[other] = _Asked(start(self._ask, other), now + UNUSED_S)
        while len(self._asked) > KEPT:
            del self._asked[next(iter(self._asked))]
        return asked.answer

    def _following(self, path: str) -> Sequence[str]:
        """Few at first: whoever wants the first row alone opens no more files."""
        if path not in self._places:
            return ()
        line, i = self._places[path]
        line.opened += 1
        return line.paths[i + 1 : i + 1 + min(AHEAD, 2 * line.opened)]

    def _ask(self, path: str) -> Look:
        line, i = self._places.get(path, (None, 0))
        if line is None or not line.end_bytes:
            return self._peek(path, 0, BYTES)
        size = line.sizes[i]
        most = line.end_bytes
        look = self._peek(path, max(size - most, 0), most)
        rest = look.info.size_bytes - most
        return self._peek(path, rest, most) if size < 0 < rest else look

    def _size(self, path: str) -> int:
        line, i = self._places.get(path, (None, 0))
        return -1 if line is None else line.sizes[i]
