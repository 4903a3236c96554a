"""The loader against what people use: random batches, epochs, orders, packing, restore.

    python benchmarks/loader.py [--scale 1] [--rounds 5] [--only "4 KiB" epoch] [--rivals mds]

Ours and a rival run in turns on the same rows, warm, on batches of 512 uniform rows; the
ratio is the median over the rounds, by processor time and by the clock. Sets are written
into a temporary folder, a rival's set removed before the next one's: at most twice 4 GB.
Cold figures: `benchmarks/loader_cold.py`. JSON goes to results/.
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from loader_rivals import (
    RIVALS,
    Ids,
    Rival,
    Rows,
    Take,
    fixed_rows,
    ours,
    ours_in_place,
    read,
    token_rows,
)
from pairs import in_words, keep

import millpond
from millpond import open_dataset
from millpond.loader.order import Feistel, Order, permutation
from millpond.loader.packing import plan_packs
from millpond.loader.schedule import Schedule, pattern, whole_weights
from millpond.loader.sequence import Mixed, Place
from millpond.loader.state import Cursor, Identity, Receipt, Run, State

BATCH = 512
# Rows a second of one core that the issue asks for.
BARS = {"256 B": 9e6, "4 KiB": 1e6, "64 KiB": 100e3, "tokens": 1.3e6}

Found = dict[str, Any]


def seconds(take: Take, batches: list[Ids]) -> tuple[float, float]:
    """Processor and clock seconds for all batches."""
    cpu, clock = time.process_time(), time.perf_counter()
    for ids in batches:
        take(ids)
    return time.process_time() - cpu, time.perf_counter() - clock


def random_batches(
    rows: Rows, rounds: int, folder: Path, rivals: Sequence[Rival]
) -> Iterator[Found]:
    """Batches of 512 uniform rows, ours and each rival in turns."""
    mine = ours(rows, str(folder / f"{rows.name}-ours"))
    draw = np.random.default_rng(1)
    # Once over all rows first: mapped, in the page cache, and our checksums checked.
    for at in range(0, rows.n, 8192):
        mine(np.arange(at, min(at + 8192, rows.n)))
    for rival in rivals:
        own = Path(tempfile.mkdtemp(dir=folder))
        try:
            theirs = rival.opened(rows, own)
            # Memory that nobody has looked at for a while is slow on a virtual machine, and
            # the rival has just written its own: both sets are read once.
            warm(folder / f"{rows.name}-ours")
            warm(own)
            theirs(draw.integers(0, rows.n, BATCH))
            yield compared(rows, rival, mine, theirs, rounds, draw)
        except Exception as error:  # The end of a rival, not of the benchmark.
            print(f"{rival.name}: left out ({type(error).__name__}: {error})", file=sys.stderr)
        shutil.rmtree(own)


def in_place(rows: Rows, rounds: int, folder: Path, rivals: Sequence[Rival]) -> Iterator[Found]:
    """The same without copies where a library can: as handed over, and every byte read after."""
    path = folder / f"{rows.name} in place-ours"
    ours(rows, str(path))
    mine = ours_in_place(rows, str(path))
    draw = np.random.default_rng(1)
    for at in range(0, rows.n, 8192):
        mine(np.arange(at, min(at + 8192, rows.n)))
    for rival in rivals:
        own = Path(tempfile.mkdtemp(dir=folder))
        try:
            theirs = rival.opened(rows, own, in_place=True)
            warm(path)
            warm(own)
            theirs(draw.integers(0, rows.n, BATCH))
            for how, a, b in (
                ("in place", mine, theirs),
                ("in place, read", read(mine), read(theirs)),
            ):
                named = replace(rows, name=f"{rows.name} {how}")
                yield compared(named, rival, a, b, rounds, draw)
        except Exception as error:  # The end of a rival, not of the benchmark.
            print(f"{rival.name}: left out ({type(error).__name__}: {error})", file=sys.stderr)
        shutil.rmtree(own)


def warm(folder: Path) -> None:
    """Read all files of a folder."""
    buffer = bytearray(8 << 20)
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass


def compared(
    rows: Rows, rival: Rival, mine: Take, theirs: Take, rounds: int, draw: np.random.Generator
) -> Found:
    def batches_of(take: Take) -> int:
        """As many as take a quarter of a second: a shorter run measures what the other left
        in the processor's caches."""
        once = min(seconds(take, [draw.integers(0, rows.n, BATCH)])[1] for _ in range(3))
        return int(min(4000, max(2, 0.25 / max(once, 1e-5))))

    def rates(take: Take, count: int) -> tuple[float, float]:
        cpu, clock = seconds(take, [draw.integers(0, rows.n, BATCH) for _ in range(count)])
        return count * BATCH / cpu, count * BATCH / clock

    n_mine, n_theirs = batches_of(mine), batches_of(theirs)
    runs = [(rates(mine, n_mine), rates(theirs, n_theirs)) for _ in range(rounds)]
    return {
        "work": rows.name,
        "rival": rival.name,
        "ours_rows_s": statistics.median(a[0] for a, _ in runs),
        "theirs_rows_s": statistics.median(b[0] for _, b in runs),
        "ratio_cpu": statistics.median(a[0] / b[0] for a, b in runs),
        "ratio_clock": statistics.median(a[1] / b[1] for a, b in runs),
        "ours_bar_rows_s": BARS.get(rows.name),
        "bar": rival.bar,
    }


def epoch(rounds: int, scale: float, folder: Path) -> Found:
    """A globally shuffled epoch of 3 GB in rows of 1 KiB to numpy; the same unshuffled."""
    rows = fixed_rows("epoch", int(2_900_000 * scale), 1024)
    ours(rows, str(folder / "epoch"))
    ds = open_dataset(str(folder / "epoch"))

    def run(shuffle: Any, prefetch: int) -> tuple[float, float]:
        loader = ds.loader(1024, shuffle=shuffle, prefetch=prefetch, columns=["id", "payload"])
        cpu, clock = time.process_time(), time.perf_counter()
        seen = sum(len(batch["id"]) for batch in loader)
        return seen / (time.process_time() - cpu), seen / (time.perf_counter() - clock)

    first = run("global", 0)
    runs = [(run("global", 0), run(False, 0), run("global", 2)) for _ in range(rounds)]
    shutil.rmtree(folder / "epoch")
    return {
        "work": "epoch of 1 KiB rows, global",
        "rows_s_cpu": statistics.median(a[0] for a, _, _ in runs),
        "rows_s_clock": statistics.median(a[1] for a, _, _ in runs),
        "rows_s_clock_prefetch": statistics.median(c[1] for _, _, c in runs),
        "first_epoch_that_checks_rows_s": first[0],
        "of_unshuffled": statistics.median(a[0] / b[0] for a, b, _ in runs),
        "bar_rows_s": 1.5e6,
    }


def writing(rounds: int, scale: float, folder: Path) -> Found:
    """The same rows of a Parquet file as a training set, as Parquet by us, and by DuckDB."""
    import duckdb
    import pyarrow.parquet as pq

    rows = fixed_rows("write", int(1_000_000 * scale), 1024)
    given = str(folder / "given.parquet")
    with pq.ParquetWriter(given, rows.schema, compression="none") as file:
        for batch in rows.batches():
            file.write_batch(batch)

    def by_duckdb(path: str) -> None:
        to = f"'{path}' (FORMAT parquet, COMPRESSION uncompressed)"
        with duckdb.connect() as connection:
            connection.sql(f"COPY (SELECT * FROM '{given}') TO {to}")

    with millpond.init(memory_limit="1GB") as session:
        frame = session.read_parquet(given)
        ways: dict[str, Callable[[str], Any]] = {
            "dataset": frame.write_dataset,
            "parquet": lambda path: frame.write_parquet(path, compression="uncompressed"),
            "duckdb": by_duckdb,
        }
        spent: dict[str, list[float]] = {name: [] for name in ways}
        for i in range(rounds):
            for name, write in ways.items():
                out = folder / f"{name}{i}"
                began = time.perf_counter()
                write(str(out))
                spent[name].append(time.perf_counter() - began)
                shutil.rmtree(out) if out.is_dir() else out.unlink()
    size = rows.n * 1032 / 1e6
    return {
        "work": f"{size:,.0f} MB written",
        **{f"{name}_MB_s": size / statistics.median(took) for name, took in spent.items()},
    }


def ray_epoch(scale: float, folder: Path) -> Found:
    """Ray Data on the same rows as Parquet, mixed inside a buffer only: less than uniform."""
    import pyarrow.parquet as pq
    import ray

    rows = fixed_rows("ray", int(300_000 * scale), 1024)
    with pq.ParquetWriter(folder / "rows.parquet", rows.schema, compression="none") as file:
        for batch in rows.batches():
            file.write_batch(batch)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        data = ray.data.read_parquet(str(folder / "rows.parquet"))
        data.take(1)  # Its workers have started.
        began = time.perf_counter()
        seen = 0
        for batch in data.iter_batches(batch_size=1024, local_shuffle_buffer_size=16_384):
            seen += len(batch["id"])
        took = time.perf_counter() - began
    finally:
        ray.shutdown()
    return {"work": "epoch of 1 KiB rows, Ray Data, buffer of 16,384", "rows_s_clock": seen / took}


def order_speed(rounds: int) -> Found:
    feistel = Feistel.of(10**12, 7)
    at = np.arange(8192) + 10**11
    runs = []
    for _ in range(rounds):
        began = time.process_time()
        for _ in range(64):
            feistel.rows(at)
        runs.append(64 * 8192 / (time.process_time() - began))
    return {"work": "order of 10^12 rows", "positions_s": statistics.median(runs), "bar": 30e6}


def packing_speed(rounds: int) -> Found:
    draw = np.random.default_rng(0)
    lengths = np.minimum(draw.lognormal(np.log(600), 1.6, 20_000), 1e6).astype(np.int64)
    runs, fill = [], 0.0
    for _ in range(rounds):
        began = time.process_time()
        fill = plan_packs(lengths, 4096).fill
        runs.append((time.process_time() - began) / lengths.size * 1e6)
    return {
        "work": "packing plan",
        "microseconds_a_document": statistics.median(runs),
        "fill": fill,
        "bar": 1.0,
    }


def restore(rounds: int) -> Found:
    """From a state's JSON to the first 8192 rows of a mixture of 64 sources, 10^12 rows in
    all, behind three changes of weights, with nothing of it known to the process yet."""
    draw = np.random.default_rng(1)
    sizes = tuple(int(n) for n in draw.integers(10**9, 3 * 10**10, 64))
    log = tuple(
        (at, whole_weights(draw.random(64).tolist(), "benchmark"))
        for at in (0, 10**9, 5 * 10**10, 7 * 10**11)
    )
    identity = Identity("0" * 32, "global", 3)
    mixed = Mixed(sizes, Order("global", 3), Schedule(log))
    at = Cursor(0, 8 * 10**11, 10**8)
    runs = (Run(0, 0, 0, 64, 128, 0),)
    text = json.dumps(State(identity, at, 5, Receipt(10, 7), runs, log=log).to_dict())

    def once() -> Any:
        found = State.from_dict(json.loads(text), identity)
        again = replace(mixed, schedule=Schedule(found.log), anchor=Place(found.cursor.epoch, 0))
        return again.at(0, np.arange(8192) + found.cursor.position)

    def anew() -> None:
        pattern.cache_clear()
        permutation.cache_clear()

    spent = []
    for _ in range(rounds):
        anew()
        began = time.perf_counter()
        once()
        spent.append((time.perf_counter() - began) * 1e3)
    anew()
    tracemalloc.start()
    once()
    peak = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    return {
        "work": "restore: 10^12 rows, 64 sources, 3 changes of weights",
        "milliseconds": statistics.median(spent),
        "peak_MB": peak,
        "state_bytes": len(text),
        "bar": 50.0,
        "bar_MB": 10.0,
    }


def told(found: Found) -> str:
    if "rival" not in found:
        return in_words(found)
    bar = f"  bar {found['bar']:g}" if found["bar"] else ""
    return (
        f"{found['work']:22} ours {found['ours_rows_s']:12,.0f} rows/s  "
        f"{found['rival']:14} {found['theirs_rows_s']:12,.0f}  "
        f"× {found['ratio_cpu']:.1f} (clock × {found['ratio_clock']:.1f}){bar}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--scale", type=float, default=1.0, help="of the issue's row counts")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=None, help="works, by name")
    parser.add_argument("--rivals", nargs="*", default=None)
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="millpond-bench-"))
    rounds, scale = asked.rounds, asked.scale
    rivals = [r for r in RIVALS if asked.rivals is None or r.name in asked.rivals]
    tables = (
        fixed_rows("256 B", int(1_000_000 * scale), 256),
        fixed_rows("4 KiB", int(1_000_000 * scale), 4096),
        fixed_rows("64 KiB", int(60_000 * scale), 65_536),
        token_rows(int(1_000_000 * scale)),
    )
    works: dict[str, Callable[[], Iterator[Found]]] = {
        rows.name: lambda rows=rows: random_batches(rows, rounds, folder, rivals)
        for rows in tables
    }  # fmt: skip
    works["64 KiB in place"] = lambda: in_place(tables[2], rounds, folder, rivals)
    works["epoch"] = lambda: iter([epoch(rounds, scale, folder)])
    works["write"] = lambda: iter([writing(rounds, scale, folder)])
    works["ray"] = lambda: iter([ray_epoch(scale, folder)])
    works["order"] = lambda: iter([order_speed(rounds)])
    works["packing"] = lambda: iter([packing_speed(rounds)])
    works["restore"] = lambda: iter([restore(rounds)])
    results: list[Found] = []
    try:
        for name, work in works.items():
            if asked.only is not None and name not in asked.only:
                continue
            try:
                for found in work():
                    results.append(found)
                    print(told(found), flush=True)
            except ImportError as error:
                print(f"{name}: left out ({error})", file=sys.stderr)
            shutil.rmtree(folder / f"{name}-ours", ignore_errors=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    keep("loader", results)


if __name__ == "__main__":
    main()
