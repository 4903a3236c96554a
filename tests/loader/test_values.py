"""Values that real tables hold: they come back from a training set as the frame had them."""

import datetime
import subprocess
import sys
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import millpond
from millpond.errors import NotInPython, OptionError
from millpond.loader.columns import to_arrow
from millpond.loader.parquet import ParquetRows
from millpond.loader.reader import Dataset, open_dataset
from millpond.loader.write import write_dataset
from millpond.storage import FileInfo, LocalStorage, Range
from millpond.storage.looks import Look, Looks

N = 50
DAY = datetime.datetime(2024, 2, 29, 23, 59, 59, 999_999)


def column(values: Any, kind: pa.DataType) -> pa.Array:
    return pa.array([values(i) for i in range(N)], kind)


TABLE = pa.table({
    "größe ✓": column(lambda i: i if i % 7 else None, pa.int32()),
    'we"ird, name': column(lambda i: f"ü{i}" if i % 5 else None, pa.string()),
    "image": column(lambda i: bytes([i]) * (i * 37) if i % 4 else None, pa.binary()),
    "nested": column(lambda i: [[i, i + 1], []] if i % 3 else None, pa.list_(pa.list_(pa.int64()))),
    "struct": column(
        lambda i: {"a": i, "b": {"c": [float(i)], "d": "x" if i % 2 else None}},
        pa.struct(
            {"a": pa.int64(), "b": pa.struct({"c": pa.list_(pa.float64()), "d": pa.string()})}
        ),
    ),
    "flag": column(lambda i: bool(i % 2) if i % 9 else None, pa.bool_()),
    "price": column(lambda i: Decimal(i) / 4, pa.decimal128(12, 2)),
    "huge": column(lambda i: Decimal(i) ** 5, pa.decimal128(38, 0)),
    "at": column(lambda i: DAY + datetime.timedelta(microseconds=i), pa.timestamp("us")),
    "at_utc": column(lambda i: DAY + datetime.timedelta(microseconds=i), pa.timestamp("us", "UTC")),
    "day": column(lambda i: DAY.date() + datetime.timedelta(days=i), pa.date32()),
    "embedding": column(lambda i: [float(i)] * 4 if i % 6 else None, pa.list_(pa.float32(), 4)),
    "empty": column(lambda i: [], pa.list_(pa.int32())),
    "tokens": column(lambda i: [i] * (i % 4) if i % 8 else None, pa.list_(pa.int32())),
    "holes": column(lambda i: [i, None], pa.list_(pa.int32())),
    "map": column(lambda i: [("k", i)], pa.map_(pa.string(), pa.int64())),
    "nothing": pa.nulls(N, pa.int32()),
    "id": column(lambda i: i, pa.uint8()),
})  # fmt: skip


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    path = str(tmp_path_factory.mktemp("values") / "set")
    with millpond.init() as sp:
        sp.from_arrow(TABLE).random_shuffle(seed=1).write_dataset(path, rows_per_shard=20)
    return millpond.open_dataset(path)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in TABLE.column_names if name != "id"])
def test_each_kind_of_value_survives_a_frame_and_a_shuffle(written: Dataset, name: str) -> None:
    expected = {row["id"]: row[name] for row in TABLE.to_pylist()}
    batches = list(
        written.loader(7, shuffle="global", columns=["id", name], format="arrow", prefetch=0)
    )
    found = {row["id"]: row[name] for batch in batches for row in batch.to_pylist()}
    assert found == expected
    for batch in written.loader(7, shuffle="global", columns=["id", name], prefetch=0):
        assert len(batch[name]) == len(batch["id"])


@pytest.mark.slow
def test_names_of_any_letters_stand_in_filters(written: Dataset) -> None:
    words = '"größe ✓" > 10 AND "we""ird, name" IS NOT NULL'
    kept = [int(i) for batch in written.loader(9, filter=words) for i in batch["id"]]
    assert sorted(kept) == [i for i in range(11, N) if i % 7 and i % 5]


def test_half_floats_are_a_view(tmp_path: Path) -> None:
    values = np.arange(N).astype(np.float16)
    write_dataset(pa.table({"x": values}), str(tmp_path / "half"))
    batch = next(iter(open_dataset(str(tmp_path / "half")).loader(N, prefetch=0)))
    assert batch["x"].dtype == np.float16
    assert np.array_equal(batch["x"], values)


LONG = [[d * 1000 + k for k in range(n)] for d, n in enumerate([3, 500, 0, 16, 333, 1, 40])]


def unpacked(loader: Any) -> dict[int, list[int]]:
    """The tokens of each document, in order: from all of its pieces."""
    pieces: dict[int, dict[int, int]] = {}
    for batch in loader:
        kept = batch["segment_ids"] > 0
        for token, position in zip(batch["tokens"][kept], batch["positions"][kept], strict=True):
            pieces.setdefault(int(token) // 1000, {})[int(position)] = int(token)
    return {d: [found[k] for k in sorted(found)] for d, found in pieces.items()}


def of_documents(kind: str, folder: Path) -> str:
    rows = pa.table({"tokens": pa.array([*LONG, None], pa.list_(pa.int32()))})
    if kind == "parquet":
        folder.mkdir()
        pq.write_table(rows, folder / "rows.parquet", row_group_size=3)
    else:
        write_dataset(rows, str(folder), rows_per_shard=3)
    return str(folder)


BIG = 2**53 + 1  # The first whole number that a float64 cannot hold.
NULLS = pa.table({
    "number": pa.array([BIG, None, 3]),
    "flag": pa.array([True, None, False]),
    "day": pa.array([1, None, 3], pa.date32()),
    "at": pa.array([1, None, 3], pa.timestamp("us")),
    "list": pa.array([[BIG, None], None, []], pa.list_(pa.int64())),
    "pair": pa.array([[BIG, None], None, [1, 2]], pa.list_(pa.int64(), 2)),
    "struct": pa.array([{"a": BIG}, None, {"a": None}]),
    "deep": pa.array([[[BIG, None]], None, []], pa.list_(pa.list_(pa.int64()))),
})  # fmt: skip


def opened(kind: str, table: pa.Table, folder: Path) -> Dataset:
    if kind == "parquet":
        folder.mkdir()
        pq.write_table(table, folder / "rows.parquet")
    else:
        write_dataset(table, str(folder))
    return open_dataset(str(folder))


@pytest.mark.parametrize("kind", ["shards", "parquet"])
def test_a_null_masks_itself_and_changes_no_other_value(tmp_path: Path, kind: str) -> None:
    batch = opened(kind, NULLS, tmp_path / "set").take([0, 1, 2])
    for name in ("number", "flag", "day", "at", "pair"):
        want = [
            [None, None] if name == "pair" and x is None else x for x in NULLS[name].to_pylist()
        ]
        assert isinstance(batch[name], np.ma.MaskedArray), name
        assert batch[name].tolist() == want, name
    assert [row.tolist() for row in batch["list"]] == [[BIG, None], [], []]
    assert batch["struct"].tolist() == [{"a": BIG}, None, {"a": None}]
    assert batch["deep"].tolist() == [[[BIG, None]], None, []]


@pytest.mark.parametrize("kind", ["shards", "parquet"])
@pytest.mark.parametrize("name", ["number", "flag", "day", "at", "list", "pair"])
def test_no_null_becomes_a_number_of_a_tensor(tmp_path: Path, kind: str, name: str) -> None:
    pytest.importorskip("torch")
    ds = opened(kind, NULLS, tmp_path / "set")
    with pytest.raises(millpond.MillpondError, match=f"column '{name}' has nulls"):
        ds.take([0, 1, 2], [name], format="torch")


@pytest.mark.parametrize("kind", ["shards", "parquet"])
@pytest.mark.parametrize("pack", [2, 64])
def test_a_null_token_is_not_packed_as_a_number(tmp_path: Path, kind: str, pack: int) -> None:
    table = pa.table({"tokens": pa.array([[1, 2, 3], [4, None, 6]], pa.list_(pa.int32()))})
    loader = opened(kind, table, tmp_path / "set").loader(1, pack=pack, tokens="tokens")
    with pytest.raises(millpond.MillpondError, match="elements that are NULL"):
        list(loader)


@pytest.mark.parametrize("plan", ["select", "pack"])
def test_a_damaged_plan_is_made_again(tmp_path: Path, plan: str) -> None:
    path = of_documents("shards", tmp_path / "documents")
    how: dict[str, Any] = {"pack": 16, "tokens": "tokens"}
    if plan == "select":
        how = {"filter": "len(tokens) > 3"}

    def delivered() -> list[Any]:
        loader = open_dataset(path).loader(1, shuffle="global", **how)
        return [np.asarray(batch["tokens"][0]).tolist() for batch in loader]

    want = delivered()
    [kept] = Path(path, ".millpond").glob(f"{plan}-*")
    whole = kept.read_bytes()
    for at in range(0, len(whole), 7):
        kept.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert delivered() == want, at
        assert kept.read_bytes() == whole


@pytest.mark.parametrize("kind", ["shards", "parquet"])
@pytest.mark.parametrize("shuffle", [False, "global"])
def test_documents_longer_than_packs_come_back_whole(
    tmp_path: Path, kind: str, shuffle: Any
) -> None:
    ds = open_dataset(of_documents(kind, tmp_path / "documents"))
    for _ in range(2):  # The second epoch reads pieces alone, of what was checked before.
        loader = ds.loader(2, pack=16, tokens="tokens", shuffle=shuffle, prefetch=0)
        assert unpacked(loader) == {d: tokens for d, tokens in enumerate(LONG) if tokens}


def test_pieces_of_a_damaged_document_are_refused(tmp_path: Path) -> None:
    path = of_documents("shards", tmp_path / "documents")
    shard = Path(path, "000000.arrow")
    data = bytearray(shard.read_bytes())
    at = data.index(np.arange(1400, 1410, dtype="<i4").tobytes())
    data[at] ^= 1
    shard.write_bytes(data)
    loader = open_dataset(path).loader(1, pack=16, tokens="tokens", prefetch=0)
    with pytest.raises(millpond.MillpondError, match="checksum"):
        list(loader)


class Far(LocalStorage):
    """A storage whose files no library may open by their paths; it counts what it reads."""

    sent = 0

    def __init__(self) -> None:
        self.looks = Looks(self.peek, self.read_same)  # type: ignore[assignment]

    def local_path(self, path: str) -> None:
        return None

    def peek(self, path: str, offset: int, length: int) -> Look:
        info = self.stat(path)
        assert info is not None
        data = self.read_many([Range(path, offset, min(length, info.size_bytes - offset))])[0]
        return Look(info, offset, data)

    def read_same(self, info: FileInfo, offset: int, length: int) -> memoryview:
        return self.read_many([Range(info.path, offset, length)])[0]

    def read_many(self, ranges: Sequence[Range]) -> list[memoryview]:
        found = super().read_many(ranges)
        self.sent += sum(map(len, found))
        return found


def test_remote_parquet_is_read_by_its_footer_and_row_groups(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 2**62, (2, 40_000))
    rows = pa.table({"id": np.arange(40_000), "a": noise[0], "b": noise[1]})
    pq.write_table(rows, tmp_path / "rows.parquet", row_group_size=4000, compression="none")
    size, far = (tmp_path / "rows.parquet").stat().st_size, Far()
    source = ParquetRows(str(tmp_path), far, list(far.list(str(tmp_path))))
    taken = source.take(np.array([4001, 7999]), ["id"])["id"]
    assert to_arrow(taken).to_pylist() == [4001, 7999]
    assert 0 < far.sent < size / 4


@pytest.mark.parametrize("inside", [False, True])
def test_wide_vectors_of_which_some_or_whose_elements_are_null(
    tmp_path: Path, inside: bool
) -> None:
    vectors = [None if i % 3 == 1 else [float(i)] * 80 for i in range(30)]
    if inside:
        vectors[6] = [None] + [1.0] * 79
    table = pa.table({"v": pa.array(vectors, pa.list_(pa.float32(), 80))})
    write_dataset(table, str(tmp_path / "set"), rows_per_shard=20, batch_rows=8)
    ds = open_dataset(str(tmp_path / "set"))
    asked = [29, 6, 1, 0, 6]
    assert ds[asked].equals(table.take(asked))
    arrays = ds.take(asked)["v"]
    assert arrays[0].tolist() == vectors[29]
    assert arrays[1].tolist() == vectors[6]
    assert arrays.mask[2].all()


@pytest.mark.parametrize("format", ["numpy", "views", "torch"])
def test_a_value_that_python_has_not_is_named(tmp_path: Path, format: Any) -> None:
    if format == "torch":
        pytest.importorskip("torch")
    day = 86_400_000_000
    times = pa.array([0, day - 1, day], pa.time64("us"))
    write_dataset(pa.table({"id": [0, 1, 2], "at": times}), str(tmp_path / "set"))
    ds = open_dataset(str(tmp_path / "set"))
    says = "column 'at' holds a value of type time64.us. in row 0 that Python has not"
    assert ds[1]["at"] == datetime.time.max
    with pytest.raises(NotInPython, match=says):
        ds[2]
    with pytest.raises(NotInPython, match=says.replace("row 0", "row 2")):
        list(ds)
    with pytest.raises(NotInPython, match=says.replace("row 0", "row 2")):
        ds.take([0, 1, 2], format=format)
    (batch,) = ds.loader(3, format="arrow")
    assert batch["at"].equals(times)


def test_infinite_dates_are_numbers_to_numpy_and_no_value_to_python(tmp_path: Path) -> None:
    write_dataset(pa.table({"day": pa.array([1, 2**31 - 1], pa.date32())}), str(tmp_path / "set"))
    ds = open_dataset(str(tmp_path / "set"))
    assert ds.take([0, 1])["day"].astype(np.int64).tolist() == [1, 2**31 - 1]
    with pytest.raises(NotInPython, match="column 'day'"):
        ds[1]


def test_intervals_need_no_pandas(tmp_path: Path) -> None:
    spans = [pa.MonthDayNano([1, i, 3]) for i in range(3)]
    table = pa.table({"span": pa.array(spans), "spans": pa.array([[span] for span in spans])})
    write_dataset(table, str(tmp_path / "set"))
    script = (
        "import sys; sys.modules['pandas'] = None\n"
        "from millpond.loader import open_dataset\n"
        "(batch,) = open_dataset(sys.argv[1]).loader(3)\n"
        "print([span.days for span in batch['span']], [span[0].days for span in batch['spans']])"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "set")]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[0, 1, 2] [0, 1, 2]"


def test_more_text_than_offsets_count_comes_in_pieces_or_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pa.table({"text": [str(i) * 7 for i in range(N)]})
    write_dataset(table, str(tmp_path / "set"))
    monkeypatch.setattr("millpond.loader.columns._MOST_ELEMENTS", 100)
    ds = open_dataset(str(tmp_path / "set"))
    found = ds[:]
    assert found["text"].num_chunks > 1
    assert found["text"].to_pylist() == table["text"].to_pylist()
    with pytest.raises(OptionError, match="smaller batch_size"):
        list(ds.loader(N, format="arrow"))
    assert ds.take([3, 1], format="arrow")["text"].to_pylist() == ["3333333", "1111111"]
