"""An index that was cut, damaged or forged at any place: one error, or rows; never a crash."""

import base64
import json
import random
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from millpond.errors import FileUnreadable, MillpondError
from millpond.formats.shard_index import _checksum, _pack
from millpond.loader.reader import open_dataset
from millpond.loader.write import write_dataset
from tests.loader.test_reader import some_of_everything

Body = dict[str, Any]
ODD = [None, 0, -1, 1.5, "x", [], {}, 2**40, 2**70, True, "../x", "/etc/passwd", "000001.arrow"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("set") / "everything"
    write_dataset(some_of_everything(), str(path), rows_per_shard=37, batch_rows=10)
    return path


def forged(folder: Path, change: Callable[[Body], None]) -> str:
    """The set, with a changed index whose checksum fits."""
    body = json.loads((folder / "dataset.json").read_text())
    body.pop("checksum")
    change(body)
    again = folder.parent / "forged"
    again.mkdir(exist_ok=True)
    for shard in folder.glob("*.arrow"):
        link = again / shard.name
        if not link.exists():
            link.hardlink_to(shard)
    (again / "dataset.json").write_text(json.dumps({**body, "checksum": _checksum(body)}))
    return str(again)


def use(path: str, verify: Any) -> None:
    ds = open_dataset(path, verify=verify)
    ds[:]
    for format in ("numpy", "views", "arrow"):
        list(ds.loader(7, shuffle="global", format=format))


def words_of(body: Body) -> np.ndarray:
    return np.frombuffer(zlib.decompress(base64.b64decode(body["layout"])), "<u8").copy()


def other_words(body: Body, draw: random.Random) -> None:
    words = words_of(body)
    for _ in range(draw.randrange(1, 4)):
        at = draw.randrange(words.size)
        near, else_ = int(words[at]), int(words[draw.randrange(words.size)])
        odd = [0, 1, 7, 8, near + 8, max(0, near - 8), else_, 10**5, 2**32, 2**63, 2**64 - 1]
        words[at] = draw.choice(odd)
    body["layout"] = _pack(words.tobytes())


def other_field(body: Body, draw: random.Random) -> None:
    of = body if draw.random() < 0.5 else draw.choice(body["shards"])
    of[draw.choice(list(of))] = draw.choice(ODD)


@pytest.mark.slow
@pytest.mark.parametrize("change", [other_words, other_field])
@pytest.mark.parametrize("seed", range(4))
def test_a_forged_index_is_an_error_or_rows(
    folder: Path, change: Callable[[Body, random.Random], None], seed: int
) -> None:
    draw, refused = random.Random(seed), 0
    for _ in range(25):
        path = forged(folder, lambda body: change(body, draw))
        try:
            use(path, draw.choice(["first", "off"]))
        except MillpondError:
            refused += 1
    assert refused > 5


def test_an_index_cut_or_flipped_anywhere_is_refused(folder: Path, tmp_path: Path) -> None:
    whole, draw = (folder / "dataset.json").read_bytes(), random.Random(1)
    for at in [0, 1, len(whole) - 3, *(draw.randrange(len(whole) - 1) for _ in range(60))]:
        flipped = bytearray(whole)
        flipped[at] ^= 1 << draw.randrange(8)
        for damaged in (whole[:at], bytes(flipped)):
            try:
                same = json.loads(damaged) == json.loads(whole)
            except ValueError:
                same = False
            (tmp_path / "dataset.json").write_bytes(damaged)
            if not same:  # A space that became another says nothing else.
                with pytest.raises(FileUnreadable):
                    open_dataset(str(tmp_path))


def test_keys_of_maps_that_are_null_are_refused_before_arrow_sees_them(folder: Path) -> None:
    """Arrow ends the process where a map has such keys."""
    rows = open_dataset(str(folder)).rows
    (entries,) = rows.layout.columns["map"].children  # type: ignore[attr-defined]
    slots = rows.layout.address.shape[0]  # type: ignore[attr-defined]
    for slot in (entries.valid, entries.children[0].valid):

        def change(body: Body, slot: int = slot) -> None:
            words = words_of(body).reshape(-1, 1 + 3 * slots)
            words[:, 2 + 3 * slot] = 8
            body["layout"] = _pack(words.tobytes())

        with pytest.raises(FileUnreadable, match="'map' has keys of maps that are null"):
            open_dataset(forged(folder, change))
