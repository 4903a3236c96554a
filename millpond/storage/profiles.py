"""Keys from the profile files of the AWS tools, for machines that have them there.

The client library reads the environment, web identities and instance roles by
itself; it does not read `~/.aws`.
"""

import configparser
import os
from collections.abc import Mapping

from millpond.errors import OptionError

_WORDS = {
    "aws_access_key_id": "access_key_id",
    "aws_secret_access_key": "secret_access_key",
    "aws_session_token": "session_token",
    "region": "region",
    "endpoint_url": "endpoint",
}
_ELSEWHERE = ("sso_session", "sso_start_url", "role_arn", "credential_process", "source_profile")


def profile_options(chosen: str | None, environ: Mapping[str, str]) -> dict[str, str]:
    """What the profile `chosen` (or `AWS_PROFILE`, or the default one) says, in our words.

    Empty where keys are in the environment and no profile was asked for, as with
    the AWS tools. A profile that was asked for by name must exist.
    """
    name = chosen or environ.get("AWS_PROFILE", "")
    if not name and "AWS_ACCESS_KEY_ID" in environ:
        return {}
    section = _sections(environ).get(name or "default")
    if section is None:
        if name:
            raise OptionError(
                f"the AWS profile {name!r} is in neither of {', '.join(_files(environ))}. "
                "Check the name, AWS_PROFILE, and AWS_SHARED_CREDENTIALS_FILE."
            )
        return {}
    found = {ours: section[word] for word, ours in _WORDS.items() if section.get(word)}
    if name and "access_key_id" not in found and any(word in section for word in _ELSEWHERE):
        raise OptionError(
            f"the AWS profile {name!r} gets its keys by a login or a role. Export them "
            "(aws configure export-credentials --format env) or pass them in storage_options."
        )
    return found


def _files(environ: Mapping[str, str]) -> tuple[str, str]:
    home = os.path.expanduser("~/.aws")
    return (
        environ.get("AWS_CONFIG_FILE", f"{home}/config"),
        environ.get("AWS_SHARED_CREDENTIALS_FILE", f"{home}/credentials"),
    )


def _sections(environ: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """All profiles of both files; what the credentials file says wins."""
    sections: dict[str, dict[str, str]] = {}
    for path in _files(environ):
        # Not the default interpolation: a secret may hold a percent sign.
        parser = configparser.ConfigParser(interpolation=None, default_section="")
        try:
            parser.read(path, encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError):
            # Not chained: the message of the parser would show the line, maybe a secret.
            raise OptionError(f"{path!r} is no profile file: it cannot be parsed.") from None
        for title in parser.sections():
            name = title.removeprefix("profile ").strip()
            sections.setdefault(name, {}).update(parser[title])
    return sections
