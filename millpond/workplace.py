"""What a session holds open: scratch, worker, runtime, journal; and how plans run there.

The only state of a process. `close` (also at exit) leaves nothing behind. Several threads
may use a session: each run has its memory and processors to itself, so runs take turns.
"""

from __future__ import annotations

import atexit
import functools
import itertools
import os
import secrets
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NoReturn

from millpond.engine.duckdb import CLOSED, FORKED
from millpond.engine.duckdb import VERSION as DUCKDB
from millpond.errors import MillpondError, NodeTaken, warn
from millpond.events import Event, RunFinished, RunStarted
from millpond.formats.parquet import RowGroups, row_groups
from millpond.optimize import RULES, optimize
from millpond.options import Options
from millpond.physical.fused import all_nodes
from millpond.physical.planner import plan_stages
from millpond.physical.shape import OnlyNode, Physical, Settings
from millpond.physical.stages import OutputFile, PartRef, SourceInput, ToFile
from millpond.plan import nodes as n
from millpond.present import Present
from millpond.report.interrupt import one_line
from millpond.report.line import live_line
from millpond.report.record import Recorder
from millpond.runtime import Journal, Outcome, Policy, run
from millpond.runtime.homes import Homes, KeptParts
from millpond.runtime.journal import StoredJournal
from millpond.runtime.leftovers import clear_staged, first_new, remove_empty
from millpond.runtime.place import only_node
from millpond.runtime.presence import Presence, clock_s, sessions
from millpond.runtime.publish import Receipts
from millpond.storage import Staged, Storage, expect, put_new
from millpond.storage.checksums import checksum_of
from millpond.storage.commit import commit_id_in
from millpond.storage.scratch import Scratch
from millpond.tables import Tables
from millpond.version import VERSION
from millpond.worker import Worker, WorkerOptions, build_worker

if TYPE_CHECKING:
    from millpond.runtime import Runtime


_HELD_BYTES = 64 << 20
_TAKEN_S = 600.0  # For which a plan does not wait again for a node that others hold.


class Workplace:
    """Opened and closed by a session; whoever holds a frame keeps it alive."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.id = secrets.token_hex(6)
        self._pid = os.getpid()
        self._numbers = itertools.count(1)
        self._one_run = threading.RLock()
        # Private (0700), and swept by the next session on this machine if we are killed.
        root = options.data_root
        here = root is not None and "://" not in root
        new = {first_new(f"{root}/{name}") for name in ("parts", "sessions") if here} - {""}
        self._keeps = root is not None and "://" in root
        scratch = Scratch(f"session-{self.id}")
        self.scratch = scratch.path
        self._remove = weakref.finalize(self, scratch.remove)
        local = self._keeps and options.runtime == "local"
        self._homes = Homes(Scratch(f"parts-{self.id}", kept=True)) if local else None
        if self._homes:
            self._leave_homes = weakref.finalize(self, self._homes.close, keep=False)
        self._kept: KeptParts | None = self._homes
        self._failed = False
        self._taken_s = float("-inf")  # When others held the node that a task wanted whole.
        # In an object store lie journal and receipts only: parts are read by small ranges,
        # so they stay on the disks of the machines that wrote them, also after this session
        # if its work was not done.
        parts = self._homes.path if self._homes else os.path.join(root or self.scratch, "parts")
        self.worker_options = WorkerOptions(
            scratch=self.scratch,
            parts=parts,
            threads=options.threads,
            memory_limit_bytes=options.memory_limit_bytes,
            verify=options.verify,
            held_bytes=0 if root else min(_HELD_BYTES, options.memory_limit_bytes // 50),
            storage_options=options.storage_options,
        )
        self.worker: Worker = build_worker(self.worker_options)
        self.tables = Tables(self.worker.engine, self.worker.storage)
        self._presence = Presence(self.storage(root), root, self.id) if root else None
        if self._presence:
            self._presence.begin()
            self._leave = weakref.finalize(self, self._presence.end)
        self._runtime: Runtime | None = None
        self._journal: StoredJournal | None = None
        self.light: dict[n.PythonCall, bool] = {}  # Functions that were measured.
        self._footers: dict[tuple[str, str], RowGroups] = {}
        line = live_line(options.progress, self.worker.engine.fraction)
        self.listeners: list[Callable[[Event], None]] = [line] if line else []
        if root:
            self.listeners.append(Recorder(self.id, self._record))
        self._closed = False
        self._at_exit = partial(_close_at_exit, weakref.WeakMethod(self.close))
        if options.runtime != "local":  # Whether there is a cluster, and a fit one, is told now.
            try:
                self.place()
            except BaseException:
                self.close()
                for folder in new:
                    remove_empty(folder)
                raise
        # Last in, first out: a library that was imported on the way, as Ray, ends after us.
        atexit.register(self._at_exit)

    def close(self, *, failed: bool = False) -> None:
        """Workers, engine and scratch are gone afterwards, but for parts if work is not done."""
        if self._closed or os.getpid() != self._pid:
            return  # A forked child leaves all of it to its parent.
        self._closed = True
        self._failed = self._failed or failed
        atexit.unregister(self._at_exit)
        self._close_runtime()
        if self._presence:
            self._leave()
        self.worker.close()
        self._remove()
        if self._homes and self._leave_homes.detach():
            self._homes.close(keep=self._failed)

    def __reduce__(self) -> NoReturn:
        raise MillpondError(
            "a session and its frames stay in the process that opened it. Hand over rows "
            "(to_arrow()) or paths, and open a session there."
        )

    def check_open(self) -> None:
        if os.getpid() != self._pid:
            raise MillpondError(FORKED)
        if self._closed:
            raise MillpondError(CLOSED)

    # ---- plans -----------------------------------------------------------------------

    def optimized(self, plan: n.Node) -> n.Node:
        """The plan as it runs now; its files are expected to be opened soon."""
        present = Present(self.storage, self.options.data_root is not None)
        more = (*RULES, self.tables.prune_files) if self.options.optimize else ()
        found = optimize(plan, (present.files, *more))
        for node in all_nodes(found):
            if isinstance(node, n.DataSource):
                ends = node.scan.format == "parquet"
                expect(self.storage, node.files, ends=ends, by_arrow=True)
        return found

    def stages(self, plan: n.Node) -> Physical:
        return plan_stages(self.optimized(plan), self.settings())

    def settings(self) -> Settings:
        self.check_open()
        local = self.options.runtime == "local"
        cluster = None if local else self._cluster()
        alone = cluster if isinstance(cluster, OnlyNode) else None
        return Settings(
            split_bytes=self.options.split_bytes,
            footer=functools.cache(self.footer),
            sort_key=self.worker.engine.sort_key,
            shape=self.options.shape,
            cluster=cluster,
            versions=f"millpond {VERSION}, duckdb {DUCKDB}",
            run=f"{self.id}-{next(self._numbers)}",
            memory_bytes=alone.memory_bytes if alone else self.options.memory_limit_bytes,
            durable=self.options.data_root is not None,
            is_light=lambda call: self.light.get(call, False),
        )

    def _cluster(self) -> OnlyNode | str:
        """Where tasks run, as `Settings` has it."""
        if self.options.shape == "auto" and time.monotonic() - self._taken_s < _TAKEN_S:
            return "others hold some of the cluster's only node"
        return only_node(self.place().capacity(), self.options)

    def footer(self, path: str) -> RowGroups:
        storage = self.storage(path)
        info = storage.looks.look(path).info if storage.looks else storage.stat(path)
        key = path, info.version if info else ""
        if key not in self._footers:
            self._footers[key] = row_groups(storage, path)
        return self._footers[key]

    def run(self, physical: Physical) -> Outcome:
        with self._one_run:
            return self._run(physical)

    def _run(self, physical: Physical) -> Outcome:
        self.check_open()
        begin, error, kept = time.perf_counter(), "", set[str]()
        self.emit(RunStarted(physical.shape, len(physical.stages)))
        try:
            place = self.place()
            journal = self._open_journal()  # Now that it is known where parts lie.
            place.check_inputs(self._files_of(physical))
            policy = Policy(task_timeout_s=self.options.task_timeout)
            outcome = run(physical.stages, place, self.emit, journal=journal, policy=policy,
                          discard=self._discard)  # fmt: skip
            made = (file for stage in outcome.stages.values() for file in stage.files)
            kept = {file.staged.aside for file in made}
            self._failed = False
            return outcome
        except BaseException as stopped:
            error, self._failed = type(stopped).__name__, True
            if isinstance(stopped, NodeTaken):
                self._taken_s = time.monotonic()
            self.forget(physical)
            if isinstance(stopped, KeyboardInterrupt):
                # It may have struck where the run had not yet noted a task that it started.
                self._close_runtime()
                one_line(stopped)
            raise
        finally:
            self._clear_staged(physical, kept)
            self.emit(RunFinished(time.perf_counter() - begin, error))

    def _files_of(self, physical: Physical) -> list[str]:
        """The first and the last of each source on a file system: with them go the others."""
        sources = (i for stage in physical.stages for i in stage.inputs)
        splits = [
            split
            for source in sources
            if isinstance(source, SourceInput) and source.splits
            for split in (source.splits[0], source.splits[-1])
        ]
        paths = dict.fromkeys(piece.path for split in splits for piece in split.slices)
        return [found for path in paths if (found := self.storage(path).local_path(path))]

    def _clear_staged(self, physical: Physical, kept: set[str]) -> None:
        """What worker processes were writing when they were killed, they could not remove."""
        for stage in physical.stages:
            if isinstance(stage.output, ToFile):
                storage = self.storage(stage.output.directory)
                clear_staged(storage, stage.output.directory, stage.run, kept)

    def _discard(self, parts: Sequence[PartRef], files: Sequence[OutputFile]) -> None:
        """What attempts that nobody wants have left; parts go with their folder."""
        for file in files:
            self.storage(file.staged.path).discard([file.staged])

    def emit(self, event: Event) -> None:
        for listener in list(self.listeners):
            try:
                listener(event)
            except Exception as error:  # Whoever watches a run cannot stop it.
                self.listeners.remove(listener)
                warn(f"a listener raised {error!r}, and is not called again")

    @contextmanager
    def watched(self, listener: Callable[[Event], None]) -> Iterator[None]:
        """Hand it the events of this thread's runs: those of other threads wait."""
        with self._one_run:
            self.listeners.append(listener)
            try:
                yield
            finally:
                if listener in self.listeners:
                    self.listeners.remove(listener)

    def forget(self, physical: Physical) -> None:
        """Parts of a run that is over, and that nothing reuses."""
        if self.options.data_root is None and self._runtime is not None:
            self._runtime.forget(physical.stages[0].run)

    # ---- what is opened when it is needed --------------------------------------------

    def storage(self, path: str) -> Storage:
        return self.worker.storage(path)

    def place(self) -> Runtime:
        with self._one_run:
            if self._runtime is None:
                self._runtime = self._open_runtime()
            return self._runtime

    def _open_runtime(self) -> Runtime:
        mine, given = self.worker_options, self.options
        # A process runs one task of Python at a time, beside the engine of this process.
        each = replace(mine, threads=1, memory_limit_bytes=_process_share(mine), held_bytes=0,
                       alone_bytes=int(mine.memory_limit_bytes * 0.3))  # fmt: skip
        if given.runtime == "ray":
            from millpond.runtime.ray import RayRuntime

            on_ray = RayRuntime(
                each,
                address=given.address,
                cpus=mine.threads,
                node_bytes=mine.memory_limit_bytes if given.memory_is_given else None,
                shared_parts=given.data_root is not None and not self._keeps,
                keep_parts=self._keeps,
                allow_insecure=given.allow_insecure,
            )
            self.worker.fetch = on_ray.fetch_many
            if self._keeps:
                self._kept = on_ray
            return on_ray
        from millpond.runtime.local import LocalRuntime

        return LocalRuntime(self.worker, each, slots=mine.threads)

    def _close_runtime(self) -> None:
        if self._runtime is not None:
            self._runtime.close(keep=self._keeps and self._failed)
            self._runtime = None

    def _open_journal(self) -> Journal | None:
        root = self.options.data_root
        if root is None:
            return None
        if self._journal is None:
            storage = self.storage(root)

            def is_staged(staged: Staged, checksum: str) -> bool:
                # Or published, by a commit that was killed before it was done: the file's
                # name bears the id of that commit, so it is no other's.
                names = [staged.aside, *([staged.path] if commit_id_in(staged.path) else [])]
                size = staged.size_bytes
                for name in names:
                    storage = self.storage(name)
                    info = storage.stat(name)
                    if info is not None and info.size_bytes == size:
                        return checksum in ("", checksum_of(storage, name, size))
                return False

            self._journal = StoredJournal(storage, root, self.id, is_staged, self._announce)
        self._journal.kept = self._kept
        return self._journal

    def _announce(self, sessions: set[str]) -> bool:
        return self._presence is not None and self._presence.announce(uses=sessions)

    def clear_after_the_dead(self, path: str) -> None:
        """What killed sessions of this data root wrote aside for `path`, which is written now."""
        root = self.options.data_root
        if root:
            storage = self.storage(root)
            for seen in sessions(storage, root, clock_s(storage, root)).values():
                if not seen.alive and path in seen.targets:
                    clear_staged(self.storage(path), path, seen.session, ())

    def announce_target(self, path: str) -> None:
        """Before files are written beside `path`: so they are found if we are killed."""
        if self._presence:
            self._presence.announce(targets=[path])

    def receipts(self) -> Receipts | None:
        root = self.options.data_root
        return Receipts(self.storage(root), root) if root else None

    def _record(self, name: str, text: str) -> None:
        """Keep what happened in a run beside its results, for `millpond report`."""
        root = str(self.options.data_root).rstrip("/")
        put_new(self.storage(root), f"{root}/events/{name}", text.encode())


def _close_at_exit(close: weakref.WeakMethod[Callable[[], None]]) -> None:
    method = close()
    if method is not None:
        method()


def _process_share(options: WorkerOptions) -> int:
    return max(int(options.memory_limit_bytes * 0.3 / options.threads), 128 * 2**20)
