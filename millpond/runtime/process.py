"""A worker process, and the two ends of the pipes to it.

A Python of its own: no fork beside DuckDB's threads, and
no second run of a script without a main guard. Frames are a length and a pickle,
between two processes of ours only; what the user's code prints goes to stderr. The
process dies with its parent, and so does what the user's code started in it.
"""

import atexit
import os
import pickle
import queue
import signal
import struct
import subprocess
import sys
import threading
from contextlib import suppress
from typing import IO, Any

from millpond.engine.pandas_later import without_pandas
from millpond.errors import WorkerLost
from millpond.physical.stages import PartRef, Task
from millpond.runtime.answers import answer, opened
from millpond.runtime.binding import bound, unbound
from millpond.runtime.place import Ended
from millpond.storage.oserrors import make_private
from millpond.worker import WorkerOptions, build_worker

_LENGTH = struct.Struct("<Q")
_END_S = 2.0
_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_START = """import sys
sys.path.append(sys.argv.pop())
from millpond.runtime.process import main
main()"""


class WorkerProcess:
    """The parent's end: runs one task at a time, in a process of its own."""

    def __init__(self, options: WorkerOptions, node: str) -> None:
        make_private(options.scratch)
        # A group of its own: Ctrl-C reaches the parent alone, which decides what ends,
        # and killing the group takes the children of the user's code along.
        # Millpond may lie where only this script's own sys.path finds it.
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, _ROOT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            process_group=0,
        )
        self._sent: dict[int, tuple[PartRef, ...]] = {}  # By stage: what it knows already.
        self.scratch = options.scratch
        with suppress(OSError):  # It died already: the first task tells.
            self._send((options, node, sys.path))

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def run(self, task: Task) -> Ended:
        """What `run_task` gives or raises in the process; `WorkerLost` if that dies."""
        bare, parts = unbound(task)
        new = {s: refs for s, refs in parts.items() if self._sent.get(s) is not refs}
        self._sent.update(new)
        try:
            self._send((bare, new))
            reply = _receive(self._replies)
        except (OSError, EOFError) as error:
            raise WorkerLost(self._obituary()) from error
        return opened(reply)

    def kill(self) -> None:
        """End the process, whatever it does."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        """End an idle process, politely first: its engine removes its spill files."""
        with suppress(OSError):
            self._requests.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_S)
        self.kill()
        self._replies.close()

    @property
    def _requests(self) -> IO[bytes]:
        assert self._process.stdin is not None
        return self._process.stdin

    @property
    def _replies(self) -> IO[bytes]:
        assert self._process.stdout is not None
        return self._process.stdout

    def _send(self, value: Any) -> None:
        _write(self._requests, pickle.dumps(value, protocol=5))

    def _obituary(self) -> str:
        code = self._process.wait()
        how = f"with exit code {code}"
        if code < 0:
            how = f"by signal {-code} ({signal.Signals(-code).name})"
        # The kernel says no more than this about who ran out of memory.
        hint = ": the system may have run out of memory" if code == -signal.SIGKILL else ""
        return f"worker process {self._process.pid} ended {how}{hint}"


# ---- frames --------------------------------------------------------------------------


def _write(pipe: IO[bytes], data: bytes) -> None:
    pipe.write(_LENGTH.pack(len(data)))
    pipe.write(data)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> bytes:
    return _exactly(pipe, _LENGTH.unpack(_exactly(pipe, _LENGTH.size))[0])


def _exactly(pipe: IO[bytes], n: int) -> bytes:
    data = pipe.read(n)
    if len(data) < n:
        raise EOFError("the pipe ended within a frame")
    return data


# ---- the child's end -----------------------------------------------------------------


def main() -> None:
    """Serve tasks until the parent closes the pipe."""
    requests, replies = _take_pipes()
    without_pandas()
    options, node, paths = pickle.loads(_receive(requests))
    sys.path.extend(path for path in paths if path not in sys.path)
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    busy = threading.Event()
    threading.Thread(target=_listen, args=(requests, inbox, busy), daemon=True).start()
    worker = build_worker(options, node=node)
    known: dict[int, tuple[PartRef, ...]] = {}
    while (request := inbox.get()) is not None:
        task, new = request
        known.update(new)
        _, stages = unbound(task)
        reply = answer(bound(task, {stage: known[stage] for stage in stages}), worker)
        busy.clear()
        with suppress(BrokenPipeError):  # The parent is gone: the next request is the end.
            _write(replies, reply)
    worker.close()
    # As multiprocessing ends its children: the interpreter's own end does no good here, and
    # after an exception within a stream nanobind would list all of DuckDB's types on stderr.
    atexit._run_exitfuncs()
    sys.stderr.flush()
    os._exit(0)


def _take_pipes() -> tuple[IO[bytes], IO[bytes]]:
    """The protocol's pipes, out of reach of user code: print goes to stderr, input is empty."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return requests, replies


def _listen(requests: IO[bytes], inbox: "queue.SimpleQueue[Any]", busy: threading.Event) -> None:
    """Take requests; when the pipe ends, so does the process, even within a task."""
    try:
        while True:
            request = pickle.loads(_receive(requests))
            busy.set()
            inbox.put(request)
    except BaseException:  # A broken frame is an end, too.
        if busy.is_set():
            os.killpg(os.getpgrp(), signal.SIGKILL)  # Its own group: see `WorkerProcess`.
        inbox.put(None)
