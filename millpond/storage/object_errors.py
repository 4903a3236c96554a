"""What an object store answered, as an error without secrets that says what to check."""

import os
import re
from collections.abc import Mapping

from millpond.errors import MillpondError, PathNotFound, StorageError

_SECRET = re.compile(r"key|secret|token|password|credential|signature|authorization", re.IGNORECASE)
_VENDORS = ("AWS_", "AZURE_", "GOOGLE_", "GCS_")
_FILE_OR_FLAG = re.compile(r"_FILE$|_URI$|^skip_|_SKIP_|_ENABLED$", re.IGNORECASE)

_CHECKS = {
    "PermissionDeniedError": "Check the keys, their rights on the bucket, the region and the "
    "clock of this machine",
    "UnauthenticatedError": "Check the keys, and whether a token among them has expired",
    "NotSupportedError": "This store does not offer the operation",
    "InvalidPathError": "A key may not hold empty, '.' or '..' parts",
    "UnknownConfigurationKeyError": "Check the names in storage_options",
}
_NETWORK = (
    "Check the endpoint, the region, the network and the proxy (and pass allow_http='true' if "
    "the endpoint is plain http)"
)
_BUSY = "The store is overloaded or failing: try again later, or raise max_retries"


class Secrets:
    """The secret values of a storage, to be struck out of every text."""

    def __init__(self, options: Mapping[str, str], environ: Mapping[str, str]) -> None:
        named = dict(options)
        named |= {name: v for name, v in environ.items() if name.startswith(_VENDORS)}
        self._values = sorted(
            {
                value
                for name, value in named.items()
                if _SECRET.search(name) and not _FILE_OR_FLAG.search(name) and len(value) > 3
            },
            key=len,
            reverse=True,
        )

    def __repr__(self) -> str:
        return "Secrets(…)"

    def strike(self, text: str) -> str:
        """`text` with three dots for every secret value in it."""
        for value in self._values:
            text = text.replace(value, "…")
        return text


def explain_answer(error: Exception, path: str, where: str, secrets: Secrets) -> MillpondError:
    """Our error for what the client library raised about `path`."""
    kind = type(error).__name__
    if isinstance(error, FileNotFoundError):
        return PathNotFound(path, where)
    status, said = _summary(str(error))
    if kind in _CHECKS:
        check = _CHECKS[kind]
    else:
        check = _BUSY if status.startswith(("5", "429")) else _NETWORK
    text = ": ".join(part for part in (status, said) if part)
    return StorageError(secrets.strike(f"{where} {path}: {text}. {check}."))


def status_of(error: Exception) -> str:
    """The three digits of the answer's status; "" where there was no answer."""
    return _summary(str(error))[0][:3]


def _summary(text: str) -> tuple[str, str]:
    """Status and words of the answer.

    Of an XML answer only code and message are taken: a refused signature is
    answered with the whole request, tokens included.
    """
    status = re.search(r"status code: (\d{3}[^:\n<]*)", text)
    code = re.search(r"<Code>([^<]*)</Code>", text)
    message = re.search(r"<Message>([^<]*)</Message>", text)
    if code or message:
        words = [found.group(1).strip().rstrip(".") for found in (code, message) if found]
        return (status.group(1).strip() if status else ""), ", ".join(words)
    first = text.split("\n\nDebug source")[0].split("<?xml")[0].split("<html")[0]
    if status:
        return status.group(1).strip(), ""
    tail = re.search(r" - ([^<]*)$", first)
    return "", (tail.group(1) if tail else first).strip()[:300]


def environment() -> Mapping[str, str]:
    """The process's environment, where the vendors' standard variables are."""
    return os.environ
