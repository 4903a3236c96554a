"""The user's own modules: which they are, and the text of those that some code leads to.

None is loaded here. What is installed, and the standard library, count by their version.
"""

import dis
import os
import sys
import sysconfig
import types
from collections.abc import Iterable
from contextlib import suppress
from functools import cache, lru_cache
from importlib import metadata
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import resolve_name
from pathlib import Path

from millpond.began import BEGAN_NS
from millpond.plan.captured import all_code


def is_users(module: types.ModuleType | None) -> bool:
    """Whether a module is the user's own: neither installed nor the standard library."""
    if module is None or module.__name__ == "__main__":
        return True
    path = getattr(module, "__file__", None)
    return path is not None and _is_users_file(module.__name__, path)


def _is_users_file(name: str, path: str) -> bool:
    if any(path.startswith(folder + "/") for folder in _installed()):
        return False
    return name.partition(".")[0] != "millpond"


@cache
def _installed() -> frozenset[str]:
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    return frozenset(sysconfig.get_path(name) for name in names)


def imports(code: types.CodeType, package: str) -> set[str]:
    """Full names of the modules that code imports; of `from a import b`, `a` and `a.b`.

    `package` is the one that its module lies in, "" for none.
    """
    found = set()
    for each in all_code(code):
        steps = [step for step in dis.get_instructions(each) if step.opname != "EXTENDED_ARG"]
        for i, step in enumerate(steps):
            if step.opname != "IMPORT_NAME":
                continue
            level, names = steps[i - 2].argval, steps[i - 1].argval  # They were put there for it.
            with suppress(ImportError):  # Outside of a package: it fails when it runs, too.
                name = resolve_name("." * level + step.argval, package)
                found |= {name, *(f"{name}.{item}" for item in names or () if item != "*")}
    return found


def texts(names: Iterable[str]) -> dict[str, bytes]:
    """The text of those that are the user's, and of all the user's that they import in turn.

    Packages around a module belong to it. Of a library there is its version.
    """
    found: dict[str, bytes] = {}
    waiting, met = list(names), set[str]()
    while waiting:
        name = waiting.pop()
        if name in met:
            continue
        met.add(name)
        package = name.rpartition(".")[0]
        if package:
            waiting.append(package)
        path = _file(name)
        if path is None:
            continue
        if not _is_users_file(name, path):
            top = name.partition(".")[0]
            found[top] = _version(top)
            continue
        with suppress(OSError):
            found[name] = Path(path).read_bytes()
            waiting += _imports(found[name], name if Path(path).stem == "__init__" else package)
            found[name] += _told_apart(path)
    return found


def _told_apart(path: str) -> bytes:
    """Of a file that was edited since this process began, what no other process has.

    This one, or a worker of its, may have loaded the text before: what that gave must not be
    taken for what the new one gives.
    """
    edited_ns = os.stat(path).st_mtime_ns
    return b"" if edited_ns < BEGAN_NS else f"{edited_ns} {BEGAN_NS} {os.getpid()}".encode()


@lru_cache(maxsize=1_000)
def _imports(text: bytes, package: str) -> frozenset[str]:
    try:
        return frozenset(imports(compile(text, "", "exec", dont_inherit=True), package))
    except (SyntaxError, ValueError):
        return frozenset()  # An extension module, which is no text.


def _file(name: str) -> str | None:
    module = sys.modules.get(name)
    if module is not None:
        return getattr(module, "__file__", None)
    spec = _spec(name)
    return spec.origin if spec is not None and spec.has_location else None


def _spec(name: str) -> ModuleSpec | None:
    """Where a module would be loaded from. `importlib.util` would load the packages around it."""
    package = name.rpartition(".")[0]
    if not package:
        return PathFinder.find_spec(name)
    loaded = sys.modules.get(package)
    outer = _spec(package) if loaded is None else None
    places = outer.submodule_search_locations if outer else getattr(loaded, "__path__", None)
    return PathFinder.find_spec(name, list(places)) if places is not None else None


@cache
def _version(library: str) -> bytes:
    try:
        return metadata.version(library).encode()
    except metadata.PackageNotFoundError:
        return b""
