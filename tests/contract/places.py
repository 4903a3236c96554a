"""A place where a contract test may write."""

from dataclasses import dataclass
from pathlib import Path

from millpond.storage import Storage


@dataclass(frozen=True)
class Place:
    """A storage, and a URI below which a test may write."""

    storage: Storage
    root: str

    def path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def put(self, name: str, data: bytes) -> str:
        """Write a whole file by the contract's own calls; its path as the store gives it."""
        staged = self.storage.stage(self.path(name), "put")
        Path(staged.local).write_bytes(data)
        self.storage.publish([self.storage.seal(staged)])
        return self.path(name)

    def names(self, prefix: str = "") -> list[str]:
        listed = self.storage.list(self.path(prefix) if prefix else self.root)
        return [info.path.removeprefix(self.root + "/") for info in listed]
