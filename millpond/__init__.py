"""Millpond: distributed DuckDB for the data that trains models."""

__version__ = "0.1.0"
