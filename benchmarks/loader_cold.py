"""The loader on a cold page cache, against a C program that reads with 64 threads.

    python benchmarks/loader_cold.py [--scale 1] [--rounds 3] [--only "4 KiB" block verify]

Before every run the sets' pages are dropped (posix_fadvise, which acts on pages that no
process maps: so each run is a process of its own). `rows`: the first 20,000 and all rows of
a uniform order in batches of 512, and 20,000 after the first 4,096 (when the clock starts,
as many are asked for ahead as when it stops), against as many `pread` calls of 64 C threads at
the same addresses of the same files. `block`: an epoch in block order against reading the files
from front to back. `verify`: an epoch with checksums against one without. Needs `cc`.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from loader_rivals import Ids, Rows, fixed_rows
from pairs import in_words, keep

from millpond import open_dataset
from millpond.loader import write_dataset

FIRST = 20_000
PREAD = r"""
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>
/* argv: addresses (u64 file, u64 offset, ...), width, threads, files... */
static uint64_t *at; static long n, width; static int *fds; static int threads;
static void *run(void *arg) {
    char *buffer = malloc(width);
    for (long i = (long)arg; i < n; i += threads)
        if (pread(fds[at[2 * i]], buffer, width, at[2 * i + 1]) != width) exit(3);
    return NULL;
}
int main(int argc, char **argv) {
    int fd = open(argv[1], O_RDONLY);
    long size = lseek(fd, 0, SEEK_END);
    at = malloc(size); n = size / 16; width = atol(argv[2]); threads = atoi(argv[3]);
    if (pread(fd, at, size, 0) != size) return 2;
    fds = malloc(sizeof(int) * argc);
    for (int i = 4; i < argc; i++) {
        fds[i - 4] = open(argv[i], O_RDONLY);
        posix_fadvise(fds[i - 4], 0, 0, POSIX_FADV_RANDOM);
    }
    struct timespec a, b;
    pthread_t t[256];
    clock_gettime(CLOCK_MONOTONIC, &a);
    for (long i = 0; i < threads; i++) pthread_create(&t[i], NULL, run, (void *)i);
    for (long i = 0; i < threads; i++) pthread_join(t[i], NULL);
    clock_gettime(CLOCK_MONOTONIC, &b);
    printf("%f\n", (b.tv_sec - a.tv_sec) + (b.tv_nsec - a.tv_nsec) / 1e9);
}
"""

Found = dict[str, Any]


def write(rows: Rows, folder: Path) -> str:
    path = str(folder / rows.name.replace(" ", ""))
    write_dataset(rows.batches(), path, schema=rows.schema)
    os.sync()  # What is still to be written cannot be dropped.
    return path


def shards(path: str) -> list[str]:
    return sorted(str(file) for file in Path(path).glob("*.arrow"))


def drop(path: str) -> None:
    """Take the set's pages out of the page cache."""
    for file in shards(path):
        fd = os.open(file, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def in_a_process(path: str, **asked: Any) -> Found:
    """One cold epoch, or its first rows, by this script in a process of its own."""
    drop(path)
    command = [sys.executable, __file__, "--run", json.dumps({"path": path, **asked})]
    ended = subprocess.run(command, check=True, capture_output=True, text=True)
    found: Found = json.loads(ended.stdout)
    return found


def run(path: str, limit: int | None, batch: int, skip: int = 0, **options: Any) -> None:
    """Read batches and look at one number of each row, from the open dataset on, or after
    `skip` rows."""
    verify = options.pop("verify", "first")
    ds = open_dataset(path, verify=verify)
    began, cpu = time.perf_counter(), time.process_time()
    seen = total = 0
    for part in ds.loader(batch, columns=["payload"], **options):
        seen += len(part["payload"])
        total += int(part["payload"][:, 0].sum())
        if skip and seen >= skip:
            began, cpu = time.perf_counter(), time.process_time()
            seen, skip = 0, 0
        if limit is not None and seen >= limit:
            break
    spent = {"clock": time.perf_counter() - began, "cpu": time.process_time() - cpu}
    print(json.dumps({"rows": seen, "rows_s": seen / spent["clock"], **spent}), flush=True)
    os._exit(0)  # Not to wait for what a thread reads ahead: the clock has stopped.


def row_addresses(path: str, width: int, rows: Ids) -> str:
    """A file of where rows lie: the number of the shard and the offset in it of each."""
    source = open_dataset(path).rows
    layout, places = source.layout, source.shards.places  # type: ignore[attr-defined]
    chunk, local = layout.chunks.find(rows)
    shard = layout.shard[chunk]
    at = layout.address[layout.columns["payload"].data][chunk] + local * width - places[shard]
    addresses = f"{path}.at"
    np.column_stack([shard, at]).astype("<u8").tofile(addresses)
    return addresses


def pread(program: str, path: str, width: int, n: int) -> float:
    """Rows a second of 64 C threads at the addresses of `n` rows in a uniform order."""
    rows = np.random.default_rng(1).permutation(len(open_dataset(path)))[:n]
    addresses = row_addresses(path, width, rows)
    drop(path)
    ended = subprocess.run(
        [program, addresses, str(width), "64", *shards(path)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return n / float(ended.stdout)


def rows_cold(rows: Rows, width: int, rounds: int, folder: Path, program: str) -> list[Found]:
    path = write(rows, folder)
    found = []
    for limit, skip, what in (
        (FIRST, 0, "the first 20,000 rows"),
        (FIRST, 4096, "20,000 rows after the first 4,096"),
        (None, 0, "an epoch"),
    ):
        n = min(limit or rows.n, rows.n)
        asked = {"limit": limit, "skip": skip, "batch": 512, "shuffle": "global"}
        pairs = [
            (
                in_a_process(path, **asked)["rows_s"],
                pread(program, path, width, n),
            )
            for _ in range(rounds if limit else 1)
        ]
        found.append({
            "work": f"cold, {rows.name}, {what}",
            "ours_rows_s": statistics.median(a for a, _ in pairs),
            "c_64_threads_rows_s": statistics.median(b for _, b in pairs),
            "ratio": statistics.median(a / b for a, b in pairs),
            "bar": 0.8 if width > 4096 else 1.0,
        })  # fmt: skip
    shutil.rmtree(path)
    return found


def sequential(path: str) -> float:
    """Bytes a second of reading the files from front to back, as `dd bs=8M` does."""
    drop(path)
    buffer, size = bytearray(8 << 20), 0
    began = time.perf_counter()
    for name in shards(path):
        with open(name, "rb", buffering=0) as file:
            while count := file.readinto(buffer):
                size += count
    return size / (time.perf_counter() - began)


def block_cold(rounds: int, scale: float, folder: Path) -> list[Found]:
    """In turns with a plain sequential read: the disk's own speed changes from run to run."""
    path = write(fixed_rows("block", int(2_900_000 * scale), 1024), folder)
    size = sum(os.path.getsize(name) for name in shards(path))
    pairs = []
    for _ in range(rounds):
        disk = sequential(path)
        took = in_a_process(path, limit=None, batch=1024, shuffle="block")["clock"]
        pairs.append((size / took, disk))
    shutil.rmtree(path)
    return [{
        "work": "block-shuffled epoch of 1 KiB rows, cold",
        "ours_MB_s": statistics.median(a for a, _ in pairs) / 1e6,
        "sequential_MB_s": statistics.median(b for _, b in pairs) / 1e6,
        "ratio": statistics.median(a / b for a, b in pairs),
        "bar": 0.9,
    }]  # fmt: skip


def verify_cold(rounds: int, scale: float, folder: Path) -> list[Found]:
    """Cold random rows, each a read of the disk: 40,000 of 1 GB and more."""
    found = []
    for name, n, width in (("256 B", 4_000_000, 256), ("4 KiB", 300_000, 4096)):
        path = write(fixed_rows(name, int(n * scale), width), folder)
        asked = {"limit": 40_000, "batch": 1024, "shuffle": "global"}
        pairs = []
        for _ in range(2 * rounds + 1):
            times = [in_a_process(path, verify=v, **asked)["clock"] for v in ("first", "off")]
            pairs.append((times[0], times[1]))
        shutil.rmtree(path)
        found.append({
            "work": f"checksums of cold random rows, {name}",
            "with_s": statistics.median(a for a, _ in pairs),
            "without_s": statistics.median(b for _, b in pairs),
            "ratio": statistics.median(a / b for a, b in pairs),
            "bar": 1.05,
        })  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--scale", type=float, default=1.0, help="of the issue's row counts")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=None)
    parser.add_argument("--run", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.run:
        run(**json.loads(asked.run))
        return
    folder = Path(tempfile.mkdtemp(prefix="millpond-cold-"))
    rounds, scale = asked.rounds, asked.scale
    results: list[Found] = []
    try:
        program = str(folder / "pread")
        (folder / "pread.c").write_text(PREAD)
        subprocess.run(["cc", "-O2", "-pthread", "-o", program, f"{program}.c"], check=True)
        works: dict[str, Callable[[], list[Found]]] = {
            name: lambda name=name, n=n, width=width: rows_cold(
                fixed_rows(name, int(n * scale), width), width, rounds, folder, program
            )
            for name, n, width in (
                ("256 B", 1_000_000, 256), ("4 KiB", 1_000_000, 4096), ("64 KiB", 60_000, 65_536)
            )
        }  # fmt: skip
        works["block"] = lambda: block_cold(rounds, scale, folder)
        works["verify"] = lambda: verify_cold(rounds, scale, folder)
        for name, work in works.items():
            if asked.only is None or name in asked.only:
                for found in work():
                    results.append(found)
                    print(in_words(found), flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    keep("loader_cold", results)


if __name__ == "__main__":
    main()
