"""Reads of ranges, ours and the client's own, in one run: a real S3 server, and a fake 3FS.

    PYTHONPATH=tests/contract:tests/fakes python benchmarks/object_store.py [--mib 1024]

Both sides of a line do the same work by turns; the best of the rounds counts, since
other work on the machine only ever adds time.
"""

import argparse
import json
import os
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import obstore
import pytest
import servers
from hf3fs import Cluster
from obstore.store import S3Store

from millpond.storage import Range, ThreeFsStorage, open_storage
from millpond.storage.preads import Piece
from millpond.storage.ranges import merge
from millpond.storage.usrbio import Ring

ROUNDS = 5
MIB = 1 << 20


def best_of(
    *works: Callable[[], object],
    rounds: int = ROUNDS,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """The best time of each, in seconds, taken by turns."""
    times: list[list[float]] = [[] for _ in works]
    for round_ in range(rounds):
        order = list(zip(times, works, strict=True))
        for kept, work in order if round_ % 2 else order[::-1]:
            start = clock()
            work()
            kept.append(clock() - start)
    return [min(kept) for kept in times]


def read_ranges(folder: Path, mib: int) -> list[dict[str, Any]]:
    """`mib` MiB from an S3 server, by ours and by the client library's best call for it."""
    with servers.juicefs(folder) as server:
        uri = f"s3://{server.bucket}/big.bin"
        storage = open_storage(uri, server.options())
        staged = storage.stage(uri, "bench")
        with open(staged.local, "wb") as file:
            block = os.urandom(MIB)
            for _ in range(mib):
                file.write(block)
        storage.publish([storage.seal(staged)])
        options = server.options()
        client = {"client_options": {"allow_http": options.pop("allow_http"), "timeout": "120s"}}
        options.pop("max_retries")
        store = S3Store(server.bucket, **client, **options)

        lines = []
        for name, length, step in [
            ("one range", mib * MIB, mib * MIB),
            ("ranges of 8 MiB, side by side", 8 * MIB, 8 * MIB),
            ("ranges of 1 MiB, every other one", MIB, 2 * MIB),
        ]:
            starts = list(range(0, mib * MIB - length + 1, step))
            lengths = [length] * len(starts)
            ranges = [Range(uri, at, length) for at in starts]

            def ours(ranges: list[Range] = ranges) -> None:
                views = storage.read_many(ranges)
                assert sum(len(view) for view in views) == sum(r.length for r in ranges)

            def theirs(starts: list[int] = starts, lengths: list[int] = lengths) -> None:
                got = obstore.get_ranges(store, "big.bin", starts=starts, lengths=lengths)
                assert sum(len(one) for one in got) == sum(lengths)

            def whole(length: int = length) -> None:
                assert len(obstore.get(store, "big.bin").bytes()) == length

            best = whole if length == mib * MIB else theirs
            lines.append(line(f"S3: {name}, {sum(lengths) >> 20} MiB", *best_of(ours, best), 1.1))
    return lines


def read_rings(folder: Path) -> list[dict[str, Any]]:
    """512 random reads of 4 KiB: what our part costs, beside a loop of preadv.

    The fake client is Python and slow; the same ring driven by hand says how slow, and is
    taken off.
    """
    mount = folder / "mnt"
    mount.mkdir()
    patch = pytest.MonkeyPatch()
    try:
        io = Cluster(mount).install(patch)
        storage = ThreeFsStorage(io)
        path = mount / "big.bin"
        path.write_bytes(os.urandom(MIB) * 256)
        offsets = [at << 12 for at in random.Random(7).sample(range(256 * 256), 512)]
        ranges = [Range(str(path), at, 4096) for at in offsets]
        fd = os.open(path, os.O_RDONLY)
        ring = Ring(io, str(mount))
        io.register_fd(fd)
        pieces = [
            Piece(str(path), read.offset, memoryview(bytearray(read.length)))
            for read in merge(ranges, os.path.getsize)
        ]

        def ours() -> None:
            storage.read_many(ranges)

        def by_hand() -> None:
            ring.read(pieces, {str(path): fd}, 30.0)

        def loop() -> None:
            for at in offsets:
                os.preadv(fd, [bytearray(4096)], at)

        # All in this one thread: its own clock leaves out what others do meanwhile.
        clock = time.thread_time
        all_of_it, fake, plain = best_of(ours, by_hand, loop, rounds=100, clock=clock)
        io.deregister_fd(fd)
        os.close(fd)
    finally:
        patch.undo()
    return [line("fake 3FS: 512 reads of 4 KiB, our part", all_of_it - fake, plain, 3.0)]


def line(name: str, ours: float, theirs: float, bar: float) -> dict[str, Any]:
    return {"what": name, "ours_s": ours, "theirs_s": theirs, "ratio": ours / theirs, "bar": bar}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as a, tempfile.TemporaryDirectory() as b:
        lines = read_rings(Path(b)) + read_ranges(Path(a), options.mib)
    print(f"{'work':<44} {'ours':>9} {'theirs':>9} {'ratio':>7} {'bar':>6}")
    for one in lines:
        print(
            f"{one['what']:<44} {one['ours_s']:8.4f}s {one['theirs_s']:8.4f}s "
            f"{one['ratio']:6.2f}x {one['bar']:5.1f}x"
        )
    if options.json:
        options.json.write_text(json.dumps(lines, indent=1))


if __name__ == "__main__":
    main()
