"""Pipes → stages: where a plan is cut, and the ways in which rows move between stages."""

from collections.abc import Sequence
from dataclasses import replace

from millpond.physical import fragment as f
from millpond.physical.fragment import Pieces
from millpond.physical.identity import stage_fingerprint
from millpond.physical.pipe import (
    ANY_ORDER,
    FIXED,
    ONE_CPU,
    VARIES,
    Pipe,
    loosened,
    looser,
    ordered,
    steps_of,
    titled,
    varies,
    word,
)
from millpond.physical.shape import Settings
from millpond.physical.stages import Edge, Input, Output, Stage, StageInput, ToPart
from millpond.physical.steps import Fragment
from millpond.plan import nodes as n
from millpond.plan.wire import wire

PID = "__millpond_pid"


class Cuts:
    """The stages of a plan so far; each method cuts pipes into more of them."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.stages: list[Stage] = []

    def close(self, pipe: Pipe, output: Output, title: str) -> int:
        number = len(self.stages)
        schema = pipe.schema
        if isinstance(output, ToPart):
            schema = wire(schema)
            pipe = replace(pipe, sql=f.cast(pipe.sql, pipe.schema, schema, output.how != "single"))
        stage = Stage(
            number,
            titled(pipe.title, "→ " + title),
            Fragment(steps_of(pipe), pipe.row_wise),
            pipe.inputs,
            output,
            schema,
            pipe.determinism,
            pipe.resources,
            run=self.settings.run,
        )
        print_ = stage_fingerprint(stage, self.stages, self.settings.versions)
        self.stages.append(replace(stage, fingerprint=print_))
        return number

    def read(self, stage: int, edge: Edge, pipe: Pipe, count: int) -> Pipe:
        sql = f.cast(f.slot(0), self.stages[stage].schema, pipe.schema, False)
        return Pipe((StageInput(stage, edge),), sql, pipe.schema, count,
                    determinism=pipe.determinism, row_wise=True)  # fmt: skip

    def handed_over(self, pipe: Pipe) -> Pipe:
        """The same rows in the same partitions, read from parts of a stage of their own."""
        stage = self.close(pipe, ToPart(), "hand over")
        return self.read(stage, Edge.FORWARD, pipe, pipe.n)

    def gathered(self, pipe: Pipe, count: int) -> Pipe:
        stage = self.close(pipe, ToPart(), "gather")
        return self.read(stage, Edge.ALL, pipe, count)

    def exchange(
        self, pipe: Pipe, number: str, count: int, title: str, keys: Sequence[str],
        *, auto: bool = False,
    ) -> Pipe:  # fmt: skip
        """Write every row of `pipe` to the partition that the expression `number` gives.

        With `auto`, nobody counts the partitions: one task may read several small ones.
        """
        types = {f.name: f.type for f in pipe.schema}
        floats = any(types.get(key) in ("FLOAT", "DOUBLE") for key in keys)
        if pipe.determinism is ANY_ORDER and floats:
            # A float sum may differ in its last bit, and so in its partition.
            pipe = replace(pipe, determinism=VARIES)
        before = replace(pipe, sql=f.with_column(pipe.sql, number, PID))
        stage = self.close(before, ToPart(count, "column"), title)
        return self.by_partition(stage, pipe, count, auto=auto)

    def by_partition(self, stage: int, pipe: Pipe, count: int, *, auto: bool) -> Pipe:
        """A task for each partition of a stage, or for some neighbours if `auto`."""
        read = self.read(stage, Edge.ONE_TO_ONE, pipe, count)
        # A rerun finds results by the number of their task, which must not follow sizes.
        merged = auto and not self.settings.durable
        return replace(read, inputs=(StageInput(stage, Edge.ONE_TO_ONE, merged=merged),))

    def pinned(self, pipes: tuple[Pipe, ...]) -> tuple[Pipe, ...]:
        """Pipes whose tasks are paired one to one: no partitions are merged on the way."""
        self.stages = [replace(s, inputs=_pinned(s.inputs)) for s in self.stages]
        return tuple(replace(pipe, inputs=_pinned(pipe.inputs)) for pipe in pipes)

    def together(self, node: n.Node, pipes: tuple[Pipe, ...], title: str) -> Pipe:
        """One pipe whose query reads the queries of all of them."""
        inputs: list[Input] = []
        queries: list[Pieces] = []
        determinism, several = VARIES if varies(node) else FIXED, len(pipes) > 1
        pipes = tuple(
            self.handed_over(p)
            if (several and (p.steps or p.udfs)) or p.resources != ONE_CPU
            else p
            for p in pipes
        )
        for pipe in pipes:
            queries.append(f.shifted(pipe.sql, len(inputs)))
            inputs += pipe.inputs
            determinism = looser(determinism, pipe.determinism)
        steps, udfs = ((), ()) if several or not pipes else (pipes[0].steps, pipes[0].udfs)
        names = {pipe.title for pipe in pipes if pipe.title}
        count = max((pipe.n for pipe in pipes), default=1)
        return Pipe(tuple(inputs), f.render(node, tuple(queries)), node.schema, count, steps,
                    determinism, title=titled(" + ".join(sorted(names)), title),
                    udfs=udfs)  # fmt: skip

    def whole(self, node: n.Node, pipes: tuple[Pipe, ...]) -> Pipe:
        """One task that reads everything."""
        gathered = tuple(p if p.n == 1 else self.gathered(p, 1) for p in pipes)
        pipe = self.together(node, gathered, f"{word(node)} (whole, on one task)")
        match node:
            case n.GlobalSql() | n.Aggregate() | n.Join() | n.Distinct():
                return loosened(pipe)
        return ordered(pipe)


def _pinned(inputs: tuple[Input, ...]) -> tuple[Input, ...]:
    return tuple(replace(i, merged=False) if isinstance(i, StageInput) else i for i in inputs)
