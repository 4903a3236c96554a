"""The sort benchmark's records: generate them, sort them, validate what was sorted.

    python benchmarks/graysort.py generate DIR --size 2GB [--files 8] [--skew heavy|prefix]
    python benchmarks/graysort.py sort --size 2GB [--skew heavy|prefix] [--memory-limit 1GB]
    python benchmarks/graysort.py validate FILES... [--unsorted] [--checksum HEX]

Records have 100 bytes, the first 10 are the key. Record i is a function of i alone, so
ranges are made and checked in parallel. The standard set is bit for bit that of the
sort benchmark (sortbenchmark.org); the skewed ones replace keys: "heavy" gives 30 % of
all records one key, "prefix" gives half of them the same first 6 bytes. Keys of a skewed
set are still functions of i.

`sort` generates a set in a folder that is removed at the end, sorts it in a process of its
own by `read_fixed(…).sort("key").write_fixed(…)`, validates the result (not timed), and
appends a line to RESULTS if that is given. Time is that of the whole process; processor
seconds, bytes and peak memory are those of it and all that it started (`apart.py`). MB are
10^6 bytes. `--floor` adds what the disk alone takes: the same bytes copied twice, past the
page cache, by as many threads, without a look at them.

Measured on 2 cores without other work, from the interpreter's start to its end, one run each:
2 GB in memory 4.2 s (239 MB per second and core, 4.8 CPU s, 2.4 GB; 3.4 s in an hour when this
machine was faster); within 1 GB of memory 2 GB 6.9 s (145), 4 GB 10.7 s (187), 8 GB 23.0 s (174),
12 GB 35.8 s (168): 2.7 to 3.0 s per GB where the disk's share alone, two copies of the bytes, is
2.2 to 2.8; 2.01 reads and 2.00 writes per byte, 0.8 GB of memory. Skewed against uniform, 2 GB:
heavy 1.05 of the time and 1.11 of the memory within 1 GB, prefix 1.00 and 1.11 without a limit.
"""

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import apart
import copies
import numpy as np
import numpy.typing as npt

RECORD = 100
KEY = 10
A = 0x2360ED051FC65DA44385DF649FCCF645
C = 0x4A696D47726179524950202020202001
BLOCK = 8192  # Records at a time: they and the columns they are made from stay in the cache.
PIECE = 2 * BLOCK  # Records written, read and checked at a time.
RANGE = 1_000_000  # Records a process takes at a time.
_64, _128 = (1 << 64) - 1, (1 << 128) - 1

U64 = npt.NDArray[np.uint64]
LAYOUT = np.dtype(
    {
        "names": ["high", "low", "x", "number", "y", "digits", "z"],
        "formats": [">u8", ">u2", "V2", "(8,)u2", "V4", "(6,)u8", "V4"],
        "offsets": [0, 8, 10, 28, 44, 48, 96],
        "itemsize": RECORD,
    }
)
BLANK = np.frombuffer(
    bytes(10) + b"\x00\x11" + b"0" * 32 + b"\x88\x99\xaa\xbb" + bytes(48) + b"\xcc\xdd\xee\xff",
    np.uint8,
)
_HEX = [f"{byte:02X}".encode() for byte in range(256)]
PAIRS = np.frombuffer(b"".join(_HEX), np.uint16)  # A byte as two hex digits …
GROUPS = np.frombuffer(  # … and as two groups of four equal digits.
    b"".join(bytes((h[0],)) * 4 + bytes((h[1],)) * 4 for h in _HEX), np.uint64
)


# ---- generate ------------------------------------------------------------------------


def sequence(n: int) -> int:
    """x[n] of the congruential sequence, by repeated squaring of its step."""
    value, a, c = 0, A, C
    while n:
        if n & 1:
            value = (a * value + c) & _128
        a, c, n = a * a & _128, (a * c + c) & _128, n >> 1
    return value


@cache
def steps() -> tuple[U64, U64, U64, U64]:
    """High and low halves of a[k] and c[k], where x[n + k] = a[k] x[n] + c[k], k = 1 … BLOCK."""
    table, a, c = np.empty((4, BLOCK), np.uint64), 1, 0
    for k in range(BLOCK):
        a, c = a * A & _128, (a * C + c) & _128
        table[:, k] = a >> 64, a & _64, c >> 64, c & _64
    return tuple(table)


def random_bits(first: int, n: int) -> tuple[U64, U64]:
    """High and low halves of x[first + 1] … x[first + n], n at most BLOCK."""
    a_high, a_low, c_high, c_low = (column[:n] for column in steps())
    start = sequence(first)
    high, low = np.uint64(start >> 64), np.uint64(start & _64)
    product = a_low * low
    out_low = product + c_low
    carry = (out_low < product).astype(np.uint64)
    out_high = high_product(a_low, low) + a_low * high + a_high * low + c_high + carry
    return out_high, out_low


def high_product(a: U64, b: np.uint64) -> U64:
    """The high 64 bits of each a × b."""
    half, mask = np.uint64(32), np.uint64(0xFFFFFFFF)
    al, ah, bl, bh = a & mask, a >> half, b & mask, b >> half
    cross, other = al * bh, ah * bl
    middle = (al * bl >> half) + (cross & mask) + (other & mask)
    return ah * bh + (cross >> half) + (other >> half) + (middle >> half)


def generate(
    first: int, n: int, skew: str = "", out: npt.NDArray[np.uint8] | None = None
) -> npt.NDArray[np.uint8]:
    """Records `first` … `first + n - 1` as rows of 100 bytes, in `out` if it is given."""
    rows = np.empty((n, RECORD), np.uint8) if out is None else out[:n]
    for at in range(0, n, BLOCK):
        _fill(rows[at : at + BLOCK], first + at, skew)
    return rows


def _fill(rows: npt.NDArray[np.uint8], first: int, skew: str) -> None:
    n = len(rows)
    rows[:] = BLANK
    records = rows.reshape(-1).view(LAYOUT)
    high, low = random_bits(first, n)
    numbers = np.arange(first, first + n, dtype=np.uint64)
    records["number"] = PAIRS[numbers.astype(">u8").view(np.uint8).reshape(n, 8)]
    records["digits"] = GROUPS[low.astype(">u8").view(np.uint8).reshape(n, 8)[:, 2:]]
    records["high"], records["low"] = high, low >> np.uint64(48)
    if skew == "heavy":
        mine = low % np.uint64(10) < 3
        rows[mine, :KEY] = np.frombuffer(b"heavy key!", np.uint8)
    elif skew == "prefix":
        mine = low % np.uint64(2) == 0
        rows[mine, :6] = np.frombuffer(b"prefix", np.uint8)


def write_range(path: str, at: int, first: int, n: int, skew: str) -> int:
    """Write records from `first` at record `at` of the file; their checksum."""
    total, memory = 0, np.empty((PIECE, RECORD), np.uint8)
    with open(path, "r+b", buffering=0) as file:
        file.seek(at * RECORD)
        for done in range(0, n, PIECE):
            records = generate(first + done, min(PIECE, n - done), skew, memory)
            rest = memoryview(records).cast("B")
            while len(rest):
                rest = rest[file.write(rest) :]
            total += checksum(records)
    return total


# ---- validate ------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """What a run of records is like. Two neighbours add up to the run of both."""

    records: int
    checksum: int
    duplicates: int
    first_key: bytes
    last_key: bytes
    unordered: int | None  # The first record that is below the one before it.

    def then(self, other: "Found") -> "Found":
        if not self.records or not other.records:
            return self if self.records else other
        unordered = self.unordered
        if unordered is None and self.last_key > other.first_key:
            unordered = self.records
        if unordered is None and other.unordered is not None:
            unordered = self.records + other.unordered
        return Found(
            self.records + other.records,
            (self.checksum + other.checksum) & _128,
            self.duplicates + other.duplicates + (self.last_key == other.first_key),
            self.first_key,
            other.last_key,
            unordered,
        )


NOTHING = Found(0, 0, 0, b"", b"", None)


def checksum(records: npt.NDArray[np.uint8]) -> int:
    """Sum of the CRC-32 of each record: the same in any order."""
    return sum(map(zlib.crc32, records.reshape(-1).view(f"V{RECORD}").tolist()))


def inspect(records: npt.NDArray[np.uint8]) -> Found:
    """Order, duplicates and checksum of some records."""
    if not len(records):
        return NOTHING
    views = records.reshape(-1).view(LAYOUT)
    high, low = views["high"].astype(np.uint64), views["low"].astype(np.uint16)
    same = high[1:] == high[:-1]
    below = (high[1:] < high[:-1]) | (same & (low[1:] < low[:-1]))
    return Found(
        records=len(records),
        checksum=checksum(records),
        duplicates=int((same & (low[1:] == low[:-1])).sum()),
        first_key=records[0, :KEY].tobytes(),
        last_key=records[-1, :KEY].tobytes(),
        unordered=int(below.argmax()) + 1 if below.any() else None,
    )


def inspect_range(path: str, first: int, n: int) -> Found:
    found, memory = NOTHING, np.empty((PIECE, RECORD), np.uint8)
    with open(path, "rb") as file:
        file.seek(first * RECORD)
        for at in range(0, n, PIECE):
            records = memory[: min(PIECE, n - at)]
            file.readinto(memoryview(records).cast("B"))
            found = found.then(inspect(records))
    return found


def validate(paths: Sequence[str], processes: int) -> Found:
    """All files, in the order given, as one run of records."""
    with pool(processes) as workers:
        waits = []
        for path in paths:
            size = os.path.getsize(path)
            if size % RECORD:
                raise SystemExit(f"{path}: {size} bytes are not whole records of {RECORD}")
            for first in range(0, size // RECORD, RANGE):
                n = min(RANGE, size // RECORD - first)
                waits.append(workers.submit(inspect_range, path, first, n))
        found = NOTHING
        for wait in waits:
            found = found.then(wait.result())
    return found


# ---- the command ---------------------------------------------------------------------


def pool(processes: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(processes, mp_context=get_context("spawn"))


def write_set(directory: Path, n: int, n_files: int, skew: str, processes: int) -> int:
    """Write records 0 … n - 1 into `n_files` files; the checksum of the set."""
    directory.mkdir(parents=True, exist_ok=True)
    edges = [n * i // n_files for i in range(n_files + 1)]
    with pool(processes) as workers:
        waits = []
        for number, (first, end) in enumerate(pairwise(edges)):
            path = directory / f"input-{number:04d}.dat"
            with open(path, "wb") as file:
                file.truncate((end - first) * RECORD)
            waits += [
                workers.submit(write_range, str(path), at - first, at, min(RANGE, end - at), skew)
                for at in range(first, end, RANGE)
            ]
        return sum(wait.result() for wait in waits) & _128


def size_bytes(text: str) -> int:
    for unit, factor in (("KB", 10**3), ("MB", 10**6), ("GB", 10**9), ("TB", 10**12)):
        if text.upper().endswith(unit):
            return int(float(text[:-2]) * factor)
    return int(text)


def arguments(words: Iterable[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("generate", help="write a set of records")
    make.add_argument("directory", type=Path)
    make.add_argument("--size", type=size_bytes, default="1GB", help="such as 2GB (10^9 bytes)")
    make.add_argument("--files", type=int, default=4)
    make.add_argument("--skew", choices=["heavy", "prefix"], default="")
    check = commands.add_parser("validate", help="order, count, duplicates, checksum")
    check.add_argument("files", nargs="+")
    check.add_argument("--unsorted", action="store_true", help="the order is not looked at")
    check.add_argument("--checksum", help="what it must be, in hex")
    sort = commands.add_parser("sort", help="generate, sort, validate")
    sort.add_argument("--size", type=size_bytes, default="1GB")
    sort.add_argument("--skew", choices=["heavy", "prefix"], default="")
    sort.add_argument("--memory-limit", type=size_bytes, default="16GB")
    sort.add_argument("--runtime", choices=["local", "ray"], default="local")
    sort.add_argument(
        "--validate", action="store_true", help="always done; the word may be given all the same"
    )
    sort.add_argument("--folder", type=Path, help="where the data may lie: 3 times its size")
    sort.add_argument("--floor", action="store_true", help="also time two plain copies of the set")
    sort.add_argument("--results", type=Path, help="a file to append a JSON line to")
    timed = commands.add_parser("timed", help=argparse.SUPPRESS)
    timed.add_argument("folder", type=Path)
    timed.add_argument("--memory-limit", type=size_bytes)
    timed.add_argument("--runtime")
    for command in (make, check, sort, timed):
        command.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    return parser.parse_args(None if words is None else list(words))


def main(words: Iterable[str] | None = None) -> int:
    args = arguments(words)
    run = {"generate": _generate, "validate": _validate, "sort": _sort, "timed": _timed}
    start = time.perf_counter()
    told = run[args.command](args)
    seconds = told.setdefault("seconds", round(time.perf_counter() - start, 3))
    told["mb_per_s_per_core"] = round(told["records"] * RECORD / seconds / args.processes / 1e6, 1)
    line = json.dumps(told | {"command": args.command})
    print(line)
    if args.command == "sort" and args.results:
        with args.results.open("a") as file:
            file.write(line + "\n")
    return 0 if told.get("good", True) else 1


def _generate(args: argparse.Namespace) -> dict[str, Any]:
    n = args.size // RECORD
    total = write_set(args.directory, n, args.files, args.skew, args.processes)
    return {"records": n, "checksum": f"{total:x}", "skew": args.skew}


def _validate(args: argparse.Namespace) -> dict[str, Any]:
    found = validate(args.files, args.processes)
    expected = found.checksum if args.checksum is None else int(args.checksum, 16)
    good = (args.unsorted or found.unordered is None) and expected == found.checksum
    return asdict(found) | {
        "checksum": f"{found.checksum:x}",
        "first_key": found.first_key.hex(),
        "last_key": found.last_key.hex(),
        "good": good,
    }


def _sort(args: argparse.Namespace) -> dict[str, Any]:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # Nothing large stays behind.
    folder = Path(tempfile.mkdtemp(prefix="millpond-graysort-", dir=args.folder))
    try:
        n = args.size // RECORD
        total = write_set(folder / "in", n, 4, args.skew, args.processes)
        os.sync()  # What was made for the sort is not to be written during it.
        command = [sys.executable, __file__, "timed", str(folder)]
        command += ["--memory-limit", str(args.memory_limit), "--runtime", args.runtime]
        command += ["--processes", str(args.processes)]
        spent, out = apart.told(command)
        told = json.loads(out.splitlines()[-1])  # Ray may have said something first.
        found = validate(told["paths"], args.processes)
        floor = {}
        if args.floor:
            shutil.rmtree(folder / "out")
            floor = {"two_copies_s": round(copies.twice(folder / "in", folder / "copy"), 3)}
    finally:
        shutil.rmtree(folder)
    good = found.unordered is None and (found.records, found.checksum) == (n, total)
    return {
        "records": found.records,
        "skew": args.skew,
        "memory_limit": args.memory_limit,
        "seconds": round(spent["wall_s"], 3),
        "cpu_s": round(spent["cpu_s"], 3),
        "read_per_byte": round(spent["read_gb"] * 1e9 / (n * RECORD), 3),
        "written_per_byte": round(spent["written_gb"] * 1e9 / (n * RECORD), 3),
        "peak_mb": round(spent["peak_gb"] * 1000),
        "duplicates": found.duplicates,
        "good": good,
    } | floor


def _timed(args: argparse.Namespace) -> dict[str, Any]:
    """What a user writes; in a process of its own, so that what it takes can be told."""
    import millpond

    options = {"threads": args.processes, "memory_limit": args.memory_limit, "progress": False}
    if args.runtime == "ray":
        options["allow_insecure"] = True  # A cluster of its own, for as long as it lasts.
    with millpond.init(runtime=args.runtime, **options) as sp:
        records = sp.read_fixed(str(args.folder / "in"), {"key": KEY, "value": RECORD - KEY})
        done = records.sort("key").write_fixed(str(args.folder / "out"))
    paths = sorted(map(str, (args.folder / "out").glob("*.bin")))
    return {"records": done.rows, "paths": paths}


if __name__ == "__main__":
    sys.exit(main())
