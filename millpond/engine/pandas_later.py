"""pyarrow without pandas, until the user's code has imported it.

pyarrow imports pandas at the first array it makes, only to ask whether a list is one of
pandas' own: 0.3 s in each worker process, for functions that never heard of it.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from millpond.lazy import extra

if TYPE_CHECKING:
    import pyarrow as pa


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


def nanoseconds(kind: pa.DataType) -> bool:
    """Whether values of this type are pandas' own in Python, which has none so fine."""
    import pyarrow as pa

    return bool(pa.types.is_timestamp(kind) and kind.unit == "ns")


def with_pandas_for(schema: pa.Schema) -> None:
    """Import pandas if columns hold nanoseconds: a `datetime` would lose the last three digits."""
    if any(nanoseconds(kind) for kind in schema.types):
        extra("pandas", extra="pandas", what="a Python function of TIMESTAMP_NS")
        with_pandas_if_loaded()


def whole_nanoseconds(values: list[Any]) -> list[Any]:
    """Pandas' timestamps as numbers, for pyarrow cuts them if it was told of no pandas."""
    return [
        getattr(value, "value", value) if value is not None and value == value else None
        for value in values
    ]


def with_pandas_if_loaded() -> None:
    """Have pyarrow know pandas, its series and its missing values, if anybody does by now."""
    if "pandas" in sys.modules:
        import pyarrow as pa

        _ = pa.lib._pandas_api.pd  # Asks again, if it was told that there is none.
