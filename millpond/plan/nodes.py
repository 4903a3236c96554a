"""Logical plan nodes: what the user asked for, as values.

A node says what, never where or how: no paths to temporary files, no task
counts, no connections. So a rule may rebuild any part of a tree without care.
A node that exists is valid: `plan/build.py` checks where the user's words are known.
"""

from dataclasses import dataclass
from typing import NamedTuple

from millpond.expr import Expression, Query, SortKey
from millpond.formats.memory import ArrowRows
from millpond.formats.scan import Scan, Split, State
from millpond.schema import Field, Schema
from millpond.storage import FileInfo


@dataclass(frozen=True, slots=True)
class DataSource:
    """Rows of files, in the order of the files; or of a table made from Python objects.

    `values` holds, for each file, those of the scan's `keys`; `state` says which manifest named
    the files, if one did.
    """

    scan: Scan
    files: tuple[FileInfo, ...] = ()
    rows: ArrowRows | None = None
    values: tuple[tuple[str | None, ...], ...] = ()
    state: State | None = None

    @property
    def schema(self) -> Schema:
        return self.scan.schema


@dataclass(frozen=True, slots=True)
class Kept:
    """Rows of `input` that were computed: one split of `source` per partition of it."""

    input: "Node"
    source: DataSource
    splits: tuple[Split, ...]

    @property
    def schema(self) -> Schema:
        return self.input.schema


@dataclass(frozen=True, slots=True)
class Shared:
    """`input`, which several nodes read. Only while rules run: no rule looks through it."""

    input: "Node"

    @property
    def schema(self) -> Schema:
        return self.input.schema


@dataclass(frozen=True, slots=True)
class Project:
    """A row-wise SQL select list. Keeps row order; with `flat`, rows may become several."""

    input: "Node"
    expression: Expression
    schema: Schema
    flat: bool = False
    udfs: tuple["Udf", ...] = ()


@dataclass(frozen=True, slots=True)
class Filter:
    """Rows for which the predicate is true, in order."""

    input: "Node"
    predicate: Expression
    udfs: tuple["Udf", ...] = ()

    @property
    def schema(self) -> Schema:
        return self.input.schema


@dataclass(frozen=True, slots=True)
class PythonCall:
    """A user's function as it travels: cloudpickled at the call, with what it is called with.

    `kind`: "row", "filter", "flat" (dicts), "batch", "partition", "group".
    `identity` is a hash of its code and what it captures, or the user's own `key`.
    """

    function: bytes
    kind: str
    name: str
    identity: str
    batch_size: int = 122_880
    format: str = "arrow"
    deterministic: bool = True
    cpus: float = 1.0
    gpus: float = 0.0
    memory_bytes: int | None = None
    group_keys: tuple[str, ...] = ()

    @property
    def needs(self) -> tuple[float, float, int | None]:
        """CPUs, GPUs and memory of a task that calls it."""
        return self.cpus, self.gpus, self.memory_bytes


@dataclass(frozen=True, slots=True)
class Udf:
    """A Python function that SQL calls by `name`, with its types in DuckDB's words."""

    name: str
    call: PythonCall
    parameters: tuple[Field, ...]
    returns: str


class RowCall(NamedTuple):
    """A function of rows that runs before another, and the columns that it gives."""

    call: PythonCall
    schema: Schema


@dataclass(frozen=True, slots=True)
class PythonBatches:
    """A Python function over rows, batches, whole partitions or groups. Keeps order.

    A function of rows may have others that run `earlier`, the first of them on the input.
    """

    input: "Node"
    call: PythonCall
    schema: Schema
    earlier: tuple[RowCall, ...] = ()

    @property
    def calls(self) -> tuple[PythonCall, ...]:
        """All of its functions, the first to run first."""
        return (*(each.call for each in self.earlier), self.call)


@dataclass(frozen=True, slots=True)
class Sort:
    """Rows in the order of `keys`, ties in input order; inside partitions if `partial`."""

    input: "Node"
    keys: tuple[SortKey, ...]
    partial: bool = False
    n: int | None = None  # Partitions to give, where the user gave a count.

    @property
    def schema(self) -> Schema:
        return self.input.schema


@dataclass(frozen=True, slots=True)
class Limit:
    """Keep the first `n` rows. Row order and schema are the input's."""

    input: "Node"
    n: int

    @property
    def schema(self) -> Schema:
        return self.input.schema


@dataclass(frozen=True, slots=True)
class Sample:
    """Each row with probability `fraction`, chosen by a hash of `seed` and its place."""

    input: "Node"
    fraction: float
    seed: int

    @property
    def schema(self) -> Schema:
        return self.input.schema


@dataclass(frozen=True, slots=True)
class Aggregate:
    """One row per group of equal `keys` (NULL is a key), or one row in all without keys."""

    input: "Node"
    keys: tuple[str, ...]
    expression: Expression
    schema: Schema
    n: int | None = None


class JoinOutput(NamedTuple):
    """A column of a join: `side` "l" or "r", or "both" for a key that either may lack."""

    side: str
    name: str
    alias: str


@dataclass(frozen=True, slots=True)
class Join:
    """`how`: inner, left, right, full, semi, anti, cross. `on` are names of both sides;
    otherwise `condition` is SQL over `l.` and `r.`; `equal` are its equal columns, and
    `reads` the columns of each side in it, where that is known.
    `outputs` says where each column of the result comes from.
    """

    left: "Node"
    right: "Node"
    how: str
    on: tuple[str, ...]
    condition: str
    equal: tuple[tuple[str, str], ...]
    outputs: tuple[JoinOutput, ...]
    schema: Schema
    reads: tuple[frozenset[str], frozenset[str]] | None = None
    varies: bool = False


@dataclass(frozen=True, slots=True)
class Distinct:
    """The first row, in input order, of each set of rows that agree on `columns`."""

    input: "Node"
    columns: tuple[str, ...]

    @property
    def schema(self) -> Schema:
        return self.input.schema


@dataclass(frozen=True, slots=True)
class Union:
    """All rows of the inputs, one after the other, matched by name, types promoted."""

    inputs: tuple["Node", ...]
    schema: Schema


@dataclass(frozen=True, slots=True)
class EvenPartition:
    """`n` partitions of even size: by files and row groups, or exactly by rows, in order."""

    input: "Node"
    n: int
    by_rows: bool = False

    @property
    def schema(self) -> Schema:
        return self.input.schema


@dataclass(frozen=True, slots=True)
class HashPartition:
    """`n` partitions; rows with equal `keys` meet in one. Order is lost."""

    input: "Node"
    keys: tuple[str, ...]
    n: int

    @property
    def schema(self) -> Schema:
        return self.input.schema


@dataclass(frozen=True, slots=True)
class GivenPartition:
    """`n` partitions, the number of each row given by an integer expression."""

    input: "Node"
    expression: Expression
    n: int

    @property
    def schema(self) -> Schema:
        return self.input.schema


@dataclass(frozen=True, slots=True)
class RandomPartition:
    """All rows in a uniform order that is a function of `seed` and the input alone."""

    input: "Node"
    seed: int

    @property
    def schema(self) -> Schema:
        return self.input.schema


@dataclass(frozen=True, slots=True)
class SqlEngine:
    """One SQL query in each partition. Inputs have equal counts, or 1: that goes to all."""

    inputs: tuple["Node", ...]
    query: Query  # Inputs are the tables `__in0`, `__in1`, ….
    schema: Schema


@dataclass(frozen=True, slots=True)
class GlobalSql:
    """One SQL query over whole frames by name."""

    names: tuple[str, ...]
    inputs: tuple["Node", ...]
    query: Query
    schema: Schema


@dataclass(frozen=True, slots=True)
class DataSink:
    """Write one file per partition below `path`. Its rows are those that it wrote.

    `name` is a file's name with one `{partition}`; without a name, `path` is the one file.
    With `keys`, each file holds rows of one value of them, in folders named `key=value`,
    and only if `keeps_keys` are the keys columns of the files, too.
    """

    input: "Node"
    format: str
    path: str
    mode: str = "error"
    options: tuple[tuple[str, str], ...] = ()
    name: str = ""
    keys: tuple[str, ...] = ()
    keeps_keys: bool = False

    @property
    def schema(self) -> Schema:
        return self.input.schema


Node = (
    DataSource
    | Kept
    | Shared
    | Project
    | Filter
    | PythonBatches
    | Sort
    | Limit
    | Sample
    | Aggregate
    | Join
    | Distinct
    | Union
    | EvenPartition
    | HashPartition
    | GivenPartition
    | RandomPartition
    | SqlEngine
    | GlobalSql
    | DataSink
)


def inputs_of(node: Node) -> tuple[Node, ...]:
    """The nodes that `node` reads, in order."""
    match node:
        case DataSource() | Kept():
            return ()
        case Join(left=left, right=right):
            return (left, right)
        case Union() | SqlEngine() | GlobalSql():
            return node.inputs
        case _:
            return (node.input,)
