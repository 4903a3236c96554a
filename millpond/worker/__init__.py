"""`run_task(task, worker)`: the only function that executes a task, in every runtime.

The door of the room. `worker.py` is what a process brings, `run.py` a task on its way,
`inputs.py` what it reads, `outputs.py` and `records.py` what becomes of its rows.
"""

from millpond.worker.run import run_task
from millpond.worker.told import describe_inputs
from millpond.worker.worker import Fetch, Worker, WorkerOptions, build_worker

__all__ = ["Fetch", "Worker", "WorkerOptions", "build_worker", "describe_inputs", "run_task"]
