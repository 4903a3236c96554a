"""Stages, tasks and results: work between two moves of rows, as frozen values.

These values are all that travels between the planner, the schedule, a runtime and
a worker. None of them holds a connection, a secret or a row of data (but for small
tables that the user made from Python objects, which travel inside their split).
"""

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import NamedTuple

from millpond.formats.scan import Scan, Split
from millpond.formats.shard_size import ShardSize
from millpond.physical.steps import Fragment
from millpond.schema import Schema
from millpond.storage import OutputFile as OutputFile


class Determinism(StrEnum):
    """What a second attempt of a task gives; readers of a lost part act on it."""

    FIXED = "fixed"
    ANY_ORDER = "same rows in any order"
    VARIES = "varies"


@dataclass(frozen=True, slots=True)
class Resources:
    """What a task needs to run. A change of resources cuts a stage.

    With `whole_node`, all CPUs and memory that the largest node has when the task starts.
    """

    cpus: float = 1.0
    gpus: float = 0.0
    memory_bytes: int | None = None
    whole_node: bool = False


# ---- where its rows come from --------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SourceInput:
    """Splits of a source, one task each (or all of them for every task, if `broadcast`)."""

    scan: Scan
    splits: tuple[Split, ...]
    broadcast: bool = False
    identity: str = ""  # Of the files' content, for the stage's fingerprint.
    first_rows: tuple[int, ...] = ()  # Of each split, where rows are numbered.
    row_bytes: int = 0  # Of a row, where they are wide.


class Edge(StrEnum):
    """Which partitions of the stage before a task reads."""

    ONE_TO_ONE = "one to one"  # Task p reads partition p, of all parts.
    ALL = "all"  # Every task reads everything, in task order.
    FORWARD = "forward"  # Task p reads the part of task p alone.


@dataclass(frozen=True, slots=True)
class StageInput:
    """The parts that an earlier stage wrote. `only` narrows them to some partitions or tasks.

    `numbered` rows (of a FORWARD edge) have their number in the whole stage as a last column.
    With `merged`, a task may read several neighbouring partitions, if they are small.
    """

    stage: int
    edge: Edge
    only: tuple[int, ...] | None = None
    numbered: bool = False
    merged: bool = False


@dataclass(frozen=True, slots=True)
class ConcatInput:
    """The tasks' outputs of several stages, one after the other: one task for each."""

    stages: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RowsInput:
    """All rows of a stage in task order, cut into `n` runs whose sizes differ by at most one."""

    stage: int
    n: int


@dataclass(frozen=True, slots=True)
class ShardsInput:
    """All rows of a stage in task order, cut into runs of as many rows, but the last: shards.

    How many is known when the stage has counted its rows and their bytes (`ToPart.sized`).
    """

    stage: int
    size: ShardSize


Input = SourceInput | StageInput | ConcatInput | RowsInput | ShardsInput


@dataclass(frozen=True, slots=True)
class SplitRows:
    """Task input: the rows of one split of a source.

    With `first_row`, each row's number in the whole source is a last column. `row_bytes` is
    what a row takes, where rows are wide.
    """

    scan: Scan
    splits: tuple[Split, ...]
    first_row: int | None = None
    row_bytes: int = 0


@dataclass(frozen=True, slots=True)
class PartRows:
    """Task input: `n_partitions` partitions from `first_partition` of the parts of a stage.

    `first_part` and `n_parts` narrow it to some parts; `skip_rows` and `n_rows` to a
    run of rows in what is left (None: all). `parts` is empty until the schedule binds
    the parts that exist when the task is submitted. With `first_row`, each row's number
    in the whole stage is a last column. `size_bytes` is what is known to be read.
    """

    stage: int
    schema: Schema
    first_partition: int = 0
    n_partitions: int = 1
    first_part: int = 0
    n_parts: int | None = None
    skip_rows: int = 0
    n_rows: int | None = None
    parts: tuple["PartRef", ...] = ()
    first_row: int | None = None
    size_bytes: int | None = None


TaskInput = SplitRows | PartRows


# ---- what becomes of its rows --------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ToPart:
    """Write one part with a segment per output partition.

    `how`: "single" (all rows in partition 0), "column" (the last column of the fragment
    is the partition number, and is dropped), "range" (the last columns are an ordinal and
    a DuckDB sort key, and are dropped; the last input holds the `n - 1` bounds in order).
    `sized`: the bytes of the rows' values are counted, the same however the rows are cut.
    So many of the first bytes as `cached_bytes` go through the page cache: all else, past it.
    """

    n: int = 1
    how: str = "single"
    sized: bool = False
    cached_bytes: int = 0


@dataclass(frozen=True, slots=True)
class ToFile:
    """Write one output file per task, staged aside; the run publishes all of them at the end.

    With `n`, a task writes `n` files: the last column of the fragment is the number of a
    row's file, and is dropped, or its last step says how rows are cut.
    With `each_bytes`, one file after the other, each of rows that take so many bytes in memory.
    With `keys`, one per value of these columns and task, in folders named `key=value`.
    `sorted_by` are columns that the rows are in the order of.
    """

    format: str
    directory: str
    name: str  # A pattern with one `{partition:05d}`.
    options: tuple[tuple[str, str], ...] = ()
    n: int | None = None
    keys: tuple[str, ...] = ()
    keeps_keys: bool = False
    each_bytes: int = 0
    sorted_by: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ToMemory:
    """Keep the rows in the process that ran the task: for a fused plan that is collected.

    Where they are more than it has memory for, they become a part."""


Output = ToPart | ToFile | ToMemory


@dataclass(frozen=True, slots=True)
class Stage:
    """Tasks that do the same to different rows, and what they write.

    `schema` is that of the rows that readers see. `fingerprint` identifies the stage by
    content, or is empty where its rows may differ from run to run.
    """

    id: int
    title: str
    fragment: Fragment
    inputs: tuple[Input, ...]
    output: Output
    schema: Schema
    determinism: Determinism = Determinism.FIXED
    resources: Resources = field(default_factory=Resources)
    fingerprint: str = ""
    run: str = ""  # Keeps the parts of one run apart from those of another.


class TaskId(NamedTuple):
    """One fragment on one partition, one attempt."""

    stage: int
    partition: int
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class Task:
    """What `run_task` needs, whole. Picklable; holds no secret."""

    id: TaskId
    fragment: Fragment
    inputs: tuple[TaskInput, ...]
    output: Output
    schema: Schema
    resources: Resources = field(default_factory=Resources)
    prefer: tuple[str, ...] = ()  # Nodes that hold the input.
    # After it ran out of memory: with its node to itself; then on one thread, too, and row-wise
    # work on so many rows at a time.
    alone: bool = False
    rows_at_once: int | None = None
    fingerprint: str = ""
    run: str = ""

    def again(self) -> "Task":
        return replace(self, id=self.id._replace(attempt=self.id.attempt + 1))


@dataclass(frozen=True, slots=True)
class PartRef:
    """Where a part is and how to check it. All that the driver keeps of it.

    The file ends in an index block of `n_partitions × n_runs` entries of 32 bytes at
    `index_offset`, partition by partition: see `shuffle/part.py`.
    """

    stage: int
    task: int
    attempt: int
    node: str  # "" where any process may open `path`.
    path: str
    size_bytes: int
    n_partitions: int
    n_runs: int
    index_offset: int
    index_checksum: int
    rows: int


@dataclass(frozen=True, slots=True)
class TaskResult:
    """What a task tells of its work. The run adds up the counts and keeps the part.

    `partition_rows` and `partition_bytes` are little-endian int64 arrays of length P.
    """

    task: TaskId
    part: PartRef | None = None
    files: tuple[OutputFile, ...] = ()
    rows_in: int = 0
    rows: int = 0
    size_bytes: int = 0
    partition_rows: bytes = b""
    partition_bytes: bytes = b""
    value_bytes: int = 0  # Of its rows, where the output is `sized`.
    # With verify="rows", in no order: over the rows of parts read, and over those written.
    rows_hash: int | None = None
    written_hash: int | None = None
    wall_s: float = 0.0
    cpu_s: float = 0.0
    node: str = ""


@dataclass(frozen=True, slots=True)
class PartsLost:
    """Typed result: these parts could not be read, or failed their checksum."""

    task: TaskId
    refs: tuple[PartRef, ...]
    damaged: bool
    reason: str
