"""What nobody wants: staged files of writers that were killed, by their run's name, and the
folders of a session that was refused.
"""

import os
from collections.abc import Collection
from contextlib import suppress

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


def first_new(folder: str) -> str:
    """The highest folder that is to be made for `folder`; "" if it is there."""
    found = ""
    while not os.path.exists(folder):
        found, folder = folder, os.path.dirname(folder)
    return found


def remove_empty(folder: str) -> None:
    """`folder` and all below, as far as no file lies there."""
    for at, _, _ in os.walk(folder, topdown=False):
        with suppress(OSError):
            os.rmdir(at)
