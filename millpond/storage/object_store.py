"""Object stores: S3 and what speaks like it, Google's, Azure's, and web servers to read from.

An object appears whole or not at all, so nothing here needs a rename. The client
library cannot begin an upload in one process and complete it in another, so `seal`
uploads to a hidden staging key and `publish` copies on the server
(docs/decisions/0030-object-stores-copy-at-publish.md).
"""

import os
import secrets
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import NoReturn

from millpond.errors import NotAtomic, PathNotFound, StorageError
from millpond.storage.looks import Look, Looks
from millpond.storage.object_client import ObjectClient
from millpond.storage.object_keys import Key, locate
from millpond.storage.object_reads import Fetched, read_objects, replaced
from millpond.storage.oserrors import explained
from millpond.storage.paths import (
    STAGING,
    check_scratch,
    glob_regex,
    glob_root,
    hidden,
    is_glob,
    staging_name,
)
from millpond.storage.pool import each
from millpond.storage.ranges import merge, split
from millpond.storage.scratch import Scratch
from millpond.storage.values import Buffers, FileInfo, Range, Staged

# Neighbours are merged up to this size and read by one request; longer ranges are cut.
MERGED = 8 << 20


class ObjectStorage:
    """All buckets that one set of `options` opens. Reads and writes run in parallel threads.

    Options are in the stores' own words (`endpoint`, `region`, `access_key_id`, …) and
    about the connection (`allow_http`, `timeout`, `max_retries`, …); what is missing
    comes from the environment and, for S3, from the profile files. It is opened where it
    is used and cannot be pickled: keys do not travel.
    """

    def __init__(self, scheme: str, options: Mapping[str, object] | None = None) -> None:
        self._client = ObjectClient(scheme, options)
        self._kind = self._client.kind
        self._lock = threading.Lock()
        self._atomic: set[str] = set()
        self._scratch: Scratch | None = None
        self.looks = Looks(self.peek, self.read_same)

    def __repr__(self) -> str:
        return f"ObjectStorage({self._kind!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "an ObjectStorage holds keys, which do not travel: open it where it is used"
        )

    # Reading

    def list(self, prefix: str) -> Iterator[FileInfo]:
        """All objects at or below `prefix`, a folder, an object or a glob, sorted by path.

        A web server has no listing: there, `prefix` must name one file.
        """
        at = locate(prefix, self._kind)
        single = self._client.head(at) if at.key and not at.key.endswith("/") else None
        if self._kind == "http" or (single and is_glob(at.key)):
            if single is None and is_glob(at.key):
                raise StorageError(f"list {prefix}: a web server has no listing; name each file.")
            return iter([single] if single else [])
        if is_glob(at.key):
            matches = glob_regex(at.key).fullmatch
            found = self._client.below(at._replace(key=glob_root(at.key)))
            return iter([info for key, info in found if matches(key)])
        key = at.key.rstrip("/")
        found = self._client.below(at._replace(key=key))
        shown = [i for k, i in found if not any(map(hidden, k[len(key) :].split("/")))]
        return iter(([single] if single else []) + shown)

    def stat(self, path: str) -> FileInfo | None:
        """The object as it is now; None where there is none."""
        at = locate(path, self._kind)
        return self._client.head(at) if at.key and not at.key.endswith("/") else None

    def read_many(self, ranges: Sequence[Range]) -> Buffers:
        """The bytes of each range, in the order asked; short only at the end of an object."""
        reads = merge(ranges, self._size, limit=MERGED)
        return split(ranges, reads, read_objects(reads, self._fetch))

    def peek(self, path: str, offset: int, length: int) -> Look:
        """The object as it is now and some bytes of it, by one request."""
        answer = self._fetch(path, offset, length, ())
        return Look(answer.info, offset, answer.data)

    def read_same(self, info: FileInfo, offset: int, length: int) -> memoryview:
        """Bytes of the object that `info` describes; an error if it was replaced since."""

        def fetch(path: str, at: int, n: int, memory: Sequence[memoryview]) -> Fetched:
            answer = self._fetch(path, at, n, memory)
            if answer.info.version != info.version:
                raise replaced(path)
            return answer

        wanted = [Range(info.path, offset, length)]
        reads = merge(wanted, self._size, limit=MERGED)
        return split(wanted, reads, read_objects(reads, fetch))[0]

    def local_path(self, path: str) -> str | None:
        """None: an object is no file of this machine."""
        return None

    def words(self) -> dict[str, str]:
        """The options that opened this store, in the words of the `object_store` library."""
        return self._client.words()

    def strike(self, text: str) -> str:
        """`text` with three dots for every secret of this store."""
        return self._client.strike(text)

    # Writing

    def stage(self, path: str, tag: str, *, below: str = "") -> Staged:
        """Begin to write `path`, to a file on this machine's disk (where `TMPDIR` says)."""
        at = self._writable(path)
        folder = locate(below, self._kind).key if below else at.key.rpartition("/")[0]
        with self._lock:
            if self._scratch is None:
                self._scratch = Scratch(f"upload-{secrets.token_hex(6)}")
                weakref.finalize(self, self._scratch.remove)
        name = f"{secrets.token_hex(8)}-{staging_name(at.key, tag)[-100:]}"
        local = os.path.join(self._scratch.path, name)
        with explained(local, "stage"):
            os.close(os.open(local, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        return Staged(at.uri, local, upload=_staging(at, tag, folder).uri)

    def seal(self, staged: Staged) -> Staged:
        """Upload the file to its staging key, in parallel pieces, and remove it here."""
        at = locate(staged.upload, self._kind)
        with explained(staged.local, "seal"):
            size = os.stat(staged.local).st_size
            with open(staged.local, "rb") as file:
                self._client.put(at, file, size)
            os.unlink(staged.local)
        return replace(staged, size_bytes=size)

    def publish(self, staged: Sequence[Staged]) -> None:
        """Copy sealed files to their final keys on the server, then remove the staged ones."""
        for file in staged:
            assert file.size_bytes >= 0, f"{file.path} was not sealed"
        each(self._copy, staged)
        self.delete([file.upload for file in staged])

    def discard(self, staged: Sequence[Staged]) -> None:
        """Remove what was staged, here and in the store."""
        for file in staged:
            with explained(file.local, "discard"):
                if os.path.exists(file.local):
                    os.unlink(file.local)
        self.delete([file.upload for file in staged if file.size_bytes >= 0])

    def put_if_absent(self, path: str, data: bytes) -> bool:
        """Create `path` with `data` in one request; False if it exists.

        A store that would overwrite it instead is found out first, once per bucket:
        there, this is `NotAtomic`, and nothing is written.
        """
        at = self._writable(path)
        self._check_atomic(at)
        return self._client.create(at, data)

    def check_atomic(self, path: str) -> None:
        """Find out, once per bucket, whether the store honours conditional writes."""
        self._check_atomic(self._writable(path))

    def delete(self, paths: Iterable[str]) -> None:
        """Remove objects; those that are gone already are no error."""
        keys = sorted(self._writable(path) for path in paths)
        for _, group in groupby(keys, key=lambda at: at.bucket):
            self._client.delete(list(group))

    def remove_scratch(self, folder: str) -> None:
        """Remove all objects below a folder of Millpond's own."""
        at = self._writable(check_scratch(folder).rstrip("/"))
        self.delete([info.path for _, info in self._client.below(at)])

    def _size(self, path: str) -> int:
        return self._client.size(self._file(path, "read"))

    def _fetch(self, path: str, offset: int, length: int, memory: Sequence[memoryview]) -> Fetched:
        return self._client.fetch(self._file(path, "read"), offset, length, memory)

    def _copy(self, staged: Staged) -> None:
        source, target = locate(staged.upload, self._kind), locate(staged.path, self._kind)
        try:
            self._client.copy(source, target, staged.size_bytes)
        except PathNotFound:
            failure = StorageError(
                f"publish {staged.path}: its staged upload {staged.upload} is gone. "
                "It was published or discarded before, or another process cleaned up."
            )
        else:
            return
        raise failure

    def _check_atomic(self, at: Key) -> None:
        if at.bucket in self._atomic:
            return
        probe = _staging(at, f"probe-{secrets.token_hex(8)}", at.key.rpartition("/")[0])
        try:
            twice = [self._client.create(probe, b"probe") for _ in range(2)]
        finally:
            self.delete([probe.uri])
        if twice != [True, False]:
            raise NotAtomic(
                f"create {at.uri}: this store ignores conditional writes (it overwrote a file that "
                "it was told to create only if absent), so two writers could destroy each other's "
                "work. Write to a new folder, or append on a store that honours If-None-Match."
            )
        self._atomic.add(at.bucket)

    def _writable(self, path: str) -> Key:
        at = locate(path, self._kind)
        if self._kind == "http":
            raise StorageError(f"write {at.uri}: a web server is read-only for Millpond.")
        return self._file(path, "write")

    def _file(self, path: str, where: str) -> Key:
        at = locate(path, self._kind)
        if not at.key or at.key.endswith("/"):
            raise StorageError(f"{where} {at.uri}: this names a bucket or a folder, not a file.")
        return at


def _staging(at: Key, tag: str, folder: str) -> Key:
    name, folder = staging_name(at.key, tag), folder.rstrip("/")
    return at._replace(key=f"{folder}/{STAGING}/{name}" if folder else f"{STAGING}/{name}")
