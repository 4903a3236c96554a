"""Millpond: distributed DuckDB for the data that trains models."""

from millpond.dataframe import DataFrame, WriteResult
from millpond.errors import MillpondError
from millpond.session import Session, init
from millpond.version import VERSION as __version__

__all__ = ["DataFrame", "MillpondError", "Session", "WriteResult", "__version__", "init"]
