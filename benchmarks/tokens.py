"""Text → tokens → packs of 4096 → torch, against the way of Hugging Face's own example.

    pip install 'millpond[torch]' bpe-openai datasets
    python benchmarks/tokens.py [--megabytes 40] [--rounds 3]

Documents are the sources of the installed Python packages, as Parquet. Ours: a frame maps
batches of them to token lists, writes a training set, and a loader packs whole documents
into shuffled sequences. Theirs: `datasets.map` with the same tokenizer, `group_texts` as in
run_clm.py (which joins everything and cuts it), and torch's DataLoader over shuffled rows.
Both use two processes and the same encoder, one document a call; both end when every batch
was looked at. Tokens a second by the clock, and processor seconds, in turns.
"""

import argparse
import shutil
import sysconfig
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bpe_openai
import pyarrow as pa
import pyarrow.parquet as pq
from pairs import compare, in_words, keep, timed

import millpond

PACK, BATCH, PROCESSES = 4096, 8, 2


def encoder() -> Callable[[str], list[int]]:
    encode: Callable[[str], list[int]] = bpe_openai.get_encoding("cl100k_base").encode
    return encode


def corpus(folder: Path, megabytes: int) -> str:
    """Python files of this installation, as one Parquet file of some row groups."""
    texts, size = [], 0
    for root in (sysconfig.get_paths()["purelib"], sysconfig.get_paths()["stdlib"]):
        for path in sorted(Path(root).rglob("*.py")):
            text = path.read_text(errors="ignore")
            texts.append(text)
            size += len(text)
            if size >= megabytes * 1_000_000:
                break
    file = str(folder / "text.parquet")
    pq.write_table(pa.table({"text": texts}), file, row_group_size=256)
    print(f"{len(texts):,} documents, {size / 1e6:.0f} MB of text")
    return file


class Tokenize:
    """Built once in each worker process: the encoder cannot travel."""

    def __init__(self) -> None:
        self.encode = encoder()

    def __call__(self, rows: pa.Table) -> pa.Table:
        tokens = [self.encode(text) for text in rows["text"].to_pylist()]
        return pa.table({"tokens": pa.array(tokens, pa.list_(pa.int32()))})


def ours(file: str, folder: Path) -> int:
    path = str(folder / "ours")
    with millpond.init(threads=PROCESSES, progress=False) as sp:
        tokens = sp.read_parquet(file).map_batches(
            Tokenize, batch_size=256, schema={"tokens": "INTEGER[]"}
        )
        tokens.write_dataset(path)
    loader = millpond.open_dataset(path).loader(
        BATCH, shuffle="global", pack=PACK, tokens="tokens", format="torch"
    )
    seen = sum(int((batch["segment_ids"] > 0).sum()) for batch in loader)
    shutil.rmtree(path)
    return seen


def encode_batch(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
    encode = encoder()
    return {"input_ids": [encode(text) for text in rows["text"]]}


def group_texts(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """As in transformers' run_clm.py: join all, cut into blocks, drop the rest."""
    joined = [token for tokens in rows["input_ids"] for token in tokens]
    total = len(joined) // PACK * PACK
    return {"input_ids": [joined[i : i + PACK] for i in range(0, total, PACK)]}


def hf(file: str, folder: Path) -> int:
    import datasets
    from torch.utils.data import DataLoader

    datasets.disable_progress_bars()
    cache = str(folder / "hf")
    rows = datasets.load_dataset("parquet", data_files=file, split="train", cache_dir=cache)
    tokens = rows.map(encode_batch, batched=True, remove_columns=["text"], num_proc=PROCESSES)
    blocks = tokens.map(group_texts, batched=True, num_proc=PROCESSES).shuffle(seed=0)
    data = DataLoader(blocks.with_format("torch"), batch_size=BATCH)
    seen = sum(batch["input_ids"].numel() for batch in data)
    shutil.rmtree(cache)
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--megabytes", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="millpond-tokens-"))
    try:
        file = corpus(folder, asked.megabytes)
        texts = pq.read_table(file)["text"].to_pylist()
        tokens: dict[str, int] = {}

        def counted(name: str, work: Callable[[str, Path], int]) -> Callable[[], object]:
            return lambda: tokens.__setitem__(name, work(file, folder))

        found = compare(
            "tokens", timed(counted("hf", hf)), timed(counted("ours", ours)), asked.rounds
        )
        _, floor_cpu_s = timed(lambda: list(map(encoder(), texts)))()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    result = {
        "ours_tokens_s": tokens["ours"] / found.ours_s,
        "hf_tokens_s": tokens["hf"] / found.theirs_s,
        "ours_cpu_s": found.ours_cpu_s,
        "hf_cpu_s": found.theirs_cpu_s,
        "encoder_alone_cpu_s": floor_cpu_s,
        "times_the_tokens_a_second": 1 / found.ratio,
        "bar": 2.0,
        "ours_tokens": tokens["ours"],
        "hf_tokens": tokens["hf"],
    }
    print(in_words(result))
    keep("tokens", result)


if __name__ == "__main__":
    main()
