"""Millpond: distributed DuckDB for the data that trains models.

The public names, each from its room at its first use: a training job that imports
`millpond.loader` loads no planner, and `import millpond` loads no DuckDB and no Arrow.
"""

import importlib
from typing import TYPE_CHECKING, Any

from millpond import began as began  # Before any of the user's modules that are loaded later.
from millpond.version import VERSION as __version__

if TYPE_CHECKING:
    from millpond.dataframe import DataFrame
    from millpond.errors import MillpondError, TaskError
    from millpond.loader import mix, open_dataset
    from millpond.runtime.gc import gc
    from millpond.session import Session, init
    from millpond.targets import WriteResult

__all__ = [
    "DataFrame",
    "MillpondError",
    "Session",
    "TaskError",
    "WriteResult",
    "__version__",
    "gc",
    "init",
    "mix",
    "open_dataset",
]

_ROOMS = {
    "DataFrame": "millpond.dataframe",
    "MillpondError": "millpond.errors",
    "Session": "millpond.session",
    "TaskError": "millpond.errors",
    "WriteResult": "millpond.targets",
    "gc": "millpond.runtime.gc",
    "init": "millpond.session",
    "mix": "millpond.loader",
    "open_dataset": "millpond.loader",
}


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module 'millpond' has no attribute {name!r}")
    found = globals()[name] = getattr(importlib.import_module(_ROOMS[name]), name)
    return found


def __dir__() -> list[str]:
    return [*globals(), *_ROOMS]
