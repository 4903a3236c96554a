"""A place where a contract test may write."""

import uuid
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import servers

from millpond.storage import Storage, open_storage


class Place:
    """A storage, and a URI below which a test may write. `atomic`: can it put if absent?"""

    def __init__(self, opens: Callable[[], Storage], root: str, *, atomic: bool = True) -> None:
        self.opens, self.root, self.atomic = opens, root, atomic

    @cached_property
    def storage(self) -> Storage:
        return self.opens()

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


def remote(server: servers.Server) -> Place:
    root = f"s3://{server.bucket}/{uuid.uuid4().hex}"
    return Place(lambda: open_storage(root, server.options()), root, atomic=server.atomic)
