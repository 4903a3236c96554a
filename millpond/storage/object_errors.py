"""What an object store answered, as an error without secrets that says what to check."""

import json
import os
import re
from collections.abc import Mapping
from html import escape
from urllib.parse import parse_qsl, quote, quote_plus

from millpond.errors import MillpondError, PathNotFound, StorageError

_SECRET = re.compile(r"key|secret|token|password|credential|signature|authorization", re.IGNORECASE)
# How the names of the variables begin that the client library reads, by kind of store.
VENDORS = {"s3": "AWS_", "az": "AZURE_", "gs": "GOOGLE_"}
_FILE_OR_FLAG = re.compile(r"_FILE$|_URI$|^skip_|_SKIP_|_ENABLED$", re.IGNORECASE)

_EXPIRED = "The keys, or the token among them, have expired: get new ones, and check the clock"
_REGION = "Check the region, and whether the endpoint is the one of this bucket"
# By the code in the answer, which says more than the status does.
_CODES = {
    "ExpiredToken": _EXPIRED,
    "ExpiredTokenException": _EXPIRED,
    "InvalidToken": _EXPIRED,
    "RequestExpired": _EXPIRED,
    "TokenRefreshRequired": _EXPIRED,
    "RequestTimeTooSkewed": "Set the clock of this machine",
    "AuthorizationHeaderMalformed": _REGION,
    "PermanentRedirect": _REGION,
}
_RIGHTS = (
    "Check the keys, their rights on the bucket, whether a token has expired, the region and the "
    "clock of this machine"
)
_KEYS = "Check the keys, and whether a token among them has expired"
_CHECKS = {
    "PermissionDeniedError": _RIGHTS,
    "UnauthenticatedError": _KEYS,
    "NotSupportedError": "This store does not offer the operation",
    "InvalidPathError": "A key may not hold empty, '.' or '..' parts",
    "UnknownConfigurationKeyError": "Check the names in storage_options",
}
_NETWORK = (
    "Check the endpoint, the region, the network and the proxy (and pass allow_http='true' if "
    "the endpoint is plain http)"
)
# An answer to HEAD has no body, so nothing in it says which of these it is.
_REFUSED = (
    "The store refused the request as it is: check the region, whether a token among the keys has "
    "expired, and the endpoint"
)
_BUSY = "The store is overloaded or failing: try again later, or raise max_retries"

# Where the library gives no class of its own, as for listings.
_BY_STATUS = {
    "301": _REGION,
    "400": _REFUSED,
    "401": _KEYS,
    "403": _RIGHTS,
    "429": _BUSY,
    "5": _BUSY,
}


class Secrets:
    """The secret values of a storage, to be struck out of every text."""

    def __init__(self, options: Mapping[str, str], environ: Mapping[str, str]) -> None:
        named = dict(options)
        named |= {
            name: v for name, v in environ.items() if name.startswith((*VENDORS.values(), "GCS_"))
        }
        values = {
            value
            for name, value in named.items()
            if _SECRET.search(name) and not _FILE_OR_FLAG.search(name)
        }
        # Of a signed query (Azure's `sas_key`), each part stands in addresses by itself.
        values |= {part for value in values for _, part in parse_qsl(value) if "sig=" in value}
        self._values = sorted(
            {form for value in values if len(value) > 3 for form in _forms(value)},
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


def _forms(value: str) -> set[str]:
    """`value` as texts of others may show it: as it is, in an address, in JSON, in XML."""
    quoted = {quote(value), quote(value, safe=""), quote_plus(value)}
    return {value, *quoted, json.dumps(value)[1:-1], repr(value)[1:-1], escape(value)}


def explain_answer(error: Exception, path: str, where: str, secrets: Secrets) -> MillpondError:
    """Our error for what the client library raised about `path`."""
    kind = type(error).__name__
    if isinstance(error, FileNotFoundError):
        return PathNotFound(path, where)
    status, said = _summary(str(error))
    check = _CODES.get(said.partition(",")[0]) or _CHECKS.get(kind)
    if check is None:
        starts = [found for start, found in _BY_STATUS.items() if status.startswith(start)]
        check = starts[0] if starts else _NETWORK
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
