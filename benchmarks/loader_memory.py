"""How close to the memory's own speed the loader gives rows: C on the same bytes, in turns.

    python benchmarks/loader_memory.py [--scale 1] [--rounds 5] [--only "64 KiB"]

Batches of 512 uniform rows of a warm set, one thread, by processor time. `copied`: `ds.take`
against a C loop that copies the same rows out of maps of the same files into one reused block
(`memcpy`). `read`: views of which every byte is looked at (an xxh3 a row) against a C loop that
adds up their 64-bit words where they lie. The C loops are given all addresses before, and check,
count and hand over nothing. Needs `cc`.
"""

import argparse
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from loader_cold import row_addresses, shards, write
from loader_rivals import Ids, Rows, fixed_rows, ours_in_place, read
from pairs import in_words, keep

from millpond import open_dataset

BATCH = 512
SECONDS = 0.5
# Rows a second of one core that the issue asks for.
BARS = {"256 B": 9e6, "4 KiB": 1e6, "64 KiB": 100e3}
C = r"""
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
/* argv: addresses (u64 file, u64 offset, ...), width, "copy" or "read", files... */
int main(int argc, char **argv) {
    int fd = open(argv[1], O_RDONLY);
    long size = lseek(fd, 0, SEEK_END), n = size / 16, width = atol(argv[2]);
    uint64_t *at = malloc(size), total = 0;
    if (pread(fd, at, size, 0) != size) return 2;
    char **maps = malloc(sizeof(char *) * argc), *out = malloc(512 * width);
    for (int i = 4; i < argc; i++) {
        int file = open(argv[i], O_RDONLY);
        long length = lseek(file, 0, SEEK_END);
        maps[i - 4] = mmap(NULL, length, PROT_READ, MAP_SHARED | MAP_POPULATE, file, 0);
    }
    memset(out, 1, 512 * width);
    struct timespec a, b;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &a);
    if (argv[3][0] == 'c')
        for (long i = 0; i < n; i++)
            memcpy(out + i % 512 * width, maps[at[2 * i]] + at[2 * i + 1], width);
    else
        for (long i = 0; i < n; i++) {
            const uint64_t *row = (const uint64_t *)(maps[at[2 * i]] + at[2 * i + 1]);
            for (long j = 0; j < width / 8; j++) total += row[j];
        }
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &b);
    fprintf(stderr, "%lu\n", total + out[n % 512]);
    printf("%f\n", (b.tv_sec - a.tv_sec) + (b.tv_nsec - a.tv_nsec) / 1e9);
}
"""

Found = dict[str, Any]


def in_c(program: str, path: str, width: int, ids: Ids, how: str) -> float:
    """Rows a second of processor time."""
    addresses = row_addresses(path, width, ids)
    ended = subprocess.run(
        [program, addresses, str(width), how, *shards(path)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return len(ids) / float(ended.stdout)


def compared(rows: Rows, width: int, rounds: int, folder: Path, program: str) -> list[Found]:
    path = write(rows, folder)
    ds = open_dataset(path)
    ways = {
        "copied": (lambda ids: ds.take(ids, columns=["payload"]), "copy"),
        "read": (read(ours_in_place(rows, path)), "read"),
    }
    draw, found = np.random.default_rng(1), []
    for how, (take, in_words_of_c) in ways.items():
        for at in range(0, rows.n, 8192):  # Mapped, in the page cache, and checked.
            take(np.arange(at, min(at + 8192, rows.n)))
        began = time.process_time()
        for _ in range(8):
            take(draw.integers(0, rows.n, BATCH))
        count = max(8, int(8 * SECONDS / (time.process_time() - began)))
        pairs = []
        for _ in range(rounds):
            batches = [draw.integers(0, rows.n, BATCH) for _ in range(count)]
            began = time.process_time()
            for ids in batches:
                take(ids)
            mine = count * BATCH / (time.process_time() - began)
            c = in_c(program, path, width, np.concatenate(batches), in_words_of_c)
            pairs.append((mine, c))
        mine = statistics.median(a for a, _ in pairs)
        found.append({
            "work": f"{rows.name}, {how}",
            "ours_rows_s": mine,
            "ours_GB_s": mine * width / 1e9,
            "c_rows_s": statistics.median(b for _, b in pairs),
            "of_c": statistics.median(a / b for a, b in pairs),
            **({"bar_rows_s": BARS[rows.name]} if how == "copied" else {}),
        })  # fmt: skip
    shutil.rmtree(path)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--scale", type=float, default=1.0, help="of the issue's row counts")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=None)
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="millpond-memory-"))
    results: list[Found] = []
    try:
        program = str(folder / "copy")
        (folder / "copy.c").write_text(C)
        subprocess.run(["cc", "-O3", "-march=native", "-o", program, f"{program}.c"], check=True)
        for name, n, width in (
            ("256 B", 1_000_000, 256), ("4 KiB", 1_000_000, 4096), ("64 KiB", 60_000, 65_536)
        ):  # fmt: skip
            if asked.only is None or name in asked.only:
                rows = fixed_rows(name, int(n * asked.scale), width)
                for found in compared(rows, width, asked.rounds, folder, program):
                    results.append(found)
                    print(in_words(found), flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    keep("loader_memory", results)


if __name__ == "__main__":
    main()
