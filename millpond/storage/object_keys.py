"""URIs of objects: which store, which bucket, which key. Nothing here asks a store."""

import re
from typing import NamedTuple
from urllib.parse import quote, unquote, urlsplit

from millpond.errors import StorageError
from millpond.storage.paths import scheme

# The schemes that users write, and the kind of store that each means.
STORES = {
    "s3": "s3",
    "s3a": "s3",
    "gs": "gs",
    "gcs": "gs",
    "az": "az",
    "azure": "az",
    "http": "http",
    "https": "http",
}


_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class Key(NamedTuple):
    """Where an object is. The key is as the store spells it, with no escapes."""

    scheme: str
    bucket: str
    key: str

    @property
    def uri(self) -> str:
        """The way that users write it."""
        key = (
            quote(self.key, safe="/~!$&'()*+,;=:@") if self.scheme.startswith("http") else self.key
        )
        return f"{self.scheme}://{self.bucket}/{key}"


def locate(path: str, kind: str) -> Key:
    """The place that a URI names; keys of object stores are taken literally.

    A web address is unescaped; one with a password or a query is refused, since
    those are secrets more often than not and would end in messages.
    """
    word = scheme(path)
    if STORES.get(word) != kind:
        raise StorageError(f"{path!r} is no path of a store opened for {kind}://.")
    bucket, _, key = path[len(word) + 3 :].partition("/")
    if not bucket:
        raise StorageError(f"{path!r} names no bucket: write {word}://bucket/key.")
    if kind == "http":
        parts = urlsplit(path)
        if "@" in bucket or parts.query or parts.fragment or "?" in bucket:
            host = bucket.rpartition("@")[2].partition("?")[0]
            raise StorageError(
                f"{word}://{host}: an address with a password, a query or a fragment cannot be "
                "opened. Use s3://, gs:// or az:// with keys in storage_options instead."
            )
        key = unquote(key)
    key = key.lstrip("/")
    names = key.removesuffix("/").split("/")
    if key and (any(part in ("", ".", "..") for part in names) or _CONTROL.search(key)):
        raise StorageError(
            f"{path!r} cannot be a key here: empty parts ('//'), '.', '..' and control characters "
            "are refused. Rename such objects with the store's own tools."
        )
    return Key(word, bucket, key)
