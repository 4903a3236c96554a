"""The benchmark's records are those of the sort benchmark, and its validator finds faults."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

path = Path(__file__).parents[2] / "benchmarks" / "graysort.py"
sys.path.append(str(path.parent))  # It imports its neighbours.
spec = importlib.util.spec_from_file_location("graysort", path)
assert spec
assert spec.loader
graysort = importlib.util.module_from_spec(spec)
sys.modules["graysort"] = graysort
spec.loader.exec_module(graysort)


def test_record_0_is_jim_grays() -> None:
    (record,) = graysort.generate(0, 1)
    assert record.tobytes() == (
        b"JimGrayRIP\x00\x11" + b"0" * 32 + b"\x88\x99\xaa\xbb"
        + (b"2" * 4 + b"0" * 4) * 5 + b"0" * 4 + b"1" * 4 + b"\xcc\xdd\xee\xff"
    )  # fmt: skip


@pytest.mark.slow
def test_a_million_records_have_the_published_checksum() -> None:
    assert graysort.checksum(graysort.generate(0, 1_000_000)) == 0x7A27E2D0D55DE


def test_a_range_is_made_without_what_is_before_it() -> None:
    together = graysort.generate(5_000_000_000, 20_000)
    assert (graysort.generate(5_000_010_000, 100) == together[10_000:10_100]).all()
    assert together[0].tobytes()[12:44] == b"%032X" % 5_000_000_000
    x = graysort.sequence(5_000_000_001)
    assert together[0].tobytes()[:10] == x.to_bytes(16, "big")[:10]
    assert together[0].tobytes()[48:96] == b"".join(
        b"%X" % (x >> 4 * k & 15) * 4 for k in range(11, -1, -1)
    )


def test_skewed_keys_are_as_said() -> None:
    heavy = graysort.generate(0, 10_000, "heavy")[:, :10]
    assert 0.28 < (heavy == np.frombuffer(b"heavy key!", np.uint8)).all(axis=1).mean() < 0.32
    prefix = graysort.generate(0, 10_000, "prefix")[:, :6]
    assert 0.47 < (prefix == np.frombuffer(b"prefix", np.uint8)).all(axis=1).mean() < 0.53


def in_order(records: np.ndarray) -> np.ndarray:
    return records[np.argsort(records[:, :10].copy().view("V10").ravel())]


def test_the_validator_finds_order_duplicates_and_sum() -> None:
    records = in_order(graysort.generate(0, 1000, "heavy"))
    found = graysort.inspect(records)
    assert (found.records, found.unordered) == (1000, None)
    assert found.duplicates == (records[:, :10] == records[500, :10]).all(axis=1).sum() - 1 > 250
    assert found.checksum == graysort.checksum(graysort.generate(0, 1000, "heavy"))


@pytest.mark.parametrize("cut", [0, 1, 250, 251, 252, 999])
def test_parts_add_up_to_the_whole(cut: int) -> None:
    records = in_order(graysort.generate(0, 1000, "heavy"))
    records[[250, 251]] = graysort.generate(7, 2)[::-1]
    parts = graysort.inspect(records[:cut]).then(graysort.inspect(records[cut:]))
    assert parts == graysort.inspect(records)
    assert parts.unordered is not None


def test_a_changed_byte_changes_the_checksum() -> None:
    records = graysort.generate(0, 10)
    before = graysort.checksum(records)
    records[3, 50] ^= 1
    assert graysort.checksum(records) != before


def command(*words: str) -> int:
    return subprocess.run([sys.executable, str(path), *words], capture_output=True).returncode


@pytest.mark.slow
def test_the_command_writes_and_validates(tmp_path: Path) -> None:
    assert command("generate", str(tmp_path), "--size", "300KB", "--files", "3") == 0
    files = sorted(map(str, tmp_path.iterdir()))
    good = f"{graysort.checksum(graysort.generate(0, 3000)):x}"
    assert command("validate", *files, "--unsorted", "--checksum", good) == 0
    assert command("validate", *files, "--checksum", good) == 1
    assert command("validate", *files, "--unsorted", "--checksum", "1") == 1
