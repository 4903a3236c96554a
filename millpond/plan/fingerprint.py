"""Identity by content: two things with one fingerprint give the same rows."""

import hashlib

from millpond.plan.nodes import DataSource


def digest(*parts: object) -> str:
    """A short hash of the parts' text. Parts are plain values, whose repr is their content."""
    text = "\x1f".join(repr(part) for part in parts)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def source_identity(source: DataSource) -> str:
    """What a source holds now: path, size and version of each file, or the rows themselves."""
    if source.rows is not None:
        return source.rows.digest
    files = [(file.path, file.size_bytes, file.version) for file in source.files]
    return digest(files, source.values) if source.values else digest(files)
