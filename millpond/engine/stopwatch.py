"""How long a function of batches takes: itself a function of batches, for a worker process."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cloudpickle

from millpond.engine.python import call_on, guarded, is_class
from millpond.plan.nodes import PythonCall

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Stopwatch:
    """Called with rows, gives the nanoseconds that `call` takes for each of them.

    A class may be heavy to build, and its instance to keep: it is not called, and NULL.
    """

    call: PythonCall
    wanted: pa.Schema

    def __call__(self, rows: pa.Table) -> pa.Table:
        import pyarrow as pa

        took: list[float | None] = [None]
        if not is_class(self.call):
            function = guarded(self.call)
            batch = rows.combine_chunks().to_batches()[0]
            begin = time.perf_counter_ns()
            for _ in call_on(function, batch, self.call, self.wanted):
                pass
            took = [(time.perf_counter_ns() - begin) / rows.num_rows]
        return pa.table({"ns": pa.array(took, pa.float64())})


def timed(call: PythonCall, wanted: pa.Schema) -> PythonCall:
    """The call that measures `call`; gives one row a batch, of the column `ns`."""
    function = cloudpickle.dumps(Stopwatch(call, wanted))
    return PythonCall(function, "batch", call.name, f"time of {call.identity}", call.batch_size)
