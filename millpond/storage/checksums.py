"""Checksums of whole files, as manifests and journals keep them."""

import xxhash

from millpond.storage.protocol import Storage, read_ahead
from millpond.storage.values import Range

_PIECE = 16 << 20


def checksum_of(storage: Storage, path: str, size_bytes: int) -> str:
    """The checksum of a file of this size. Reads all of it, some pieces ahead."""
    seen = xxhash.xxh3_64()
    starts = range(0, size_bytes, _PIECE)
    pieces = (Range(path, at, min(_PIECE, size_bytes - at)) for at in starts)
    for _, data in read_ahead(storage, pieces):
        seen.update(data)
    return f"xxh3:{seen.hexdigest()}"
