"""Damage to a part of rows, as disks and people do it."""

import os
from pathlib import Path

DAMAGES = ["deleted", "torn", "a bit flipped"]


def spoil(path: Path, damage: str) -> None:
    data = bytearray(path.read_bytes())
    if damage == "deleted":
        path.unlink()
    elif damage == "torn":
        os.truncate(path, len(data) // 2)
    else:
        # In each 64 bytes one bit: whichever partition is read next meets it.
        for at in range(64, len(data), 64):
            data[at] ^= 4
        path.write_bytes(data)
