"""A live line on the terminal, drawn by a thread of its own.

It can neither slow nor stop a run: an event only changes numbers; drawing, and the
import of rich, happen in the thread, which sleeps through short runs and ends silently
when the terminal fails.
"""

import sys
import threading
import time
from collections.abc import Callable
from typing import TextIO

from millpond.events import Event, RunFinished, RunStarted
from millpond.report.tally import Tally

QUIET_S = 0.5  # Runs shorter than this show nothing: a line that flashes tells nothing.
_DRAW_S = 0.1
_LOG_S = 10.0  # Where lines are not overwritten, they are few.
_END_S = 0.5  # A terminal may block (Ctrl-S); nobody waits for it longer than this.


def live_line(
    wanted: bool | None, fraction: Callable[[], float | None], stream: TextIO | None = None
) -> "Line | None":
    """The line that the option `progress` asks for: None for none."""
    stream = sys.stderr if stream is None else stream
    if wanted is False or stream is None:  # No stderr: a process without a console.
        return None
    terminal = _is_terminal(stream)
    return Line(stream, fraction, terminal=terminal) if wanted or terminal else None


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except ValueError:  # Closed.
        return False


class Line:
    """Listens to events. `fraction` is the engine's word on how far a fused run is."""

    def __init__(
        self,
        stream: TextIO,
        fraction: Callable[[], float | None],
        *,
        terminal: bool,
        quiet_s: float = QUIET_S,
    ) -> None:
        self._stream, self._fraction = stream, fraction
        self._terminal, self._quiet_s = terminal, quiet_s
        self._tally = Tally()
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def __call__(self, event: Event) -> None:
        now_s = time.monotonic()
        with self._lock:
            self._tally.add(event, now_s)
        match event:
            case RunStarted():
                self._start()
            case RunFinished():
                self._stop(event)

    def _start(self) -> None:
        self._over = threading.Event()
        self._ending = ""
        self._thread = threading.Thread(
            target=self._draw, args=(self._over,), name="millpond-line", daemon=True
        )
        self._thread.start()

    def _stop(self, event: RunFinished) -> None:
        if self._thread is None:
            return
        self._ending = self._tally.summary(event)
        self._over.set()
        self._thread.join(_END_S)
        self._thread = None

    def _draw(self, over: threading.Event) -> None:
        try:
            if over.wait(self._quiet_s):
                return
            show = _terminal_line(self._stream) if self._terminal else self._say
            every_s = _DRAW_S if self._terminal else _LOG_S
            while True:
                with self._lock:
                    text = self._tally.line(time.monotonic(), self._fraction())
                show(text, False)
                if over.wait(every_s):
                    break
            show(self._ending, True)
        except Exception:  # The thread ends here; whatever a terminal does, the run goes on.
            return

    def _say(self, text: str, _last: bool) -> None:
        print(text, file=self._stream, flush=True)


def _terminal_line(stream: TextIO) -> Callable[[str, bool], None]:
    """A function that overwrites one line; the last text stays."""
    from rich.console import Console
    from rich.control import Control
    from rich.segment import ControlType
    from rich.text import Text

    console = Console(file=stream, highlight=False)
    # The cursor stays visible: a process that is killed leaves the terminal as it was.
    wipe = Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2))

    def show(text: str, last: bool) -> None:
        line = Text(text, no_wrap=True, overflow="ellipsis")
        line.truncate(max(console.width - 1, 1), overflow="ellipsis")
        line.highlight_words(["millpond"], "bold")
        console.control(wipe)
        console.print(line, end="\n" if last else "", no_wrap=True, crop=True)

    return show
