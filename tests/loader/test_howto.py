"""The examples of the how-to page on training run, one after the other."""

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import millpond

PAGE = Path(__file__).parents[2] / "docs/how-to/training.md"
N = 64

pytestmark = pytest.mark.slow


def corpus(n: int) -> pa.Table:
    return pa.table(
        {
            "tokens": pa.array([[i] * (i % 9 + 1) for i in range(n)], pa.list_(pa.int32())),
            "label": list(range(n)),
            "lang": ["en" if i % 3 else "de" for i in range(n)],
            "quality": [i / n for i in range(n)],
        }
    )


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchdata.stateful_dataloader")
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 4
    monkeypatch.chdir(tmp_path)
    Path("raw").mkdir()
    pq.write_table(corpus(N), "raw/a.parquet")
    for name in ("web", "code"):
        with millpond.init(progress=False) as sp:
            sp.from_arrow(corpus(N)).write_dataset(name)
    steps: list[list[int]] = []
    known: dict[str, Any] = {
        "rank": 0,
        "world": 1,
        "other_world": 2,
        "step": lambda tokens, labels: steps.append(labels.tolist()),
        "web": millpond.open_dataset("web"),
        "code": millpond.open_dataset("code"),
    }

    exec(blocks[0], known)
    kept = [i for i in range(N) if i / N > 0.5]
    assert [sorted(labels) for labels in steps] == [kept] * 3

    known["loader"] = known["ds"].loader(8, shuffle="global", seed=7)
    first = next(iter(known["loader"]))["label"].tolist()
    exec(blocks[1], known)  # It goes on with another world, as rank 0 of it.
    rest = known["ds"].loader(512, shuffle="global", seed=7, rank=1, world=2)
    rest.load_state_dict(known["state"])
    after = [i for loader in (known["loader"], rest) for b in loader for i in b["label"].tolist()]
    assert sorted(first + after) == kept

    known["loader"] = known["ds"].loader(8, shuffle="global", seed=7, columns=["label"])
    exec(blocks[2], known)
    assert sorted(i for batch in known["data"] for i in batch["label"].tolist()) == kept

    exec(blocks[3], known)
    assert next(iter(known["loader"]))["tokens"].shape[1] == 4096
