"""What a disk alone takes for a sort by parts: the same bytes written, read and written again.

Two threads copy files past the page cache, in pieces of 4 MiB, twice: nothing is looked at.
Input that is cached is read from the cache. No sort that writes parts is faster on the disk
at that moment, unless the page cache takes what it writes. Of large sets the beginning of
each file is copied, and the time is that of all in proportion.
"""

import mmap
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

PIECE_BYTES = 4 << 20
MOST_BYTES = 4 << 30


def twice(source: Path, scratch: Path) -> float:
    """Seconds to copy the files of a folder twice. The copies are removed."""
    scratch.mkdir()
    try:
        files = sorted(source.iterdir())
        share = min(1.0, MOST_BYTES / max(1, sum(file.stat().st_size for file in files)))
        start = time.perf_counter()
        with ThreadPoolExecutor(2) as pool:
            first = [scratch / f"{i}.part" for i in range(len(files))]
            list(pool.map(_copy, files, first, [0] * len(files), [share] * len(files)))
            second = [scratch / f"{i}.out" for i in range(len(files))]
            list(pool.map(_copy, first, second, [os.O_DIRECT] * len(files), [1.0] * len(files)))
        return (time.perf_counter() - start) / share
    finally:
        shutil.rmtree(scratch)


def _copy(source: Path, target: Path, reading: int, share: float) -> None:
    """A copy whose length is rounded up to the piece: a floor, not a file to be used."""
    memory = mmap.mmap(-1, PIECE_BYTES)
    read = os.open(source, os.O_RDONLY | reading)
    write = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_DIRECT, 0o600)
    try:
        offset, size = 0, os.fstat(read).st_size * share
        while offset < size:
            os.preadv(read, [memory], offset)
            os.pwrite(write, memory, offset)
            offset += PIECE_BYTES
    finally:
        os.close(read)
        os.close(write)
