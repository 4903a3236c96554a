"""SQL expressions as values. Names and values are quoted here and nowhere else."""

from millpond.expr import quote
from millpond.expr.parse import Dialect, Expression, Query, SortKey

__all__ = ["Dialect", "Expression", "Query", "SortKey", "quote"]
