"""Text → tokens → packs of 4096 → torch, against the way of Hugging Face's own example.

    pip install 'millpond[torch]' bpe-openai gigatoken datasets
    python benchmarks/tokens.py [--megabytes 120] [--rounds 3] [--encoder gigatoken | bpe]

Documents are the sources of the installed Python packages, as Parquet. Ours: a frame maps
batches of them to token lists, writes a training set, and a loader packs whole documents
into shuffled sequences. Theirs: `datasets.map` with the same tokenizer, `group_texts` as in
run_clm.py (which joins everything and cuts it), and torch's DataLoader over shuffled rows.
Both use two processes, the vocabulary cl100k_base and the same encoder: `gigatoken`, which
takes batches, or `bpe`, which takes a document a call and is itself two thirds of all work.
Each side takes tokens as its columns want them: Arrow from gigatoken's arrays here, lists
there. Both end when every batch was looked at. Tokens a second by the clock, and processor
seconds, in turns.
"""

import argparse
import base64
import shutil
import sysconfig
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pairs import compare, in_words, keep, timed

import millpond

PACK, BATCH, PROCESSES = 4096, 8, 2
LONGEST = 500_000


def bpe() -> Any:
    import bpe_openai

    return bpe_openai.get_encoding("cl100k_base")


def gigatoken(ranks: str) -> Any:
    import gigatoken

    return gigatoken.Tokenizer.from_tiktoken(ranks)


def ranks_file(folder: Path) -> str:
    """The vocabulary that bpe-openai ships, as gigatoken reads it."""
    file = folder / "cl100k_base.tiktoken"
    ranks = sorted(bpe()._mergeable_ranks.items(), key=lambda item: item[1])
    file.write_bytes(b"".join(base64.b64encode(word) + b" %d\n" % i for word, i in ranks))
    return str(file)


def corpus(folder: Path, megabytes: int) -> str:
    """Python files of this installation, as one Parquet file of some row groups."""
    texts, size = [], 0
    for root in (sysconfig.get_paths()["purelib"], sysconfig.get_paths()["stdlib"]):
        for path in sorted(Path(root).rglob("*.py")):
            if size >= megabytes * 1_000_000:
                break
            text = path.read_text(errors="ignore")
            # bpe-openai refuses longer ones.
            texts += [text[at : at + LONGEST] for at in range(0, len(text), LONGEST)]
            size += len(text)
    file = str(folder / "text.parquet")
    pq.write_table(pa.table({"text": texts}), file, row_group_size=1024)
    print(f"{len(texts):,} documents, {size / 1e6:.0f} MB of text")
    return file


class Tokenize:
    """Built once in each worker process: an encoder cannot travel."""

    ranks = ""  # Where the vocabulary lies, for gigatoken.

    def __init__(self) -> None:
        self.encoder = gigatoken(self.ranks) if self.ranks else bpe()

    def __call__(self, rows: pa.Table) -> pa.Table:
        texts = rows["text"].to_pylist()
        if not self.ranks:
            tokens = [self.encoder.encode(text) for text in texts]
            return pa.table({"tokens": pa.array(tokens, pa.list_(pa.int32()))})
        found = self.encoder.encode_batch(texts, parallel=False).layout
        values = pa.array(found.content.data).cast(pa.int32())
        offsets = pa.array(found.offsets.data).cast(pa.int32())
        return pa.table({"tokens": pa.ListArray.from_arrays(offsets, values)})


def ours(file: str, folder: Path, ranks: str) -> int:
    path = str(folder / "ours")
    Tokenize.ranks = ranks
    with millpond.init(threads=PROCESSES, progress=False) as sp:
        tokens = sp.read_parquet(file).map_batches(
            Tokenize, batch_size=1024, schema={"tokens": "INTEGER[]"}
        )
        tokens.write_dataset(path)
    loader = millpond.open_dataset(path).loader(
        BATCH, shuffle="global", pack=PACK, tokens="tokens", format="torch"
    )
    seen = sum(int((batch["segment_ids"] > 0).sum()) for batch in loader)
    shutil.rmtree(path)
    return seen


_ENCODERS: dict[str, Any] = {}  # Of this process.


def encode_batch(rows: dict[str, list[Any]], ranks: str) -> dict[str, list[Any]]:
    encoder = _ENCODERS.get(ranks) or _ENCODERS.setdefault(
        ranks, gigatoken(ranks) if ranks else bpe()
    )
    if not ranks:
        return {"input_ids": [encoder.encode(text) for text in rows["text"]]}
    return {"input_ids": encoder.encode_batch_list(rows["text"], parallel=False)}


def group_texts(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """As in transformers' run_clm.py: join all, cut into blocks, drop the rest."""
    joined = [token for tokens in rows["input_ids"] for token in tokens]
    total = len(joined) // PACK * PACK
    return {"input_ids": [joined[i : i + PACK] for i in range(0, total, PACK)]}


def hf(file: str, folder: Path, ranks: str) -> int:
    import datasets
    from torch.utils.data import DataLoader

    datasets.disable_progress_bars()
    cache = str(folder / "hf")
    rows = datasets.load_dataset("parquet", data_files=file, split="train", cache_dir=cache)
    tokens = rows.map(
        encode_batch,
        batched=True,
        remove_columns=["text"],
        num_proc=PROCESSES,
        fn_kwargs={"ranks": ranks},
    )
    blocks = tokens.map(group_texts, batched=True, num_proc=PROCESSES).shuffle(seed=0)
    data = DataLoader(blocks.with_format("torch"), batch_size=BATCH)
    seen = sum(batch["input_ids"].numel() for batch in data)
    shutil.rmtree(cache)
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--megabytes", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--encoder", choices=("gigatoken", "bpe"), default="gigatoken")
    asked = parser.parse_args()
    if (
        find_spec("datasets") is None
        or find_spec(asked.encoder.replace("bpe", "bpe_openai")) is None
    ):
        raise SystemExit("pip install 'millpond[torch]' bpe-openai gigatoken datasets")
    folder = Path(tempfile.mkdtemp(prefix="millpond-tokens-"))
    try:
        file = corpus(folder, asked.megabytes)
        ranks = ranks_file(folder) if asked.encoder == "gigatoken" else ""
        tokens: dict[str, int] = {}

        def counted(name: str, work: Any) -> Any:
            return timed(lambda: tokens.__setitem__(name, work(file, folder, ranks)))

        found = compare("tokens", counted("hf", hf), counted("ours", ours), asked.rounds)
        alone = Tokenize()
        table = pq.read_table(file)
        _, alone_cpu_s = timed(lambda: [alone(part) for part in table.to_batches(1024)])()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    result = {
        "encoder": asked.encoder,
        "ours_tokens_s": tokens["ours"] / found.ours_s,
        "hf_tokens_s": tokens["hf"] / found.theirs_s,
        "ours_cpu_s": found.ours_cpu_s,
        "hf_cpu_s": found.theirs_cpu_s,
        "encoder_alone_cpu_s": alone_cpu_s,
        "times_the_tokens_a_second": 1 / found.ratio,
        "bar": 2.0,
        "ours_tokens": tokens["ours"],
        "hf_tokens": tokens["hf"],
    }
    print(in_words(result))
    keep("tokens", result)


if __name__ == "__main__":
    main()
