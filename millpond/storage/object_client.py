"""The client library of object stores: one call each, and its errors as ours.

What is asked for is a `Key`; what paths mean, and how files are staged and published, is
`object_store`'s. Credentials are read here, and struck from every message.
"""

import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from millpond.errors import MillpondError, OptionError, PathNotFound, StorageError
from millpond.lazy import extra
from millpond.storage.clients import check_headers, client_options
from millpond.storage.object_errors import VENDORS, Secrets, environment, explain_answer, status_of
from millpond.storage.object_keys import STORES, Key
from millpond.storage.object_reads import Fetched, gather
from millpond.storage.pool import each
from millpond.storage.profiles import profile_options
from millpond.storage.values import FileInfo

T = TypeVar("T")

CHUNK = 64 << 10  # As they come from the network; larger ones would be copied once more.
# Four pieces of 16 MiB at once take as much memory as eight of 8, and a sixth less of a server.
UPLOAD_PIECE, UPLOADS, UPLOAD_PIECES = 16 << 20, 4, 9_000  # S3 ends an upload at 10,000 pieces.
# S3 copies at most this much in one request; what is larger passes through this machine.
COPY_LIMIT = 5 << 30


class ObjectClient:
    """All buckets that one set of options opens."""

    def __init__(self, scheme: str, options: Mapping[str, object] | None = None) -> None:
        self.kind = STORES[scheme]
        self._obstore: Any = extra("obstore", extra="s3", what=f"{scheme}://")
        self._errors: Any = extra("obstore.exceptions", extra="s3", what=f"{scheme}://")
        # The library reads its own variables of the environment, but not this one beside ours.
        allow = environment().get("AWS_ALLOW_HTTP")
        self._options = client_options(
            {**({"allow_http": allow} if allow else {}), **(options or {})}
        )
        given = {name: str(value) for name, value in (options or {}).items()}
        if self.kind == "s3":
            found = profile_options(self._options.profile, environment())
            # Keys come in pairs: those of two sources are never mixed.
            if {"access_key_id", "aws_access_key_id"} & set(self._options.store):
                found = {n: v for n, v in found.items() if n in ("region", "endpoint")}
            self._config = {**found, **self._options.store}
        else:
            self._config = dict(self._options.store)
        if self.kind in VENDORS:
            check_headers(self._config, environment(), VENDORS[self.kind])
        self._secrets = Secrets({**self._config, **given}, environment())
        self._lock = threading.Lock()
        self._stores: dict[tuple[str, bool], Any] = {}
        self._one_by_one: set[str] = set()  # Buckets of stores that cannot delete many at once.

    def words(self) -> dict[str, str]:
        """The options that opened this store, in the words of the `object_store` library."""
        connection = {name: str(item).lower() if isinstance(item, bool) else str(item)
                      for name, item in self._options.connection.items()}  # fmt: skip
        return {**self._config, **connection}

    def strike(self, text: str) -> str:
        """`text` with three dots for every secret of this store."""
        return self._secrets.strike(text)

    def _store(self, at: Key) -> Any:
        name = (at.bucket, at.bucket in self._one_by_one)
        with self._lock:
            if name not in self._stores:
                self._stores[name] = self._open(at)
            return self._stores[name]

    def _open(self, at: Key) -> Any:
        kinds = extra("obstore.store", extra="s3", what=f"{self.kind}://")
        shared = {"client_options": self._options.connection, "retry_config": self._options.retry}
        try:
            if self.kind == "http":
                return kinds.HTTPStore.from_url(f"{at.scheme}://{at.bucket}", **shared)
            made = {"s3": kinds.S3Store, "gs": kinds.GCSStore, "az": kinds.AzureStore}[self.kind]
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
        if self.kind != "http":
            try:
                next(iter(self._obstore.list(self._store(at), at.key, chunk_size=1)), None)
            except (self._errors.BaseError, OSError) as found:
                text = explain_answer(found, f"{self.kind}://{at.bucket}", where, self._secrets)
                return StorageError(f"{text} Check that the bucket exists (wanted: {at.key!r}).")
        return explain_answer(error, at.uri, where, self._secrets)

    def head(self, at: Key) -> FileInfo | None:
        """The object as it is now; None where there is none."""
        store = self._store(at)
        try:
            return _info(at, self._obstore.head(store, at.key))
        except FileNotFoundError:
            return None
        except (self._errors.BaseError, OSError, ValueError) as error:
            failure = explain_answer(error, at.uri, "stat", self._secrets)
        raise failure

    def size(self, at: Key) -> int:
        """How long an object is that must exist."""
        info = self.head(at)
        if info is None:
            raise self._missing(at, "read", FileNotFoundError())
        return info.size_bytes

    def below(self, at: Key) -> Sequence[tuple[str, FileInfo]]:
        """Key and description of all objects below a key, sorted by key."""

        def listed(store: Any) -> Sequence[Any]:
            chunks = self._obstore.list(store, at.key or None, chunk_size=1000)
            return [meta for chunk in chunks for meta in chunk]

        found = {meta["path"]: meta for meta in self._ask(at, "list", listed)}
        empty = [key for key, meta in found.items() if meta["size"] == 0]
        if empty:
            # Tools make objects named "folder/" to show a folder; the library drops the slash.
            folders = {key[: key.rindex("/")] for key in found if "/" in key}
            checked = [at._replace(key=key) for key in empty if key not in folders]
            heads = each(self.head, checked)
            real = {one.key for one, head in zip(checked, heads, strict=True) if head}
            found = {key: meta for key, meta in found.items() if meta["size"] or key in real}
        return [(key, _info(at._replace(key=key), found[key])) for key in sorted(found)]

    def fetch(self, at: Key, offset: int, length: int, memory: Sequence[memoryview]) -> Fetched:
        """Some bytes of an object by one request, into the stretches of `memory` if any."""
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
                return Fetched(0, _info(at, meta))
            info = _info(at, got.meta)
            if memory:
                return Fetched(gather(got.stream(min_chunk_size=CHUNK), memory), info)
            data = memoryview(got.bytes())
            return Fetched(len(data), info, data)

        return self._ask(at, "read", get)

    def put(self, at: Key, file: Any, size: int) -> None:
        """Upload an open file of `size` bytes, in parallel pieces if it is large."""
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

    def copy(self, source: Key, target: Key, size: int) -> None:
        """Copy an object of `size` bytes, on the server where it does that."""

        def copy(store: Any) -> None:
            if size <= COPY_LIMIT:
                self._obstore.copy(store, source.key, target.key)
            else:
                stream = self._obstore.get(store, source.key).stream(min_chunk_size=UPLOAD_PIECE)
                piece = -(-size // UPLOAD_PIECES)
                self._obstore.put(
                    store,
                    target.key,
                    stream,
                    chunk_size=max(piece, UPLOAD_PIECE),
                    max_concurrency=UPLOADS,
                )

        self._ask(target, "publish", copy)

    def create(self, at: Key, data: bytes) -> bool:
        """Put an object only if there is none; False if there is."""
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

    def delete(self, keys: Sequence[Key]) -> None:
        """Remove objects of one bucket; those that are gone already are no error."""
        if not self._delete_together(keys):
            each(self._delete_one, keys)

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
            if self.kind == "s3":
                self._one_by_one.add(bucket)
            return False
        return True

    def _delete_one(self, at: Key) -> None:
        try:
            self._ask(at, "delete", lambda store: self._obstore.delete(store, at.key))
        except PathNotFound:
            return


def _version(meta: Mapping[str, Any]) -> str:
    return str(meta["e_tag"] or meta["version"] or meta["last_modified"].isoformat())


def _info(at: Key, meta: Mapping[str, Any]) -> FileInfo:
    modified_s = int(meta["last_modified"].timestamp())
    return FileInfo(at.uri, meta["size"], _version(meta), modified_s)
