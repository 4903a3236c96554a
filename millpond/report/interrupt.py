"""Ctrl-C in a script: one line instead of a traceback through our threads.

Nothing is changed before it happens, and nothing for any other exception: the hook is
set when a run was interrupted, and knows that very exception only.
"""

import sys
from types import TracebackType


def one_line(interrupt: KeyboardInterrupt) -> None:
    """If `interrupt` ends the process, let it end with one line. Prompts stay as they are."""
    if hasattr(sys, "ps1") or "IPython" in sys.modules:
        return
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, tb: TracebackType | None) -> None:
        if error is interrupt:
            print("millpond: interrupted", file=sys.stderr)
            # The exception holds the frames of all that was at work: kept here to the very end,
            # they would keep DuckDB's own objects, and it tells of each that is left.
            sys.excepthook = before
        else:
            before(kind, error, tb)

    sys.excepthook = hook
