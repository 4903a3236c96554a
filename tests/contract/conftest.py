"""The stores that the contract suite runs against, each in an empty place of its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from places import Place

from millpond.storage import LocalStorage


@pytest.fixture(params=["local"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    match request.param:
        case "local":
            yield Place(LocalStorage(), str(tmp_path / "data"))
