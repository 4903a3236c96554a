"""Freed memory is wanted again at once: a stream of batches is a stream of large buffers.

The C library gives each buffer of more than 128 KiB back to the system as soon as it is
freed, and the system clears the pages of the next one: for batches of numbers that is as
much work as to decode them.
"""

import functools


@functools.cache
def keep_freed_memory() -> None:
    """Have glibc reuse freed buffers, and keep up to 64 MiB of them; once per process.

    It does so by itself after the first free of a large piece, at most 32 MiB: "dynamic
    mmap threshold" in mallopt(3). This frees one, which no page was ever made for. Other C
    libraries do as they like. See benchmarks/functions.py.
    """
    import numpy as np

    np.empty((32 << 20) - (64 << 10), np.uint8)
