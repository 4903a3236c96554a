"""Where tasks run and what runs next: the `Runtime` protocol, and `run`.

`schedule` decides and does nothing; `run` does and decides nothing; a runtime is a
place. So a laptop and a cluster differ in one module, and retries, failures and
texts are the same on both.
"""

from millpond.runtime.commands import Policy
from millpond.runtime.outcome import Outcome, StageOutcome
from millpond.runtime.place import Capacity, Ended, Runtime
from millpond.runtime.run import Journal, run

__all__ = ["Capacity", "Ended", "Journal", "Outcome", "Policy", "Runtime", "StageOutcome", "run"]
