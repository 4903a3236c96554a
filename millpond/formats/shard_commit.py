"""Shards become a training set: published under names of their own, then the index.

The index is created only if absent, in one step. Before that moment there is no training
set, after it there is a whole one, whoever else writes to the same place; shards of a
write that was killed bear the id of that write, and the next one removes them.
"""

import re
from collections.abc import Sequence

import pyarrow as pa

from millpond.errors import NotAtomic, StorageError, TargetNotEmpty
from millpond.formats.shard_index import INDEX_NAME, Index, index_bytes, read_index
from millpond.formats.shards import ShardInfo
from millpond.storage import Range, Staged, Storage, put_new
from millpond.storage.commit import Uncertain, is_published

# A `shard_size.SHARD_NAME` with the id of its write.
_SHARD = re.compile(r"shard-\d{5,}\.mp-[0-9a-f]{16}\.arrow")
# Loaders map shards, and states name their content: a training set never changes.
_INSTEAD = "A training set is written once: choose another path, or remove what is there."


def check_vacant(storage: Storage, root: str, where: str) -> None:
    """Refuse a place that holds files, but for shards of a write that was killed."""
    names = [info.path.rpartition("/")[2] for info in storage.list(root)]
    if not all(map(_SHARD.fullmatch, names)):
        raise TargetNotEmpty(root, where, _INSTEAD)


def find_index(storage: Storage, root: str) -> Index | None:
    """The index of the training set at `root`; None if there is none."""
    path = f"{root}/{INDEX_NAME}"
    if storage.stat(path) is None:
        return None
    return read_index(bytes(storage.read_many([Range(path, 0, -1)])[0]), root)


def commit_shards(
    storage: Storage,
    root: str,
    shards: Sequence[tuple[Staged, ShardInfo]],
    schema: pa.Schema,
    *,
    align: int | None,
    commit_id: str = "",
) -> None:
    """Publish sealed shards in the order of their rows; those without rows are dropped.

    If that fails, they are removed; only after `Uncertain` the training set may be there.
    Raises `TargetNotEmpty` where another write was faster.
    """
    staged = [file for file, info in shards if info.rows]
    storage.discard([file for file, info in shards if not info.rows])
    try:
        data = index_bytes([info for _, info in shards], schema, align, commit_id)
        storage.publish([file for file in staged if not is_published(storage, file)])
        is_alone = _create(storage, root, data, commit_id)
    except Uncertain:
        raise  # The index may be there: its shards stay.
    except BaseException:
        storage.discard(staged)
        storage.delete([file.path for file in staged])
        raise
    if is_alone:
        kept = {info.name for _, info in shards}
        names = [info.path for info in storage.list(root)]
        storage.delete(
            path for path in names
            if _SHARD.fullmatch(name := path.rpartition("/")[2]) and name not in kept
        )  # fmt: skip


def _create(storage: Storage, root: str, data: bytes, commit_id: str) -> bool:
    """Create the index. True where nobody else can create another one any more."""
    path, is_alone = f"{root}/{INDEX_NAME}", True
    try:
        try:
            created = storage.put_if_absent(path, data)
        except NotAtomic:
            created, is_alone = put_new(storage, path, data), False
        there = None if created else find_index(storage, root)
    except StorageError as error:
        raise Uncertain(
            f"write_dataset({root!r}): whether the index was created is not known, because the "
            f"store failed in that moment. The shards were kept. If {path!r} is there, the write "
            f"is complete; if not, write again. ({error})"
        ) from error
    # An answer can be lost on its way; the id says whose index it is.
    if created or (there is not None and commit_id and there.commit_id == commit_id):
        return is_alone
    raise TargetNotEmpty(root, "write_dataset", _INSTEAD)
