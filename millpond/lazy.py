"""Optional and heavy libraries, imported at their first use.

`import millpond` stays light because heavy imports go through here, and a missing
extra gives one error that names it.
"""

import importlib
from types import ModuleType

from millpond.errors import MissingExtra


def extra(module: str, *, extra: str, what: str) -> ModuleType:
    """Import an optional library, or raise `MissingExtra` that says what needs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtra(extra, what) from error
