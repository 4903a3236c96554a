"""Reads of ranges, ours and the client's own, in one run: a real S3 server, and a fake 3FS.

    python benchmarks/object_store.py [rings ranges scan sort]

Both sides of a line do the same work by turns; the best of the rounds counts, since
other work on the machine only ever adds time. The server runs on the same cores: `sort` also
says how much of them it took.
"""

import argparse
import importlib.util
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import duckdb
import graysort
import numpy as np
import obstore
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest
from obstore.store import S3Store

from millpond.engine.duckdb import Engine
from millpond.storage import (
    FileInfo,
    ObjectStorage,
    Range,
    RemoteFiles,
    ThreeFsStorage,
    open_storage,
)
from millpond.storage.looks import Look, Looks
from millpond.storage.ranges import merge

sys.path += [str(Path(__file__).parents[1] / "tests" / name) for name in ("contract", "fakes")]

import servers
from hf3fs import Cluster

ROUNDS = 5
MIB = 1 << 20


def best_of(
    *works: Callable[[], object],
    rounds: int = ROUNDS,
    clock: Callable[[], float] = time.perf_counter,
    settle: bool = False,
) -> list[float]:
    """The best time of each, in seconds, taken by turns; to `settle`, each runs untimed before."""
    times: list[list[float]] = [[] for _ in works]
    for round_ in range(rounds):
        order = list(zip(times, works, strict=True))
        for kept, work in order if round_ % 2 else order[::-1]:
            if settle:
                work()
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

            def theirs(
                gap: int = MIB, starts: list[int] = starts, lengths: list[int] = lengths
            ) -> None:
                told = {"starts": starts, "lengths": lengths, "coalesce": gap}
                got = obstore.get_ranges(store, "big.bin", **told)
                assert sum(len(one) for one in got) == sum(lengths)

            def apart() -> None:
                theirs(0)  # Ranges that do not touch are requests of their own.

            def whole(length: int = length) -> None:
                assert len(obstore.get(store, "big.bin").bytes()) == length

            peers = [whole] if length == mib * MIB else [theirs, apart]
            # The server reads ahead as it was asked to before: each is timed after one of its own.
            found, *others = best_of(ours, *peers, settle=True)
            what = f"S3: {name}, {sum(lengths) >> 20} MiB"
            lines.append(line(what, found, min(others), 1.1))
    return lines


def scan_parquet(folder: Path, mib: int) -> list[dict[str, Any]]:
    """3 of 16 columns, a third of the row groups, of four Parquet files in an S3 server.

    Theirs is DuckDB over s3fs, where that is installed (it needs an older botocore than the
    test servers do, so an environment of its own), and else pyarrow's own reader.
    """
    rows = mib * MIB // (16 * 8 * 4)
    with servers.juicefs(folder) as server:
        uri = f"s3://{server.bucket}/scan"
        storage = open_storage(uri, server.options())
        numbers = np.random.default_rng(1)
        for part in range(4):
            columns = {f"c{i:02}": numbers.integers(0, 1 << 62, rows) for i in range(1, 16)}
            table = pa.table({"c00": np.arange(rows), **columns})
            staged = storage.stage(f"{uri}/{part}.parquet", "bench")
            pq.write_table(table, staged.local, row_group_size=rows // 12, use_dictionary=False)
            storage.publish([storage.seal(staged)])
        files = [f"{uri}/{part}.parquet" for part in range(4)]
        query = f"SELECT sum(c05), sum(c09) FROM read_parquet({files}) WHERE c00 < {rows // 3}"

        moved = Moved(storage)

        # A new instance for each round: DuckDB keeps what it has read of remote files.
        def ours() -> list[Any]:
            moved.n_bytes = 0
            engine = Engine(threads=4, memory_limit_bytes=2 << 30, scratch=str(folder))
            engine.read_through(RemoteFiles(moved, "s3"))  # type: ignore[arg-type]
            with engine.cursor() as cursor:
                found = cursor.rows(query)
            engine.close()
            return found

        name, bar, theirs = peer_scan(server, files, query, rows // 3)
        assert ours() == theirs()
        found = best_of(ours, theirs)
    needed = 4 * rows // 3 * 3 * 8  # A third of the rows, three columns of 8 bytes.
    what = f"S3: 3 of 16 columns, {moved.n_bytes / needed:.2f} of the bytes needed; {name}"
    return [line(what, *found, bar)]


class Moved:
    """A storage that counts the bytes that are read from it."""

    def __init__(self, storage: ObjectStorage) -> None:
        self.storage, self.n_bytes = storage, 0
        self.looks = Looks(self.peek, self.read_same)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.storage, name)

    def peek(self, path: str, offset: int, length: int) -> Look:
        look = self.storage.peek(path, offset, length)
        self.n_bytes += len(look.data)
        return look

    def read_same(self, info: FileInfo, offset: int, length: int) -> memoryview:
        view = self.storage.read_same(info, offset, length)
        self.n_bytes += len(view)
        return view


def peer_scan(
    server: servers.Server, files: list[str], query: str, below: int
) -> tuple[str, float, Callable[[], list[Any]]]:
    """The peer's name, the bar for our time by its, and its way to do the same."""
    if importlib.util.find_spec("s3fs"):
        import s3fs

        def by_s3fs() -> list[Any]:
            s3fs.S3FileSystem.clear_instance_cache()
            files_ = s3fs.S3FileSystem(
                key=servers.USER, secret=servers.PASSWORD, endpoint_url=server.endpoint
            )
            with duckdb.connect(config={"threads": 4}) as connection:
                connection.register_filesystem(files_)
                return connection.execute(query).fetchall()

        return "DuckDB on s3fs", 1 / 3, by_s3fs

    store = pa.fs.S3FileSystem(
        access_key=servers.USER,
        secret_key=servers.PASSWORD,
        endpoint_override=server.endpoint.removeprefix("http://"),
        scheme="http",
        region="us-east-1",
    )
    paths = [file.removeprefix("s3://") for file in files]

    def by_pyarrow() -> list[Any]:
        columns = ["c00", "c05", "c09"]
        pruned = [("c00", "<", below)]
        table = pq.read_table(paths, columns=columns, filesystem=store, filters=pruned)
        with duckdb.connect() as connection:
            connection.register("rows", table)
            return connection.execute("SELECT sum(c05), sum(c09) FROM rows").fetchall()

    return "pyarrow", 1.0, by_pyarrow


def read_rings(folder: Path) -> list[dict[str, Any]]:
    """512 random reads of 4 KiB: what our part costs, beside a loop of preadv.

    The fake client is Python and slow; the same merged reads, given to it in a bare loop, say
    how slow, and are taken off.
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
        io.register_fd(fd)
        shm = SharedMemory(create=True, size=4 * MIB)
        memory, ring = io.make_iovec(shm, str(mount)), io.make_ioring(str(mount), 512)
        shm.unlink()
        merged, at = [], 0
        for i, read in enumerate(merge(ranges, os.path.getsize)):
            merged.append((i, at, at + read.length, read.offset))
            at += read.length

        def ours() -> None:
            storage.read_many(ranges)

        def by_hand() -> None:
            for i, start, end, offset in merged:
                ring.prepare(memory[start:end], True, fd, offset, i)
            ring.submit()
            ring.wait(min_results=len(merged), timeout=30.0)

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


SORT = """
import json, resource, sys, time
start = time.perf_counter()
import millpond
given = json.loads(sys.argv[1])
options = {"storage_options": given["options"], "data_root": given["root"]}
with millpond.init(progress=False, **options) as sp:
    records = sp.read_fixed(given["in"], {"key": 10, "value": 90})
    rows = records.sort("key").write_fixed(given["out"], mode="overwrite").rows
seconds = time.perf_counter() - start
used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
print(json.dumps([seconds, sum(u.ru_utime + u.ru_stime for u in used), rows]))
"""


def sort_records(folder: Path, mb: int) -> list[dict[str, Any]]:
    """`mb` MB of 100-byte records, sorted with a `data_root`: all in a store, or all in files.

    On both sides the same tasks run and the parts lie on this machine's disk; input, output,
    journal and manifests are in the store, or not. The output is validated, not timed.
    """
    n, lines = mb * 10_000, []
    with servers.juicefs(folder) as server:
        uri, options = f"s3://{server.bucket}", server.options()
        storage = open_storage(uri, options)
        total = graysort.write_set(folder / "in", n, 4, "", os.cpu_count() or 1)
        for file in sorted((folder / "in").iterdir()):
            staged = storage.stage(f"{uri}/in/{file.name}", "bench")
            shutil.copy(file, staged.local)
            storage.publish([storage.seal(staged)])

        def sort(place: str, options: dict[str, object] | None, root: str) -> list[float]:
            os.sync()  # What others wrote is not to reach the disk while this one is timed.
            given = {"in": f"{place}/in", "out": f"{place}/out", "options": options, "root": root}
            command = [sys.executable, "-c", SORT, json.dumps(given)]
            out = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
            seconds, cpu_s, rows = json.loads(out)
            assert rows == n
            return [seconds, cpu_s]

        before = server.cpu_s()
        there = sort(uri, options, f"{uri}/root")
        served_s = server.cpu_s() - before
        here = sort(str(folder), None, str(folder / "root"))
        copied = copy_records(server, sorted((folder / "in").iterdir()))
        paths = []
        for number, info in enumerate(storage.list(f"{uri}/out")):
            paths.append(str(folder / f"sorted-{number:05d}"))
            Path(paths[-1]).write_bytes(storage.read_many([Range(info.path, 0, -1)])[0])
        found = graysort.validate(paths, os.cpu_count() or 1)
        assert found.unordered is None
        assert (found.records, found.checksum) == (n, total)
        what = f"sort {mb} MB ({there[1]:.0f} CPU s, server {served_s:.0f}; files {here[1]:.0f})"
        lines.append(line(what, there[0], here[0], 2.5))
        # What no program can go below that sorts as fast as ours does and moves the bytes
        # by this client, where all cores are busy.
        what = f"files, and the client's own get and put (server {copied[1]:.0f} CPU s)"
        lines.append(line(what, here[0] + copied[0], here[0], 2.5))
    return lines


def copy_records(server: servers.Server, files: list[Path]) -> list[float]:
    """Seconds, and the server's CPU seconds, of the client's own get and put of the files."""
    options = server.options()
    client = {"client_options": {"allow_http": options.pop("allow_http"), "timeout": "120s"}}
    options.pop("max_retries")
    store = S3Store(server.bucket, **client, **options)
    before, start = server.cpu_s(), time.perf_counter()
    for file in files:
        assert len(obstore.get(store, f"in/{file.name}").bytes()) == file.stat().st_size
    for file in files:
        obstore.put(store, f"copy/{file.name}", file)
    return [time.perf_counter() - start, server.cpu_s() - before]


def line(name: str, ours: float, theirs: float, bar: float) -> dict[str, Any]:
    return {"what": name, "ours_s": ours, "theirs_s": theirs, "ratio": ours / theirs, "bar": bar}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    works: dict[str, Callable[[Path], list[dict[str, Any]]]] = {
        "rings": read_rings,
        "ranges": lambda folder: read_ranges(folder, options.mib),
        "scan": lambda folder: scan_parquet(folder, 192),
        "sort": lambda folder: sort_records(folder, 2000),
    }
    parser.add_argument("works", nargs="*", help=f"some of {', '.join(works)}; all if none")
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--folder", type=Path, help="where the data may lie: 12 GB for `sort`")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    lines = []
    for name in options.works or works:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            lines += works[name](Path(folder))
    print(f"{'work':<52} {'ours':>9} {'theirs':>9} {'ratio':>7} {'bar':>6}")
    for one in lines:
        print(
            f"{one['what']:<52} {one['ours_s']:8.4f}s {one['theirs_s']:8.4f}s "
            f"{one['ratio']:6.2f}x {one['bar']:5.1f}x"
        )
    if options.json:
        options.json.write_text(json.dumps(lines, indent=1))


if __name__ == "__main__":
    main()
