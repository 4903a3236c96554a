"""Steps: what a task computes, as frozen values; and a fragment, a chain of them."""

from dataclasses import dataclass

from millpond.plan.nodes import PythonCall, RowCall, Udf
from millpond.schema import Schema


@dataclass(frozen=True, slots=True)
class SqlStep:
    """One query over `__s0`, `__s1`, …: the task's inputs, or `__s0` is the step before.

    `udfs` are the Python functions that it calls.
    """

    sql: str
    schema: Schema
    udfs: tuple[Udf, ...] = ()


@dataclass(frozen=True, slots=True)
class ReadStep:
    """The rows of the task's first input, whole Parquet files, with more columns behind them:
    those of `more`, SQL over some of the rows with their place in the input.

    `sql` gives the same, where the files are better read by DuckDB.
    """

    more: str
    sql: str
    schema: Schema


@dataclass(frozen=True, slots=True)
class PythonStep:
    """One Python call over the batches of the step before; gives rows of `schema`.

    `input` is what the function, or the first of those that run `earlier`, is called with, in
    DuckDB's types. A `light` one need not be called in a process of its own.
    """

    call: PythonCall
    input: Schema
    schema: Schema
    earlier: tuple[RowCall, ...] = ()
    light: bool = False


@dataclass(frozen=True, slots=True)
class ShuffleStep:
    """The rows of the task's first input in the order of `key`, a number that SQL gives for the
    identity in their last column, which is dropped; ties in the order of identities.

    `sql` gives the same rows in the same order, where they are more than memory holds.
    """

    key: str
    sql: str
    schema: Schema


@dataclass(frozen=True, slots=True)
class SortStep:
    """The rows of the task's first input in order, ties in that in which they come.

    `places` is SQL for the order of their places, over rows with their place as a last column;
    `sql` gives the rows themselves in order, where they are more than memory holds. `bounds` is
    SQL for the keys and ordinals that cut all rows into files, where one task writes several;
    then the last columns of the step before are an ordinal and a key, and are dropped.
    """

    places: str
    sql: str
    schema: Schema
    bounds: str | None = None


@dataclass(frozen=True, slots=True)
class RecordSortStep:
    """Fixed-width records sorted by one field, without SQL: files to files, or a range of parts."""

    fields: tuple[tuple[str, int], ...]
    key: str
    schema: Schema


@dataclass(frozen=True, slots=True)
class RecordBoundsStep:
    """From a sample of fixed-width records, the keys that cut them into `n` even ranges."""

    fields: tuple[tuple[str, int], ...]
    key: str
    n: int
    schema: Schema


@dataclass(frozen=True, slots=True)
class RecordRangesStep:
    """Fixed-width records whole, and the range of each; the last input holds the bounds."""

    fields: tuple[tuple[str, int], ...]
    key: str
    schema: Schema


RecordStep = RecordSortStep | RecordBoundsStep | RecordRangesStep
Step = SqlStep | ReadStep | PythonStep | ShuffleStep | SortStep | RecordStep


@dataclass(frozen=True, slots=True)
class Fragment:
    """A chain of steps; each reads what the one before gives. Rows stream through it.

    `row_wise`: each row of the answer comes from one row of the first input, so the work
    may be done in pieces of it.
    """

    steps: tuple[Step, ...]
    row_wise: bool = False

    @property
    def has_python(self) -> bool:
        """Whether it calls functions that belong in a process of their own."""
        return any(
            (isinstance(s, PythonStep) and not s.light) or getattr(s, "udfs", ())
            for s in self.steps
        )

    @property
    def schema(self) -> Schema:
        return self.steps[-1].schema
