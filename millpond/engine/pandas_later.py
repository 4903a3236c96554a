"""pyarrow without pandas, until the user's code has imported it.

pyarrow imports pandas at the first array it makes, only to ask whether a list is one of
pandas' own: 0.3 s in each worker process, for functions that never heard of it.
"""

import sys
from typing import Any


class _NotYet:
    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> None:
        if name == "pandas":
            raise ImportError("pyarrow is told that there is none")


def without_pandas() -> None:
    """Have pyarrow believe that there is no pandas; for a process of one thread."""
    if "pandas" in sys.modules:
        return
    import pyarrow as pa

    sys.meta_path.insert(0, _NotYet)
    try:
        pa.array([0])
    finally:
        sys.meta_path.remove(_NotYet)


def with_pandas_if_loaded() -> None:
    """Have pyarrow know pandas, its series and its missing values, if anybody does by now."""
    if "pandas" in sys.modules:
        import pyarrow as pa

        _ = pa.lib._pandas_api.pd  # Asks again, if it was told that there is none.
