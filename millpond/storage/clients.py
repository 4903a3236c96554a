"""What `storage_options` says, sorted into what the client library wants to hear."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from millpond.errors import OptionError

# Words about the connection, which are the same for every store.
CONNECTION = {
    "allow_http": "flag",
    "allow_invalid_certificates": "flag",
    "connect_timeout": "text",
    "http1_only": "flag",
    "http2_only": "flag",
    "pool_idle_timeout": "text",
    "pool_max_idle_per_host": "text",
    "proxy_ca_certificate": "text",
    "proxy_excludes": "text",
    "proxy_url": "text",
    "read_timeout": "text",
    "root_certificate": "text",
    "timeout": "text",
    "user_agent": "text",
}
# Words whose values go into the header of every request, which takes printable ASCII only.
_HEADER = re.compile(r"access_key_id$|token$")
_TRUE, _FALSE = {"true", "1", "yes", "on"}, {"false", "0", "no", "off"}


@dataclass(frozen=True)
class ClientOptions:
    """Options of one kind of store: its own words, the connection's, and the retries'."""

    store: dict[str, str] = field(repr=False)
    connection: dict[str, Any] = field(repr=False)
    retry: dict[str, Any]
    profile: str | None


def client_options(options: Mapping[str, object]) -> ClientOptions:
    """Sort `options` by who is to hear them, with defaults for time-outs and retries."""
    store: dict[str, str] = {}
    # The overall time must suffice for a piece of 16 MiB on a slow line.
    connection: dict[str, Any] = {"timeout": "120s", "read_timeout": "30s"}
    retry: dict[str, Any] = {"max_retries": 8, "retry_timeout": timedelta(minutes=2)}
    profile = None
    for name, value in options.items():
        word, text = name.lower(), _text(name, value)
        if word in CONNECTION:
            connection[word] = _flag(name, text) if CONNECTION[word] == "flag" else text
        elif word == "max_retries":
            retry["max_retries"] = int(_number(name, text))
        elif word == "retry_timeout_s":
            retry["retry_timeout"] = timedelta(seconds=_number(name, text))
        elif word == "profile":
            profile = text
        else:
            store[word] = text
    return ClientOptions(store, connection, retry, profile)


def check_headers(config: Mapping[str, str], environ: Mapping[str, str], prefix: str) -> None:
    """Raise for a key or token that no request can carry; the client library would panic.

    `config` is what was given, `environ` what the library finds by itself below `prefix`.
    """
    given = {word.removeprefix(prefix.lower()) for word in config}
    found = {name: text for name, text in environ.items()
             if name.startswith(prefix) and name[len(prefix):].lower() not in given}  # fmt: skip
    for name, text in (*config.items(), *found.items()):
        if _HEADER.search(name.lower()) and not (text.isascii() and text.isprintable()):
            raise OptionError(
                f"{name} holds a line end or another character that no key or token has (it is "
                "not shown). Check how it was copied or read from a file."
            )


def _text(name: str, value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (str, int, float)):
        return str(value)
    # The value itself is not shown: it may be a secret.
    raise OptionError(
        f"storage_options[{name!r}] is of type {type(value).__name__}; "
        "pass text, a number or a bool."
    )


def _flag(name: str, text: str) -> bool:
    if text.lower() in _TRUE | _FALSE:
        return text.lower() in _TRUE
    raise OptionError(f"storage_options[{name!r}] must be 'true' or 'false'.")


def _number(name: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if number < 0:
        raise OptionError(f"storage_options[{name!r}] must be a number, 0 or larger.")
    return number
