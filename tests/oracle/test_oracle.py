"""Every pipeline gives plain DuckDB's rows, whatever the shape and the partitions."""

from collections.abc import Callable

import duckdb
import pytest

from millpond.session import Session
from tests.oracle.harness import FEW, SHAPES, Case, Frames, Shape, check
from tests.oracle.pipelines import CASES

pytestmark = pytest.mark.slow

Opened = Callable[[Shape], Session]
Tables = Callable[[Session], Frames]
REST = [shape for shape in SHAPES if shape not in FEW]


@pytest.mark.parametrize("shape", FEW, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_same_rows_as_duckdb(
    case: Case, shape: Shape, opened: Opened, tables: Tables, oracle: duckdb.DuckDBPyConnection
) -> None:
    sp = opened(shape)

    check(case, sp, shape, tables(sp), oracle)


@pytest.mark.full
@pytest.mark.parametrize("shape", REST, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_same_rows_as_duckdb_in_every_shape(
    case: Case, shape: Shape, opened: Opened, tables: Tables, oracle: duckdb.DuckDBPyConnection
) -> None:
    sp = opened(shape)

    check(case, sp, shape, tables(sp), oracle)
