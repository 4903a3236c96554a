"""Staged files whose writers were killed: they bear their run's name, and nobody else's."""

import os
from collections.abc import Collection

from millpond.storage import Staged, Storage
from millpond.storage.staging import staging_folder


def clear_staged(storage: Storage, directory: str, run: str, kept: Collection[str]) -> None:
    """Remove what a run, or all of a session, staged beside `directory`, but for `kept`.

    An object store has no such files: an upload that was not completed is not there.
    """
    folder = storage.local_path(directory)
    if folder is None:
        return
    for file in storage.list(staging_folder(folder)):
        # DuckDB writes beside the name that it was given, with "tmp_" before it.
        ours = os.path.basename(file.path).removeprefix("tmp_").startswith(f"{run}-")
        if ours and file.path not in kept:
            storage.discard([Staged(file.path, file.path)])
