"""The `Storage` protocol: what every store can do for the rooms above."""

import secrets
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from millpond.errors import NotAtomic
from millpond.storage.looks import BYTES, END_BYTES, Looks
from millpond.storage.values import Buffers, FileInfo, Range, Staged

AHEAD = 2  # Requests under way while the answer to one is used.


class Storage(Protocol):
    """What every store can do. Paths are full paths or URIs of that store."""

    @property
    def looks(self) -> Looks | None:
        """How files are opened that `local_path` does not give; None where it gives all."""

    def list(self, prefix: str) -> Iterator[FileInfo]:
        """All files at or below `prefix`, sorted by path; hidden and staged ones left out."""

    def stat(self, path: str) -> FileInfo | None:
        """The file as it is now; None where there is none."""

    def read_many(self, ranges: Sequence[Range]) -> Buffers:
        """The bytes of each range, in the order asked; short only at the end of a file."""

    def stage(self, path: str, tag: str, *, below: str = "") -> Staged:
        """Begin to write `path` aside. `tag` (task and attempt) keeps attempts apart.

        The file lies aside in its own folder, or in the folder `below` above it.
        """

    def seal(self, staged: Staged) -> Staged:
        """Make what was written durable (synced, or uploaded), still unseen by readers."""

    def publish(self, staged: Sequence[Staged]) -> None:
        """Give sealed files their final names."""

    def discard(self, staged: Sequence[Staged]) -> None:
        """Remove what was staged; nothing is left of it."""

    def put_if_absent(self, path: str, data: bytes) -> bool:
        """Create `path` with `data` in one step; False, and no change, if it exists."""

    def check_atomic(self, path: str) -> None:
        """Raise `NotAtomic` where `put_if_absent` cannot work; it may write beside `path`."""

    def delete(self, paths: Iterable[str]) -> None:
        """Remove files; those that are gone already are no error."""

    def remove_scratch(self, folder: str) -> None:
        """Remove a folder that lies in, or is, one whose name begins with `.millpond`."""

    def local_path(self, path: str) -> str | None:
        """Where this machine may open `path` as an ordinary file; None where it may not."""

    def words(self) -> dict[str, str]:
        """What a library that opens this store by itself must be told: keys among it."""

    def strike(self, text: str) -> str:
        """`text` without this store's secrets."""


def put_new(storage: Storage, path: str, data: bytes) -> bool:
    """As `put_if_absent`, for names that no other writer uses at the same moment.

    So it also works on stores that cannot create a file only if absent: there it looks
    first, and then writes.
    """
    try:
        return storage.put_if_absent(path, data)
    except NotAtomic:
        if storage.stat(path) is not None:
            return False
    staged = storage.stage(path, f"put-{secrets.token_hex(8)}")
    with open(staged.local, "wb") as file:
        file.write(data)
    storage.publish([storage.seal(staged)])
    return True


def expect(
    storage: Callable[[str], Storage],
    files: Sequence[FileInfo | str],
    *,
    ends: bool,
    by_arrow: bool = False,
) -> None:
    """These files will be opened soon, in this order; `ends` says that it begins at the end,
    of which pyarrow reads more than DuckDB.

    Costs nothing by itself: the first one that is opened lets others be looked at meanwhile.
    """
    apart: dict[int, tuple[Looks, list[FileInfo | str]]] = {}
    for file in files:
        looks = storage(file if isinstance(file, str) else file.path).looks
        if looks is not None:
            apart.setdefault(id(looks), (looks, []))[1].append(file)
    for looks, some in apart.values():
        looks.expect(some, end_bytes=(BYTES if by_arrow else END_BYTES) if ends else 0)


def read_ahead(storage: Storage, ranges: Iterable[Range]) -> Iterator[tuple[Range, memoryview]]:
    """Each range and its bytes, in order, and one range at a time.

    Of an object store the next ones are asked for while the caller uses this one; a file
    system reads ahead by itself. Ends with the first error, or when the caller does.
    """
    waiting: deque[tuple[Range, Future[Buffers]]] = deque()
    pool: ThreadPoolExecutor | None = None
    try:
        for wanted in ranges:
            if storage.local_path(wanted.path) is not None:
                yield wanted, storage.read_many([wanted])[0]
                continue
            pool = pool or ThreadPoolExecutor(AHEAD, thread_name_prefix="read-ahead")
            waiting.append((wanted, pool.submit(storage.read_many, [wanted])))
            if len(waiting) > AHEAD:
                asked, answer = waiting.popleft()
                yield asked, answer.result()[0]
        while waiting:
            asked, answer = waiting.popleft()
            yield asked, answer.result()[0]
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)
