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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, NoReturn, TypeVar

from millpond.errors import MillpondError, NotAtomic, OptionError, PathNotFound, StorageError
from millpond.lazy import extra
from millpond.storage.clients import check_headers, client_options
from millpond.storage.object_errors import VENDORS, Secrets, environment, explain_answer, status_of
from millpond.storage.object_keys import STORES, Key, locate
from millpond.storage.object_reads import Fetched, gather, read_objects
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
from millpond.storage.profiles import profile_options
from millpond.storage.ranges import merge, split
from millpond.storage.scratch import Scratch
from millpond.storage.values import Buffers, FileInfo, Range, Staged

T = TypeVar("T")

# Neighbours are merged up to this size and read by one request; longer ranges are cut.
MERGED = 8 << 20
CHUNK = 64 << 10  # As they come from the network; larger ones would be copied once more.
# Four pieces of 16 MiB at once take as much memory as eight of 8, and a sixth less of a server.
UPLOAD_PIECE, UPLOADS, UPLOAD_PIECES = 16 << 20, 4, 9_000  # S3 ends an upload at 10,000 pieces.
# S3 copies at most this much in one request; what is larger passes through this machine.
COPY_LIMIT = 5 << 30


class ObjectStorage:
    """All buckets that one set of `options` opens. Reads and writes run in parallel threads.

    Options are in the stores' own words (`endpoint`, `region`, `access_key_id`, …) and
    about the connection (`allow_http`, `timeout`, `max_retries`, …); what is missing
    comes from the environment and, for S3, from the profile files. It is opened where it
    is used and cannot be pickled: keys do not travel.
    """

    def __init__(self, scheme: str, options: Mapping[str, object] | None = None) -> None:
        self._kind = STORES[scheme]
        self._obstore: Any = extra("obstore", extra="s3", what=f"{scheme}://")
        self._errors: Any = extra("obstore.exceptions", extra="s3", what=f"{scheme}://")
        # The library reads its own variables of the environment, but not this one beside ours.
        allow = environment().get("AWS_ALLOW_HTTP")
        self._options = client_options(
            {**({"allow_http": allow} if allow else {}), **(options or {})}
        )
        given = {name: str(value) for name, value in (options or {}).items()}
        if self._kind == "s3":
            found = profile_options(self._options.profile, environment())
            # Keys come in pairs: those of two sources are never mixed.
            if {"access_key_id", "aws_access_key_id"} & set(self._options.store):
                found = {n: v for n, v in found.items() if n in ("region", "endpoint")}
            self._config = {**found, **self._options.store}
        else:
            self._config = dict(self._options.store)
        if self._kind in VENDORS:
            check_headers(self._config, environment(), VENDORS[self._kind])
        self._secrets = Secrets({**self._config, **given}, environment())
        self._lock = threading.Lock()
        self._stores: dict[tuple[str, bool], Any] = {}
        self._one_by_one: set[str] = set()  # Buckets of stores that cannot delete many at once.
        self._atomic: set[str] = set()
        self._scratch: Scratch | None = None

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
        single = self._head(at) if at.key and not at.key.endswith("/") else None
        if self._kind == "http" or (single and is_glob(at.key)):
            if single is None and is_glob(at.key):
                raise StorageError(f"list {prefix}: a web server has no listing; name each file.")
            return iter([single] if single else [])
        if is_glob(at.key):
            matches = glob_regex(at.key).fullmatch
            found = self._below(at._replace(key=glob_root(at.key)))
            return iter([info for key, info in found if matches(key)])
        key = at.key.rstrip("/")
        found = self._below(at._replace(key=key))
        shown = [i for k, i in found if not any(map(hidden, k[len(key) :].split("/")))]
        return iter(([single] if single else []) + shown)

    def stat(self, path: str) -> FileInfo | None:
        """The object as it is now; None where there is none."""
        at = locate(path, self._kind)
        return self._head(at) if at.key and not at.key.endswith("/") else None

    def read_many(self, ranges: Sequence[Range]) -> Buffers:
        """The bytes of each range, in the order asked; short only at the end of an object."""
        reads = merge(ranges, self._size, limit=MERGED)
        return split(ranges, reads, read_objects(reads, self._fetch))

    def local_path(self, path: str) -> str | None:
        """None: an object is no file of this machine."""
        return None

    def words(self) -> dict[str, str]:
        """The options that opened this store, in the words of the `object_store` library."""
        connection = {name: str(item).lower() if isinstance(item, bool) else str(item)
                      for name, item in self._options.connection.items()}  # fmt: skip
        return {**self._config, **connection}

    def strike(self, text: str) -> str:
        """`text` with three dots for every secret of this store."""
        return self._secrets.strike(text)

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
                self._put(at, file, size)
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
        return self._create(at, data)

    def check_atomic(self, path: str) -> None:
        """Find out, once per bucket, whether the store honours conditional writes."""
        self._check_atomic(self._writable(path))

    def delete(self, paths: Iterable[str]) -> None:
        """Remove objects; those that are gone already are no error."""
        keys = sorted(self._writable(path) for path in paths)
        for _, group in groupby(keys, key=lambda at: at.bucket):
            same = list(group)
            if not self._delete_together(same):
                each(self._delete_one, same)

    def remove_scratch(self, folder: str) -> None:
        """Remove all objects below a folder of Millpond's own."""
        at = self._writable(check_scratch(folder).rstrip("/"))
        self.delete([info.path for _, info in self._below(at)])

    # The client library, one call each

    def _store(self, at: Key) -> Any:
        name = (at.bucket, at.bucket in self._one_by_one)
        with self._lock:
            if name not in self._stores:
                self._stores[name] = self._open(at)
            return self._stores[name]

    def _open(self, at: Key) -> Any:
        kinds = extra("obstore.store", extra="s3", what=f"{self._kind}://")
        shared = {"client_options": self._options.connection, "retry_config": self._options.retry}
        try:
            if self._kind == "http":
                return kinds.HTTPStore.from_url(f"{at.scheme}://{at.bucket}", **shared)
            made = {"s3": kinds.S3Store, "gs": kinds.GCSStore, "az": kinds.AzureStore}[self._kind]
            config = dict(self._config)
            if at.bucket in self._one_by_one:
                config["disable_bulk_delete"] = "true"
            return made(at.bucket, **shared, **config)
        except (self._errors.BaseError, ValueError, TypeError, OSError) as error:
            text = str(error).split("\n\nDebug source")[0]
        raise OptionError(self._secrets.strike(f"storage_options for {at.uri}: {text}"))

    def _ask(self, at: Key, where: str, call: Callable[[Any], T]) -> T:
        """`call` of the bucket's store; its error as ours."""
        store = self._store(at)
        try:
            return call(store)
        except FileNotFoundError as error:
            failure = self._missing(at, where, error)
        except (self._errors.BaseError, OSError, ValueError) as error:
            failure = explain_answer(error, at.uri, where, self._secrets)
        # Raised out here, so that no traceback shows the answer, which may hold a token.
        raise failure

    def _missing(self, at: Key, where: str, error: Exception) -> MillpondError:
        """A missing object and a missing bucket both give 404; a listing tells them apart."""
        if self._kind != "http":
            try:
                next(iter(self._obstore.list(self._store(at), at.key, chunk_size=1)), None)
            except (self._errors.BaseError, OSError) as found:
                text = explain_answer(found, f"{self._kind}://{at.bucket}", where, self._secrets)
                return StorageError(f"{text} Check that the bucket exists (wanted: {at.key!r}).")
        return explain_answer(error, at.uri, where, self._secrets)

    def _head(self, at: Key) -> FileInfo | None:
        store = self._store(at)
        try:
            return _info(at, self._obstore.head(store, at.key))
        except FileNotFoundError:
            return None
        except (self._errors.BaseError, OSError, ValueError) as error:
            failure = explain_answer(error, at.uri, "stat", self._secrets)
        raise failure

    def _size(self, path: str) -> int:
        info = self.stat(path)
        if info is None:
            at = locate(path, self._kind)
            raise self._missing(at, "read", FileNotFoundError())
        return info.size_bytes

    def _below(self, at: Key) -> Sequence[tuple[str, FileInfo]]:
        def listed(store: Any) -> Sequence[Any]:
            chunks = self._obstore.list(store, at.key or None, chunk_size=1000)
            return [meta for chunk in chunks for meta in chunk]

        found = {meta["path"]: meta for meta in self._ask(at, "list", listed)}
        empty = [key for key, meta in found.items() if meta["size"] == 0]
        if empty:
            # Tools make objects named "folder/" to show a folder; the library drops the slash.
            folders = {key[: key.rindex("/")] for key in found if "/" in key}
            checked = [at._replace(key=key) for key in empty if key not in folders]
            real = {one.key for one in checked if self._head(one) is not None}
            found = {key: meta for key, meta in found.items() if meta["size"] or key in real}
        return [(key, _info(at._replace(key=key), found[key])) for key in sorted(found)]

    def _fetch(self, path: str, offset: int, length: int, memory: Sequence[memoryview]) -> Fetched:
        at = self._file(path, "read")
        span = (offset, offset + length)

        def get(store: Any) -> Fetched:
            try:
                got = self._obstore.get(store, at.key, options={"range": span})
            except self._errors.BaseError as error:
                # Stores refuse a range that begins behind the end; for a file that is no
                # error. The status only says that asking for the size is worth it.
                meta = self._obstore.head(store, at.key) if status_of(error) == "416" else None
                if meta is None or offset < meta["size"]:
                    raise
                return Fetched(0, meta["size"], _version(meta))
            size, version = got.meta["size"], _version(got.meta)
            if memory:
                n_bytes = gather(got.stream(min_chunk_size=CHUNK), memory)
                return Fetched(n_bytes, size, version)
            data = memoryview(got.bytes())
            return Fetched(len(data), size, version, data)

        return self._ask(at, "read", get)

    def _put(self, at: Key, file: Any, size: int) -> None:
        piece = max(UPLOAD_PIECE, -(-size // UPLOAD_PIECES))
        self._ask(
            at,
            "write",
            lambda store: self._obstore.put(
                store,
                at.key,
                file,
                chunk_size=piece,
                use_multipart=size > piece,
                max_concurrency=UPLOADS,
            ),
        )

    def _copy(self, staged: Staged) -> None:
        source, target = locate(staged.upload, self._kind), locate(staged.path, self._kind)

        def copy(store: Any) -> None:
            if staged.size_bytes <= COPY_LIMIT:
                self._obstore.copy(store, source.key, target.key)
            else:
                stream = self._obstore.get(store, source.key).stream(min_chunk_size=UPLOAD_PIECE)
                piece = -(-staged.size_bytes // UPLOAD_PIECES)
                self._obstore.put(
                    store,
                    target.key,
                    stream,
                    chunk_size=max(piece, UPLOAD_PIECE),
                    max_concurrency=UPLOADS,
                )

        try:
            self._ask(target, "publish", copy)
        except PathNotFound:
            failure = StorageError(
                f"publish {staged.path}: its staged upload {staged.upload} is gone. "
                "It was published or discarded before, or another process cleaned up."
            )
        else:
            return
        raise failure

    def _create(self, at: Key, data: bytes) -> bool:
        # If an answer is lost, the library asks again and hears "exists". The mark tells
        # our own object from another's; stores without metadata make it look like theirs.
        mark = secrets.token_hex(16)

        def put(store: Any) -> bool:
            try:
                self._obstore.put(
                    store, at.key, data, mode="create", attributes={"millpondput": mark}
                )
            except self._errors.AlreadyExistsError:
                found = self._obstore.get(store, at.key, options={"head": True})
                return bool(found.attributes.get("millpondput") == mark)
            return True

        return self._ask(at, "create", put)

    def _check_atomic(self, at: Key) -> None:
        if at.bucket in self._atomic:
            return
        probe = _staging(at, f"probe-{secrets.token_hex(8)}", at.key.rpartition("/")[0])
        try:
            twice = [self._create(probe, b"probe") for _ in range(2)]
        finally:
            self.delete([probe.uri])
        if twice != [True, False]:
            raise NotAtomic(
                f"create {at.uri}: this store ignores conditional writes (it overwrote a file that "
                "it was told to create only if absent), so two writers could destroy each other's "
                "work. Write to a new folder, or append on a store that honours If-None-Match."
            )
        self._atomic.add(at.bucket)

    def _delete_together(self, keys: Sequence[Key]) -> bool:
        """Remove many by one request. False: not all are gone, and one by one will say why."""
        bucket = keys[0].bucket
        if bucket in self._one_by_one:
            return False
        try:
            self._obstore.delete(self._store(keys[0]), [at.key for at in keys])
        except (self._errors.BaseError, FileNotFoundError):
            # Stores that speak S3 do not all have this request, and Google's and Azure's
            # stop at an object that is gone already.
            if self._kind == "s3":
                self._one_by_one.add(bucket)
            return False
        return True

    def _delete_one(self, at: Key) -> None:
        try:
            self._ask(at, "delete", lambda store: self._obstore.delete(store, at.key))
        except PathNotFound:
            return

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


def _version(meta: Mapping[str, Any]) -> str:
    return str(meta["e_tag"] or meta["version"] or meta["last_modified"].isoformat())


def _info(at: Key, meta: Mapping[str, Any]) -> FileInfo:
    modified_s = int(meta["last_modified"].timestamp())
    return FileInfo(at.uri, meta["size"], _version(meta), modified_s)
