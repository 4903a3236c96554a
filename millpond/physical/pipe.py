"""A pipe: work that is not cut into a stage yet. And what may be said of its rows."""

from dataclasses import dataclass, replace

from millpond.physical import fragment as f
from millpond.physical.fragment import Pieces
from millpond.physical.stages import Determinism, Input, Resources
from millpond.physical.steps import SqlStep, Step
from millpond.plan import nodes as n
from millpond.plan.nodes import Udf
from millpond.schema import Schema

ONE_CPU = Resources()
FIXED, ANY_ORDER, VARIES = Determinism.FIXED, Determinism.ANY_ORDER, Determinism.VARIES


@dataclass(frozen=True, slots=True)
class Placed:
    """Rows that lie by hash of `keys` cast to `types`, in `n` partitions."""

    keys: tuple[str, ...]
    types: tuple[str, ...]
    n: int


@dataclass(frozen=True, slots=True)
class Pipe:
    """Work that is not cut into a stage yet: inputs, closed steps, and a query on top."""

    inputs: tuple[Input, ...]
    sql: Pieces
    schema: Schema
    n: int
    steps: tuple[Step, ...] = ()
    determinism: Determinism = FIXED
    resources: Resources = ONE_CPU
    title: str = ""
    udfs: tuple[Udf, ...] = ()  # Functions that `sql` calls.
    row_wise: bool = False  # Each row comes from one row of the first input.
    placed: Placed | None = None

    def then(self, sql: Pieces, schema: Schema, title: str) -> "Pipe":
        title = titled(self.title, title)
        return replace(self, sql=sql, schema=schema, title=title, row_wise=False, placed=None)


def steps_of(pipe: Pipe) -> tuple[Step, ...]:
    if pipe.steps and f.is_plain(pipe.sql):
        return pipe.steps
    return (*pipe.steps, SqlStep(f.text(pipe.sql), pipe.schema, pipe.udfs))


def called(pipe: Pipe) -> tuple[Udf, ...]:
    """The functions that a pipe's SQL calls, in all of its steps."""
    before = (udf for step in pipe.steps if isinstance(step, SqlStep) for udf in step.udfs)
    return (*before, *pipe.udfs)


def clash(some: tuple[Udf, ...], others: tuple[Udf, ...]) -> bool:
    """Whether two different functions have one name; they cannot be in one task."""
    named = {udf.name.casefold(): udf for udf in some}
    return any(named.get(udf.name.casefold(), udf) != udf for udf in others)


def varies(node: n.Node) -> bool:
    """Whether the node's own SQL, or function, may give other rows in another run."""
    words = ("expression", "predicate", "query")
    said = [node, *(getattr(node, word, None) for word in words), *getattr(node, "keys", ())]
    if any(getattr(each, "varies", False) for each in said):
        return True
    calls = [udf.call for udf in getattr(node, "udfs", ())]
    calls += node.calls if isinstance(node, n.PythonBatches) else ()
    return not all(call.deterministic for call in calls)


def looser(a: Determinism, b: Determinism) -> Determinism:
    order = [FIXED, ANY_ORDER, VARIES]
    return order[max(order.index(a), order.index(b))]


def loosened(pipe: Pipe) -> Pipe:
    """After work whose row order depends on threads."""
    return replace(pipe, determinism=looser(pipe.determinism, ANY_ORDER))


def ordered(pipe: Pipe) -> Pipe:
    """After work whose rows depend on the order of its input."""
    loose = pipe.determinism is not FIXED
    return replace(pipe, determinism=VARIES) if loose else pipe


def word(node: n.Node) -> str:
    return {"GlobalSql": "sql", "RandomPartition": "random shuffle", "Project": "map"}.get(
        type(node).__name__, type(node).__name__.lower()
    )


def keys_of(node: n.Sort) -> str:
    return ", ".join(map(str, node.keys))


def titled(before: str, more: str) -> str:
    return (
        f"{before}, {more}" if before and not more.startswith("→") else f"{before} {more}".strip()
    )
