"""Freed memory is wanted again at once: a stream of batches is a stream of large buffers.

The C library gives each buffer of more than 128 KiB back to the system as soon as it is
freed, and the system clears the pages of the next one: for batches of numbers that is as
much work as to decode them.
"""

from __future__ import annotations

import ctypes
import functools
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# glibc's, in mallopt(3). What it comes to by itself after a large free: see "dynamic mmap
# threshold" there.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_USUAL = {_MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 64 << 20, _TOP_PAD: 128 << 10}
_KEPT = {_MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 1 << 30, _TOP_PAD: 1 << 30}
_AFTERWARDS_S = 1.0  # A result that is let go, and made again, is made of the same memory.


class _Keeping:
    """How many want it now, and what ends it after the last of them."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.wanted = 0
        self.end: threading.Timer | None = None


_keeping = _Keeping()


def _forget() -> None:
    global _keeping
    _keeping = _Keeping()


# A forked child has none of the threads, and perhaps a lock that one of them held.
os.register_at_fork(after_in_child=_forget)


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Have the C library keep what is freed, meanwhile and for a second more.

    Then all of it goes back to the system. Of glibc; other libraries do as they like. See
    benchmarks/functions.py.
    """
    library = _glibc()
    if library is None:
        yield
        return
    with _keeping.lock:
        _keeping.wanted += 1
        if _keeping.end is not None:
            _keeping.end.cancel()
            _keeping.end = None
        _set(library, _KEPT)
    try:
        yield
    finally:
        with _keeping.lock:
            _keeping.wanted -= 1
            if not _keeping.wanted:
                _keeping.end = threading.Timer(_AFTERWARDS_S, give_back)
                _keeping.end.daemon = True
                _keeping.end.start()


def give_back() -> None:
    """Let the system have what is free, if nobody wants it now."""
    library = _glibc()
    with _keeping.lock:
        if library is not None and not _keeping.wanted:
            _set(library, _USUAL)
            library.malloc_trim(0)


def _set(library: Any, settings: dict[int, int]) -> None:
    for name, value in settings.items():
        library.mallopt(name, value)


@functools.cache
def _glibc() -> Any:
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") else None
