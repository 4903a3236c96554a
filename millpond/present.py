"""Frames over an output that was overwritten since they were made: its files are those of now.

A manifest names the files of a state for ever, but an overwrite removes the files. So who
is about to read asks whether there is a later manifest, and takes that state as a whole.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from millpond.errors import SchemaMismatch
from millpond.formats.find import find_files, with_ends
from millpond.plan import nodes as n
from millpond.storage import Storage
from millpond.storage.manifest import file_paths, manifest_path, newest_manifest, read_manifest

_FORMATS = ("parquet", "json", "arrow")  # A CSV may have got another delimiter or header.


@dataclass(frozen=True, slots=True)
class Present:
    """Finds outputs anew, with the storages of a session; `durable` as for `Sources`."""

    storage: Callable[[str], Storage]
    durable: bool = False

    def files(self, node: n.Node) -> n.Node | None:
        """DataSource(manifest 3, whose files are gone)  ->  DataSource(manifest 5)

        A frame whose files are all there still, since others were appended, stays as it is.
        """
        if not isinstance(node, n.DataSource) or node.state is None:
            return None
        state, storage = node.state, self.storage(node.state.root)
        later = manifest_path(state.root, state.number + 1)
        if node.scan.format not in _FORMATS or storage.stat(later) is None:
            return None
        newest = newest_manifest(storage, state.root)
        assert newest is not None, "a manifest is never removed"
        named = set(file_paths(storage, state.root, newest))
        if all(file.path in named for file in node.files):
            return None
        found = find_files([state.root], self.storage, "read", recursive=True)
        before = read_manifest(storage, state.root, state.number)
        same = before is not None and found.schema == before.schema
        kinds = {_kind(state.root, file.path) for file in (*node.files, *found.files)}
        if not same or len(kinds) > 1 or any(keyed for _, keyed in kinds):
            raise SchemaMismatch(
                f"read {state.root!r}: it was overwritten after this frame was made, with other "
                "columns, in another format, or in folders of keys (partition_by). Read it again."
            )
        found = with_ends(found, self.storage) if self.durable else found
        return replace(node, files=found.files, state=found.state)


def _kind(root: str, path: str) -> tuple[str, bool]:
    """How the file's name ends, and whether it lies in a folder of a key."""
    return path.rpartition(".")[2], "=" in path.removeprefix(root)
