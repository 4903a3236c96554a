"""Millpond: distributed DuckDB for the data that trains models."""

__version__ = "0.1.0"

from millpond.dataframe import DataFrame, WriteResult
from millpond.errors import MillpondError
from millpond.session import Session, init

__all__ = ["DataFrame", "MillpondError", "Session", "WriteResult", "__version__", "init"]
