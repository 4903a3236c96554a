"""The options of a session: one frozen value, and the only reader of the environment."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from millpond.errors import OptionError

_UNITS = {
    "": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Options:
    """What `init` was told, completed. `storage_options` may hold secrets: never shown."""

    data_root: str | None = None
    runtime: str = "local"
    address: str | None = None
    threads: int = 1
    memory_limit_bytes: int = 2**30
    memory_is_given: bool = False  # Else it is what this machine has, and no other's.
    storage_options: Mapping[str, str] = field(default_factory=dict, repr=False)
    progress: bool | None = None
    seed: int = 0
    shape: str = "auto"
    verify: str = "parts"
    name: str | None = None
    allow_insecure: bool = False
    task_timeout: float | None = None
    split_bytes: int = 128 * 2**20
    optimize: bool = True


_MOST_THREADS = 1024  # Far beyond, the system refuses threads to every process.
_NAMES = {f.name for f in Options.__dataclass_fields__.values()} - {
    "memory_limit_bytes",
    "memory_is_given",
}


def options(**given: Any) -> Options:
    """Options from the arguments of `init`; what is None there comes from `MILLPOND_…`."""
    told = {key: item for key, item in given.items() if item is not None}
    for name in _NAMES | {"memory_limit"}:
        text = os.environ.get(f"MILLPOND_{name.upper()}")
        if name not in told and text and name != "storage_options":
            told[name] = text
    choose("runtime", told, ("local", "ray"))
    choose("shape", told, ("auto", "fused", "staged"))
    choose("verify", told, ("parts", "rows"))
    told["threads"] = _whole("threads", told.get("threads", cpu_count()), least=1)
    if told["threads"] > max(_MOST_THREADS, cpu_count()):
        raise OptionError(f"threads: {told['threads']} is more than {_MOST_THREADS}.")
    told["seed"] = _whole("seed", told.get("seed", 0), least=-(2**63))
    split_bytes = told.get("split_bytes", Options.__dataclass_fields__["split_bytes"].default)
    told["split_bytes"] = size("split_bytes", split_bytes)
    for flag in ("progress", "allow_insecure", "optimize"):
        if isinstance(told.get(flag), str):
            told[flag] = _truth(flag, told[flag])
    if "task_timeout" in told:
        told["task_timeout"] = _seconds("task_timeout", told["task_timeout"])
    limit = told.pop("memory_limit", None)
    limit_bytes = memory_bytes() * 8 // 10 if limit is None else size("memory_limit", limit)
    if limit_bytes < 64 * 2**20:
        raise OptionError(f"memory_limit: {limit!r} is less than 64 MiB, which DuckDB needs.")
    _check_given(given, told)
    if told.get("data_root") is not None:
        told["data_root"] = _root(str(told["data_root"]))
    return Options(memory_limit_bytes=limit_bytes, memory_is_given=limit is not None, **told)


def _check_given(given: Mapping[str, Any], told: Mapping[str, Any]) -> None:
    """What would be taken silently, and mean nothing."""
    kinds = {
        "data_root": (str | os.PathLike, "a path or URI"),
        "name": (str, "text"),
        "address": (str, "text"),
        "storage_options": (Mapping, "a dict"),
    }
    for name, (kind, what) in kinds.items():
        if given.get(name) is not None and not isinstance(given[name], kind):
            raise OptionError(f"{name}: needs {what}, not {type(given[name]).__name__}.")
    if given.get("data_root") == "":
        raise OptionError("data_root: is empty. Pass a folder or URI, or None to keep nothing.")
    if given.get("address") is not None and told.get("runtime", "local") == "local":
        raise OptionError("address: is that of a Ray cluster; pass runtime='ray' with it.")


def choose(name: str, told: Mapping[str, Any], allowed: tuple[str, ...]) -> None:
    if name in told and told[name] not in allowed:
        raise OptionError(f"{name}: {told[name]!r} is none of {', '.join(map(repr, allowed))}.")


def size(name: str, given: Any) -> int:
    """`"4GB"`, `"512MiB"` or a number of bytes → bytes.

    >>> size("memory_limit", "1.5GiB")
    1610612736
    """
    if isinstance(given, int) and not isinstance(given, bool):
        if given > 0:
            return given
    elif isinstance(given, str):
        found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-zA-Z]*)\s*", given)
        if found and found[2].lower() in _UNITS and float(found[1]) > 0:
            return int(float(found[1]) * _UNITS[found[2].lower()])
    raise OptionError(
        f"{name}: {given!r} is no size. Give bytes, or text such as '4GB' or '512MiB'."
    )


def _whole(name: str, given: Any, *, least: int) -> int:
    try:
        number = int(given)
        if isinstance(given, bool) or number != float(given) or number < least:
            raise ValueError
    except (TypeError, ValueError):
        raise OptionError(f"{name}: {given!r} is no whole number of at least {least}.") from None
    return number


def _seconds(name: str, given: Any) -> float:
    try:
        seconds = float(given)
    except (TypeError, ValueError):
        seconds = 0.0
    if isinstance(given, bool) or not 0 < seconds < float("inf"):
        raise OptionError(f"{name}: {given!r} is no number of seconds above 0.")
    return seconds


_SECONDS = {"s": 1, "min": 60, "h": 3_600, "d": 86_400, "w": 604_800}


def duration(name: str, given: str) -> float:
    """`"7d"`, `"36h"` → seconds.

    >>> duration("--older-than", "2h")
    7200.0
    """
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(s|min|h|d|w)\s*", given)
    if not found:
        raise OptionError(f"{name}: {given!r} is no length of time. Give it as '36h' or '7d'.")
    return float(found[1]) * _SECONDS[found[2]]


def _truth(name: str, given: str) -> bool:
    if given.lower() in ("1", "true", "yes", "on"):
        return True
    if given.lower() in ("0", "false", "no", "off"):
        return False
    raise OptionError(f"{name}: {given!r} is neither true nor false.")


def _root(given: str) -> str:
    return given if "://" in given else str(Path(given).expanduser().absolute())


def cpu_count() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpu_count() -> int:
    """GPUs that this machine has, as far as its devices tell."""
    names = os.listdir("/dev") if os.path.isdir("/dev") else []
    return sum(re.fullmatch(r"nvidia[0-9]+", name) is not None for name in names)


def memory_bytes() -> int:
    """Memory that this process may use: the machine's, or its control group's if less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        text = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return total
    return min(total, int(text)) if text.isdigit() else total


def set_defaults(**told: str | None) -> None:
    """Options of the sessions that this process opens from now on, as the environment gives
    them; the arguments of `init` still win.
    """
    for name, text in told.items():
        if text is not None:
            os.environ[f"MILLPOND_{name.upper()}"] = text
