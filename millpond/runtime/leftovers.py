"""Staged files whose writers were killed: they bear their run's name, and nobody else's."""

import os
from collections.abc import Collection

from millpond.storage import Staged, Storage
from millpond.storage.paths import STAGING
from millpond.storage.staging import staging_folder


def clear_staged(storage: Storage, directory: str, run: str, kept: Collection[str]) -> None:
    """Remove what a run, or all of a session, staged beside `directory`, but for `kept`."""
    local = storage.local_path(directory)
    folder = staging_folder(local) if local else f"{directory.rstrip('/')}/{STAGING}"
    for file in storage.list(folder):
        # DuckDB writes beside the name that it was given, with "tmp_" before it.
        ours = os.path.basename(file.path).removeprefix("tmp_").startswith(f"{run}-")
        if ours and file.path not in kept:
            upload = "" if local else file.path
            storage.discard([Staged(file.path, "" if upload else file.path, 0, upload)])
