"""Names of files: URIs to paths, globs, hidden names, and names that must stay below a root.

Nothing here opens a file.
"""

import hashlib
import os
import re
from urllib.parse import unquote, urlsplit

from millpond.errors import StorageError

SCRATCH = ".millpond"  # How the names of all folders of our own begin.
STAGING = f"{SCRATCH}-staged"
MANIFESTS = "_manifest"

_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+://")
_GLOB = re.compile(r"[*?\[]")


def scheme(path: str) -> str:
    """The scheme of a URI in lower case; "" for a plain path."""
    found = _SCHEME.match(path)
    return found.group()[:-3].lower() if found else ""


def is_remote(path: str) -> bool:
    """Does `path` lie in an object store, and not among the files of this machine?"""
    return scheme(path) not in ("", "file")


def plain(path: str) -> str:
    """The absolute path that a plain path, `~/…` or `file://…` names on this machine."""
    kind = scheme(path)
    if kind == "file":
        parts = urlsplit(path)
        if parts.netloc not in ("", "localhost"):
            raise StorageError(
                f"{path!r} names the host {parts.netloc!r}. A file URI has three slashes "
                "before its path (file:///folder/name) and names files of this machine."
            )
        # Not `parts.path`: it would lose everything after a '#' or a '?' in a name.
        path = unquote(path[len("file://") + len(parts.netloc) :])
    elif kind:
        raise StorageError(f"{path!r} is no path of this machine; open it by its own storage.")
    if "\0" in path or not path:
        raise StorageError(f"{path!r} is no path: it is empty or holds a zero byte.")
    try:
        return os.path.abspath(os.path.expanduser(path))
    except FileNotFoundError:
        raise StorageError(
            f"{path!r}: the working directory is gone, and a relative path begins there. Change "
            "to another one, or pass an absolute path."
        ) from None


def is_glob(path: str) -> bool:
    """Does `path` hold one of the characters `*`, `?` and `[`?"""
    return _GLOB.search(path) is not None


def hidden(name: str) -> bool:
    """Is the file or folder `name` none of the user's data?"""
    return name.startswith(".") or name == MANIFESTS


def glob_root(pattern: str) -> str:
    """The folder below which everything lies that `pattern` can match."""
    parts = pattern.split("/")
    first = next((i for i, part in enumerate(parts) if is_glob(part)), len(parts) - 1)
    return "/".join(parts[:first])


def glob_regex(pattern: str) -> re.Pattern[str]:
    """A regular expression for whole paths: `**` spans folders, `*` and `?` stay in one.

    A wildcard at the start of a name does not match a hidden name, as in a shell.
    """
    out = []
    parts = pattern.split("/")
    for i, part in enumerate(parts):
        last = i == len(parts) - 1
        if part == "**":
            out.append(f"(?:{_SHOWN}[^/]*/)*" + (f"{_SHOWN}[^/]+" if last else ""))
        else:
            out.append(_name_regex(part) + ("" if last else "/"))
    return re.compile("".join(out), re.DOTALL)


_SHOWN = rf"(?!\.|{MANIFESTS}(?:/|$))"


def _name_regex(part: str) -> str:
    out, i = [], 0
    if is_glob(part[:1]):
        out.append(_SHOWN)
    while i < len(part):
        char = part[i]
        i += 1
        end = part.find("]", i + 1) if char == "[" else -1
        if char == "*":
            out.append("[^/]*")
        elif char == "?":
            out.append("[^/]")
        elif end > 0:
            out.append(_set_regex(part[i:end]))
            i = end + 1
        else:
            out.append(re.escape(char))
    return "".join(out)


def _set_regex(body: str) -> str:
    inverted = body[0] in "!^"
    body = body[1:] if inverted else body
    chars = re.sub(r"([\\\[\]^&~|])", r"\\\1", body)
    return f"[^/{chars}]" if inverted else f"(?!/)[{chars}]"


def staging_name(path: str, tag: str) -> str:
    """The name under which `path` is written aside by the attempt `tag`."""
    name = f"{tag}-{os.path.basename(path)}".replace("/", "_")
    # File systems end names at 255 bytes, and DuckDB puts "tmp_" before one that it replaces.
    return name if len(os.fsencode(name)) <= 240 else f"{_digest(name)}-{name[-40:]}"


def _digest(text: str) -> str:
    return hashlib.blake2b(os.fsencode(text), digest_size=12).hexdigest()


def check_scratch(path: str) -> str:
    """`path`, if its name shows that it is Millpond's own scratch; nothing else is removed."""
    if not any(part.startswith(SCRATCH) for part in path.split("/")):
        raise StorageError(
            f"remove {path!r}: only a folder below one whose name begins with {SCRATCH!r} is "
            "scratch and may be removed with all that is in it."
        )
    return path


def check_name(root: str, name: str) -> None:
    """Refuse a name that is absolute, not normalised, or leads out of `root` by its letters."""
    parts = name.split("/")
    if "\0" in name or "\\" in name or any(part in ("", ".", "..") for part in parts):
        raise _leads_out(root, name)


def _leads_out(root: str, name: str) -> StorageError:
    return StorageError(
        f"{name!r} was found in a file below {root!r} and would lead out of it. "
        "Millpond writes relative, normalised names only: the file was damaged or changed."
    )


def beneath(root: str, name: str) -> str:
    """The real path of the relative `name` below the folder `root`, after symlinks.

    For names that come out of manifests, indexes and journals: those may have been
    written by somebody else. A name that is absolute, not normalised or leads out
    of `root` is refused.
    """
    check_name(root, name)
    base = os.path.realpath(root)
    full = os.path.realpath(os.path.join(base, name))
    if not full.startswith(base.rstrip("/") + "/"):
        raise _leads_out(root, name)
    return full
