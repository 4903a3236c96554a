"""Python functions that SQL calls: arrays in, an array out, whatever the user wrote."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from millpond.engine.python import guarded
from millpond.engine.values import raised
from millpond.errors import MillpondError
from millpond.plan.nodes import Udf


def vectorised(udf: Udf, failed: Callable[[MillpondError], None]) -> Callable[..., Any]:
    """The function as DuckDB calls it: with arrays, for an array.

    What it raises goes to `failed` as well: DuckDB passes on no more than a text.
    """
    import pyarrow as pa

    function = guarded(udf.call)
    by_batch: bool | None = None

    def call(*columns: Any) -> Any:
        nonlocal by_batch
        try:
            arrays = [c.combine_chunks() if isinstance(c, pa.ChunkedArray) else c for c in columns]
            if by_batch is None:
                by_batch = _takes_arrays(function, arrays)
            if by_batch:
                return _array(function(*arrays))
            rows = zip(*(array.to_pylist() for array in arrays), strict=True)
            return pa.array([function(*row) for row in rows])
        except GeneratorExit:
            raise
        except BaseException as error:  # A user's function may raise anything.
            said = raised(udf.name, error)
            failed(said)
            raise

    kind = inspect.Parameter.POSITIONAL_ONLY
    fields = [inspect.Parameter(field.name, kind) for field in udf.parameters]
    call.__signature__ = inspect.Signature(fields)  # type: ignore[attr-defined]
    return call


def _takes_arrays(function: Callable[..., Any], arrays: list[Any]) -> bool:
    """Whether a call with no rows gives an array; else it is written for single values."""
    import pyarrow as pa

    try:
        given = function(*(array.slice(0, 0) for array in arrays))
    except Exception:  # Whatever single-value code does with an array.
        return False
    return isinstance(given, pa.Array | pa.ChunkedArray) or hasattr(given, "__array__")


def _array(given: Any) -> Any:
    import pyarrow as pa

    if isinstance(given, pa.ChunkedArray):
        return given.combine_chunks()
    return given if isinstance(given, pa.Array) else pa.array(given)
