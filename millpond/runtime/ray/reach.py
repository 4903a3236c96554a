"""Whether a cluster answers, and a limit on how long it takes to come up.

Ray itself tries to reach a head that accepts connections and says nothing 20 times, for 41 s
each, and begins again after that: a program would stand still for most of an hour.
"""

import ctypes
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from millpond.errors import OptionError

ANSWER_S = 30.0  # A head that is being restarted, or is busy, answers by then.
_PAUSE_S = 0.5
# What a client says first (RFC 9113, 3.4), with its settings, of which there are none. A server
# says its own at once; one that wants TLS says that it does not understand, or hangs up.
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


class NotInTime(BaseException):
    """What was to end by then has not. No `Exception`: those are caught, and tried again."""


def check_answers(address: str, limit_s: float = ANSWER_S) -> None:
    """Raise unless a server answers at `address`, "host:port", within `limit_s`."""
    host, _, port = address.rpartition(":")
    if not port.isdigit() or "://" in address:
        return None  # No address of a head: Ray knows what it is, or says that it is none.
    end_s = time.monotonic() + limit_s
    while True:
        try:
            return _ask(host.strip("[]"), int(port), end_s)
        except OSError as error:
            if time.monotonic() + _PAUSE_S > end_s:
                silent = isinstance(error, TimeoutError)
                why = "accepts connections and says nothing" if silent else f"{error}"
                raise OptionError(
                    f"runtime='ray': no cluster answers at {address!r} in {limit_s:g} s: {why}. "
                    "Look at its head: `ray status` there, and whether its gcs_server runs and "
                    "this machine reaches the port; after a crash, `ray stop` and start it again."
                ) from error
            time.sleep(_PAUSE_S)


def _ask(host: str, port: int, end_s: float) -> None:
    with socket.create_connection((host, port), max(0.1, end_s - time.monotonic())) as connection:
        connection.settimeout(max(0.1, end_s - time.monotonic()))
        with suppress(ConnectionResetError, BrokenPipeError):  # It is there, and wants TLS.
            connection.sendall(_HELLO)
            connection.recv(1)


@contextmanager
def within(limit_s: float) -> Iterator[None]:
    """Raise `NotInTime` in this thread once the block has taken so long.

    That is: as soon as it is at a line of Python again.
    """
    lock, thread, ended = threading.Lock(), ctypes.c_ulong(threading.get_ident()), False

    def end() -> None:
        with lock:
            if not ended:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(NotInTime))

    timer = threading.Timer(limit_s, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        with lock:
            ended = True
        timer.cancel()
