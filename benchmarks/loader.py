"""The loader against what people use: random batches, orders, packing, restore.

    python benchmarks/loader.py [--megabytes 100] [--rounds 5]

Rivals that are installed take part (pylance, array-record, datasets, mosaicml-streaming
with --no-deps). Ours and a rival run in turns on the same rows, warm; the ratio is the
median over the rounds, by processor time and by the clock. JSON goes to results/.
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from millpond.loader.order import Feistel
from millpond.loader.packing import plan_packs
from millpond.loader.reader import open_dataset
from millpond.loader.write import write_dataset

Ids = npt.NDArray[np.int64]
Take = Callable[[Ids], Any]
BATCH = 512


@dataclass(frozen=True)
class Rival:
    """How another library writes the rows and takes a batch of them."""

    name: str
    open: Callable[[pa.Table, str], Take]


def ours(table: pa.Table, path: str) -> Take:
    write_dataset(table, path)
    rows = open_dataset(path).rows
    return lambda ids: rows.take(ids, ["payload"])


def arrow_file(table: pa.Table, path: str) -> Take:
    """The Arrow IPC file as people write it, and `Table.take` of its chunks."""
    with pa.ipc.new_file(path, table.schema) as file:
        # Batches of a megabyte: what writers that flush as they go leave behind.
        file.write_table(table, max_chunksize=max(16, table.num_rows * 1_000_000 // table.nbytes))
    whole = pa.ipc.open_file(pa.memory_map(path)).read_all().select(["payload"])
    return lambda ids: whole.take(ids)


def lance(table: pa.Table, path: str) -> Take:
    import lance

    dataset = lance.write_dataset(table, path)
    return lambda ids: dataset.take(ids, columns=["payload"])


def array_record(table: pa.Table, path: str) -> Take:
    from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

    writer = ArrayRecordWriter(path, "group_size:1,uncompressed")
    for value in payloads(table):
        writer.write(value)
    writer.close()
    reader = ArrayRecordReader(path, "readahead_buffer_size:0")
    return lambda ids: reader.read(ids.tolist())


def hf_datasets(table: pa.Table, path: str) -> Take:
    import datasets

    with pa.ipc.new_stream(path, table.schema) as file:
        file.write_table(table, max_chunksize=1000)
    rows = datasets.Dataset.from_file(path).select_columns(["payload"]).with_format("arrow")
    # Joined, because otherwise a batch is a list of slices and no byte of it was read.
    return lambda ids: rows[ids]["payload"].combine_chunks()


def mds(table: pa.Table, path: str) -> Take:
    import streaming

    with streaming.MDSWriter(out=path, columns={"payload": "bytes"}) as writer:
        for value in payloads(table):
            writer.write({"payload": value})
    rows = streaming.StreamingDataset(local=path, batch_size=1)
    return lambda ids: [rows[i] for i in ids.tolist()]


def payloads(table: pa.Table) -> Iterator[bytes]:
    for value in table["payload"]:
        fixed = isinstance(value, pa.FixedSizeBinaryScalar)
        yield value.as_py() if fixed else np.asarray(value.values).tobytes()


RIVALS = (
    Rival("arrow file", arrow_file),
    Rival("lance", lance),
    Rival("array-record", array_record),
    Rival("hf datasets", hf_datasets),
    Rival("mds", mds),
)
# Bars of the issue: at least so many times the rival's rows a second.
BARS = {"lance": 8.0, "array-record": 8.0, "mds": 15.0, "hf datasets": 1.5}


def fixed_rows(width: int, megabytes: int) -> pa.Table:
    n = max(2 * BATCH, megabytes * 1_000_000 // width)
    values = np.random.default_rng(0).bytes(n * width)
    payload = pa.Array.from_buffers(pa.binary(width), n, [None, pa.py_buffer(values)])
    return pa.table({"id": np.arange(n), "payload": payload})


def token_rows(megabytes: int) -> pa.Table:
    draw = np.random.default_rng(0)
    lengths = np.minimum(4096, draw.lognormal(np.log(400), 0.7, megabytes * 500).astype(np.int64))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    tokens = draw.integers(0, 50_000, int(offsets[-1]), dtype=np.int32)
    return pa.table(
        {"id": np.arange(lengths.size), "payload": pa.ListArray.from_arrays(offsets, tokens)}
    )


def seconds(take: Take, batches: list[Ids]) -> tuple[float, float]:
    """Processor and clock seconds for all batches."""
    cpu, clock = time.process_time(), time.perf_counter()
    for ids in batches:
        take(ids)
    return time.process_time() - cpu, time.perf_counter() - clock


def random_batches(
    work: str, table: pa.Table, rounds: int, folder: Path
) -> Iterator[dict[str, Any]]:
    """Batches of 512 uniform rows, ours and each rival in turns."""
    mine = ours(table, str(folder / f"{work}-ours"))
    draw = np.random.default_rng(1)
    n = table.num_rows
    whole = draw.permutation(n)
    # Once over all rows first: mapped, in the page cache, and our checksums checked.
    for at in range(0, n, 8192):
        mine(whole[at : at + 8192])
    for rival in RIVALS:
        try:
            theirs = rival.open(table, str(folder / f"{work}-{rival.name.replace(' ', '-')}"))
            theirs(whole[:BATCH])
        except Exception as error:  # The end of a rival, not of the benchmark.
            print(f"{rival.name}: left out ({type(error).__name__}: {error})", file=sys.stderr)
            continue
        # A rival is given as many batches as it does in about a quarter of a second.
        once = max(seconds(theirs, [draw.integers(0, n, BATCH)])[1], 1e-5)
        count = int(min(200, max(2, 0.25 / once)))
        runs = []
        for _ in range(rounds):
            batches = [draw.integers(0, n, BATCH) for _ in range(count)]
            runs.append((seconds(mine, batches), seconds(theirs, batches)))
        rows = count * BATCH
        yield {
            "work": work,
            "rival": rival.name,
            "ours_rows_s": rows / statistics.median(a[0] for a, _ in runs),
            "theirs_rows_s": rows / statistics.median(b[0] for _, b in runs),
            "ratio_cpu": statistics.median(b[0] / a[0] for a, b in runs),
            "ratio_clock": statistics.median(b[1] / a[1] for a, b in runs),
            "bar": BARS.get(rival.name),
        }


def epoch(rounds: int, megabytes: int, folder: Path) -> dict[str, Any]:
    """A globally shuffled epoch of 1 KiB rows, against the same code unshuffled."""
    table = fixed_rows(1024, megabytes)
    path = str(folder / "epoch")
    write_dataset(table, path)
    ds = open_dataset(path)

    def run(shuffle: Any) -> float:
        loader = ds.loader(1024, shuffle=shuffle, prefetch=0)
        began = time.process_time()
        for _ in loader:
            pass
        return len(ds) / (time.process_time() - began)

    first = run("global")
    runs = [(run("global"), run(False)) for _ in range(rounds)]
    return {
        "work": "epoch of 1 KiB rows, global",
        "rows_s": statistics.median(a for a, _ in runs),
        "first_epoch_rows_s": first,
        "of_unshuffled": statistics.median(a / b for a, b in runs),
    }


def order_speed(rounds: int) -> dict[str, Any]:
    feistel = Feistel.of(10**12, 7)
    at = np.arange(8192) + 10**11
    runs = []
    for _ in range(rounds):
        began = time.process_time()
        for _ in range(64):
            feistel.rows(at)
        runs.append(64 * 8192 / (time.process_time() - began))
    return {"work": "order of 10^12 rows", "positions_s": statistics.median(runs), "bar": 30e6}


def packing_speed(rounds: int) -> dict[str, Any]:
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="millpond-bench-"))
    results: list[dict[str, Any]] = []
    try:
        works = [
            ("256 B", fixed_rows(256, asked.megabytes)),
            ("4 KiB", fixed_rows(4096, asked.megabytes)),
            ("64 KiB", fixed_rows(65_536, asked.megabytes)),
            ("tokens", token_rows(asked.megabytes)),
        ]
        for work, table in works:
            for found in random_batches(work, table, asked.rounds, folder):
                results.append(found)
                bar = f"  bar {found['bar']}" if found["bar"] else ""
                print(
                    f"{work:8} ours {found['ours_rows_s']:12,.0f} rows/s  "
                    f"{found['rival']:14} {found['theirs_rows_s']:12,.0f}  "
                    f"× {found['ratio_cpu']:.1f} (clock × {found['ratio_clock']:.1f}){bar}"
                )
        for more in (
            epoch(asked.rounds, asked.megabytes, folder),
            order_speed(asked.rounds),
            packing_speed(asked.rounds),
        ):
            results.append(more)
            print(
                ", ".join(f"{k} {v:,.4g}" if not isinstance(v, str) else v for k, v in more.items())
            )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    out = Path(__file__).parent / "results"
    out.mkdir(exist_ok=True)
    (out / "loader.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
