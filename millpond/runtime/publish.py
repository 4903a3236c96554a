"""Giving outputs their final names, so that a crash in the middle can be made good.

With a `data_root`, a receipt is written before the first file gets its name: which
files, how large, and which old ones go. A run that was killed while it published is
rolled forward by the next run of the same script; one that was complete is found
complete, and nothing is computed. Receipts are JSON; names in them are only compared
with what a plan says, never opened by themselves.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from millpond.plan.fingerprint import digest
from millpond.storage import Range, Staged, Storage, put_new


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a write published, or was about to."""

    fingerprint: str
    files: tuple[Staged, ...]
    versions: tuple[str, ...]
    old: tuple[str, ...]  # Files of the target that this write replaces.
    rows: int


class Receipts:
    """The receipts below one `data_root`, by target."""

    def __init__(self, storage: Storage, root: str) -> None:
        self._storage, self._root = storage, root.rstrip("/")

    def find(self, target: str) -> Receipt | None:
        """The newest receipt for `target`; None where there is none that can be read."""
        newest = max((file.path for file in self._storage.list(self._folder(target))), default=None)
        if newest is None:
            return None
        info = self._storage.stat(newest)
        assert info is not None
        data = bytes(self._storage.read_many([Range(newest, 0, info.size_bytes)])[0])
        try:
            told = json.loads(data)
            files = tuple(Staged(**file) for file in told["files"])
            return Receipt(
                str(told["fingerprint"]), files, tuple(map(str, told["versions"])),
                tuple(map(str, told["old"])), int(told["rows"]),
            )  # fmt: skip
        except (ValueError, KeyError, TypeError):
            return None  # Not ours: as if it were not there.

    def write(self, target: str, receipt: Receipt) -> None:
        """Keep a receipt. Two sessions that publish at once take different numbers."""
        folder = self._folder(target)
        data = json.dumps(asdict(receipt)).encode()
        number = len(list(self._storage.list(folder)))
        while not put_new(self._storage, f"{folder}/{number:08d}.json", data):
            number += 1

    def _folder(self, target: str) -> str:
        return f"{self._root}/published/{digest(target.rstrip('/'))}"


def publish(
    storage: Storage, staged: Sequence[Staged], old: Sequence[str], rows: int,
    *, target: str, fingerprint: str, receipts: Receipts | None,
) -> None:  # fmt: skip
    """Give `staged` their names, and remove `old` files that were not replaced."""
    if receipts is not None:
        versions = tuple(_version(storage, file.aside) for file in staged)
        receipts.write(target, Receipt(fingerprint, tuple(staged), versions, tuple(old), rows))
    storage.publish(staged)
    _remove_old(storage, staged, old)


def rolled_forward(storage: Storage, receipt: Receipt, target: str) -> bool:
    """Finish what a killed run began to publish. True if all its files are now in place."""
    beside = target.rstrip("/").rpartition("/")[0] + "/"
    names = [name for file in receipt.files for name in (file.path, file.aside)]
    if not all(name.startswith(beside) and ".." not in name.split("/") for name in names):
        return False  # Not a receipt of ours for this target.
    waiting: list[Staged] = []
    for file, version in zip(receipt.files, receipt.versions, strict=True):
        if _version(storage, file.path) == version:
            continue
        if _version(storage, file.aside) != version:
            return False
        waiting.append(file)
    storage.publish(waiting)
    _remove_old(storage, receipt.files, receipt.old)
    return True


def _remove_old(storage: Storage, new: Sequence[Staged], old: Sequence[str]) -> None:
    kept = {file.path for file in new}
    storage.delete(path for path in old if path not in kept)


def _version(storage: Storage, path: str) -> str:
    info = storage.stat(path)
    return f"{info.size_bytes} {info.version}" if info else ""
