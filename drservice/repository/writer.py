"""Writing a snapshot: what is re-used, what is read, and the order that makes a crash harmless.

Order (docs/format.md; each step relies on the one before): hold, data key, packs that may be re-used are looked
for, files are read and new packs uploaded, the re-used packs are looked for again, tree nodes, snapshot object.
Until the last there is no snapshot. The lock keeps a second run on this host away; a writer on another host would
only make another snapshot.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Self

from drservice.clock import Clock
from drservice.errors import BusyError, CaptureError, MissingObjectError
from drservice.model.ids import ComponentName, KeyId, ServiceName, SnapshotId, make_ulid, ulid_time
from drservice.model.retentionstock import BACKUP_HOLD, LONG_BACKUP_HOLD
from drservice.model.snapshot import FilesFacts, PostgresFacts, SnapshotRecord
from drservice.objectstore.interface import ObjectStore
from drservice.processes import make_folder, open_private
from drservice.repository import layout
from drservice.repository.cache import SnapshotCache, StagedCache
from drservice.repository.capture import CaptureWorker, RangeTask, WorkerReply, WorkerSpec
from drservice.repository.changes import ChangeRule, is_due_for_reading, is_unchanged
from drservice.repository.descent import Root
from drservice.repository.envelope import HostKey
from drservice.repository.folders import ByteProgress, FilesOutcome, FolderIntake, IntakeParts, ListedFolder
from drservice.repository.holds import HoldKeeper, condemned_packs
from drservice.repository.intake import Intake, SourceFile, StreamCapture, plan_batches, plan_ranges
from drservice.repository.journal import JournalFolder, ResumeIndex
from drservice.repository.keys import Keyring, make_data_key
from drservice.repository.nodes import Entry, EntryKind, FileIdentity, decode_entry, encode_entry
from drservice.repository.pack import DATA_KIND, DATA_PACK_BYTES, PackTarget
from drservice.repository.pool import Pool, run_inline
from drservice.repository.records import Scope
from drservice.repository.relocking import Reused, extend_reused
from drservice.repository.snapshots import SnapshotSecret, commit_snapshot
from drservice.repository.staging import FileAssembly, NodeSink, PackUsage, collect_pack_table, store_tree

_INLINE_BYTES = 24 << 20
"""Below this, starting worker processes costs more than it saves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WriterContext:
    """What a writer works with; made by the repository."""

    scope: Scope
    store: ObjectStore
    open_store: Callable[[], ObjectStore]
    keyring: Keyring
    signer: HostKey
    recipients: tuple[str, ...]
    state_dir: Path
    clock: Clock
    workers: int
    level: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitFacts:
    """What the component knows about its capture at the end."""

    kind: str
    method: str
    started_at: datetime
    stopped_at: datetime
    facts: PostgresFacts | FilesFacts
    attachments: Mapping[str, bytes]
    bad_pages: Sequence[tuple[bytes, int]]
    source: str = ""
    """Tells one copy of what is captured from another (a standby's from the primary's); kept in the cache only."""


class SnapshotWriter:
    """Writes one snapshot of one component. Use as a context manager: leaving it without commit leaves no snapshot."""

    def __init__(self, context: WriterContext) -> None:
        self._context = context
        self._scope = context.scope
        now = context.clock.now()
        self.snapshot = SnapshotId(make_ulid(now, os.urandom(10)))
        self._lock = _lock(lock_path(context.state_dir, self._scope.service, self._scope.component))
        folder = context.state_dir / "cache" / self._scope.service
        self._cache_path = folder / f"{self._scope.component}.sqlite"
        self._journal = JournalFolder(context.state_dir / "journal" / self._scope.service / self._scope.component)
        self._identity = {
            "repository": str(self._scope.repository),
            "service": str(self._scope.service),
            "component": str(self._scope.component),
        }
        self._cache: SnapshotCache | None = None
        self._key = make_data_key(now)
        self._bad_pages: list[tuple[bytes, int]] = []
        self.read_bytes = 0
        self.vanished = 0
        self._streams = 0
        self.reused_files = 0
        self._published = False
        self._ready: Pool[Sequence[RangeTask], WorkerReply] | None = None
        self._hold: HoldKeeper | None = None
        try:
            self._cache = SnapshotCache.open(self._cache_path, identity=self._identity)
            self._begin(now)
        except BaseException:
            self._release()  # or no later run of this process could begin
            raise

    def _begin(self, now: datetime) -> None:
        context = self._context
        self._hold = HoldKeeper(
            context.store,
            context.signer,
            context.scope,
            purpose=BACKUP_HOLD,
            then=LONG_BACKUP_HOLD,
            clock=context.clock,
        )
        # Asked before anything is stored that is locked, or it would seem to be locked for longer than it is.
        self._began_at = context.store.server_time() if context.store.capabilities.lock is not None else now
        context.keyring.publish(
            self._key, service=self._scope.service, recipients=context.recipients, signer=context.signer, now=now
        )
        context.keyring.remember(self._key)
        self._resume = self._journal.begin()
        self._stored_bytes = 0
        self._resumed: set[bytes] = set()
        self._pack_keys: dict[bytes, tuple[KeyId, int]] = {}
        if self._cache is not None:
            self._pack_keys.update({name: (key_id, stored) for name, _, key_id, stored in self._cache.packs()})
        if self._resume is not None:
            index = ResumeIndex(self._resume)
            resumed = {name: (key_id, stored) for name, key_id, stored in index.packs()}
            self._pack_keys.update(resumed)
            self._resumed.update(resumed)
            index.close()
        self._missing = self._unusable()
        self._staged = StagedCache(self._cache_path, old=self._cache)
        self._nodes = NodeSink(
            context.store,
            scope=self._scope,
            key=self._key,
            staged=self._staged,
            missing=self._missing,
            on_pack=self._remember_pack,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._nodes.close()
        if not self._published:
            self._staged.discard()
        self._release()

    def _release(self) -> None:
        self._end_ready()
        if self._cache is not None:
            self._cache.close()
        if self._hold is not None:
            self._hold.close()
        os.close(self._lock)

    # --- what goes in ---------------------------------------------------------------------------------------

    def previous_meta(self) -> Mapping[str, str]:
        """Return what the last snapshot's cache says about its source (empty without one)."""
        return self._cache.meta() if self._cache is not None else {}

    def previous_at(self) -> datetime | None:
        """Return when the last snapshot was begun, by the clock of this host; ``None`` without one."""
        known = self.previous_meta().get("snapshot")
        return ulid_time(known) if known else None

    def make_ready(self, expected_bytes: int) -> None:
        """Start worker processes now if about so much will be read: they load while a checkpoint is waited for."""
        if self._ready is None and self._is_worth_a_pool(expected_bytes):
            self._ready = self._pool()

    def _end_ready(self) -> None:
        """End workers that had nothing to do."""
        if self._ready is not None:
            self._ready.close()
            self._ready = None

    def add_directory(self, path: bytes, mode: int) -> None:
        """Record a directory."""
        self._staged.put_entry(path, encode_entry(Entry(path=path, kind=EntryKind.DIRECTORY, mode=mode)))

    def add_link(self, path: bytes, mode: int, target: bytes) -> None:
        """Record a symbolic link."""
        self._staged.put_entry(path, encode_entry(Entry(path=path, kind=EntryKind.LINK, mode=mode, target=target)))

    def has_entry(self, path: bytes) -> bool:
        """Tell whether this snapshot has a file, folder or link of that name so far."""
        return next(iter(self._staged.entries(path, path + b"\0")), None) is not None

    def add_bytes(self, path: bytes, mode: int, content: bytes) -> None:
        """Capture a small file that is already in memory (at most one chunk of 64 KiB)."""
        source = _memory_source(path, mode, content)
        with self.stream() as stream:
            stream.file(source, iter([memoryview(content)]))
        self.read_bytes += len(content)

    def capture_files(self, files: Sequence[SourceFile], *, rule: ChangeRule, progress: ByteProgress) -> None:
        """Read files into the snapshot, in parallel; unchanged ones by ``rule`` are taken over unread.

        Raises:
            CaptureError: a file cannot be read.
            ObjectStoreError: the store failed; packs that were acknowledged are re-used by the next run.
        """
        tasks: list[RangeTask] = []
        intake = Intake(on_file=self._finish_file, on_pack=self._remember_pack)
        for source in files:
            previous = self._previous_entry(source.path)
            if previous is not None and rule is ChangeRule.IDENTITY and self._take_over(source, previous):
                progress.advance(source.size)
                continue
            ranges = plan_ranges(source, previous, first=len(tasks))
            intake.expect(source, first_task=len(tasks), tasks=len(ranges))
            tasks.extend(ranges)
        if not tasks:
            return
        batches = plan_batches(tasks)
        if not self._is_worth_a_pool(sum(task.length for task in tasks)):
            self._absorb(intake, run_inline(partial(CaptureWorker, self._worker_spec(here=True)), batches), progress)
            return
        pool, self._ready = self._ready or self._pool(), None
        try:
            self._absorb(intake, pool.run(batches), progress)
        finally:
            pool.close()

    def _is_worth_a_pool(self, expected_bytes: int) -> bool:
        return expected_bytes >= _INLINE_BYTES and self._context.workers > 1

    def _pool(self) -> Pool[Sequence[RangeTask], WorkerReply]:
        return Pool(partial(CaptureWorker, self._worker_spec()), self._context.workers)

    def capture_folders(
        self, root: Root, folders: Iterable[ListedFolder], *, rule: ChangeRule, hashed: bool, progress: ByteProgress
    ) -> FilesOutcome:
        """Take whole files into the snapshot, folder by folder, in parallel; what is unchanged is taken over unread.

        Args:
            root: the folder that all others are below.
            folders: each once, listed while they are taken (a generator is pulled as workers become free).
            rule: how a file is judged unchanged.
            hashed: files are named by the SHA-1 of their content, which is compared.
            progress: hears of source bytes.

        Raises:
            CaptureError: the root was exchanged. What befell single files is in the outcome.
            ObjectStoreError: the store failed; packs that were acknowledged are re-used by the next run.
        """
        parts = IntakeParts(
            cache=self._cache,
            staged=self._staged,
            nodes=self._nodes,
            missing=self._missing,
            spec=self._worker_spec(),
            spec_here=self._worker_spec(here=True),
            workers=self._context.workers,
            on_pack=self._remember_pack,
            take_over=self._carry_leaves,
        )
        outcome = FolderIntake(parts, root, rule=rule, hashed=hashed, progress=progress).run(folders)
        self.read_bytes += outcome.read_bytes
        self.reused_files += outcome.reused_files
        self.vanished += len(outcome.vanished)
        return outcome

    def stream(self) -> StreamCapture:
        """Return a capture for files that arrive one after the other (a tar stream)."""
        intake = Intake(on_file=self._finish_file, on_pack=self._remember_pack)
        worker = CaptureWorker(self._worker_spec(here=True), f"stream-{self._streams}")
        self._streams += 1
        return StreamCapture(intake=intake, worker=worker, previous=self._previous_entry)

    # --- how it is read -------------------------------------------------------------------------------------

    def _absorb(self, intake: Intake, replies: Iterator[tuple[int, WorkerReply]], progress: ByteProgress) -> None:
        for worker, reply in replies:
            intake.accept(worker, reply)
            for result in reply.results:
                self.read_bytes += result.plain_bytes
                progress.advance(result.plain_bytes)
        intake.require_empty()

    def _worker_spec(self, *, here: bool = False) -> WorkerSpec:
        target = PackTarget(
            scope=self._scope,
            kind=DATA_KIND,
            key_id=self._key.id,
            data_key=self._key.secret,
            level=self._context.level,
            pack_bytes=DATA_PACK_BYTES,
        )
        return WorkerSpec(
            open_store=self._context.open_store,
            store=self._context.store if here else None,
            target=target,
            cache=self._cache.path if self._cache is not None else None,
            resume=self._resume,
            journal=self._journal.folder,
            journal_prefix=str(self.snapshot),
            missing=self._missing,
        )

    def _previous_entry(self, path: bytes) -> Entry | None:
        raw = self._cache.entry(path) if self._cache is not None else None
        return decode_entry(raw) if raw is not None else None

    def _take_over(self, source: SourceFile, previous: Entry) -> bool:
        identity = previous.identity
        if identity is None or not is_unchanged(source.identity, source.size, previous):
            return False
        if is_due_for_reading(source.path, identity.read_began_ns, source.identity.read_began_ns):
            return False
        if not self._carry_leaves(previous):
            return False
        self._staged.put_entry(source.path, encode_entry(previous))
        self.reused_files += 1
        return True

    def _carry_leaves(self, previous: Entry) -> bool:
        """Carry the leaves of an entry over; ``False`` if a pack that it needs is missing."""
        used: set[bytes] = set(previous.inline.packs) if previous.inline is not None else set()
        for leaf in previous.leaves:
            usage, place = self._staged.keep_leaf(leaf.node_id), self._staged.node(leaf.node_id)
            if usage is None or place is None:
                return False
            used.update(usage, [place.pack])  # cached entries do not know the places of their leaves
        return not used & self._missing

    def _finish_file(self, assembly: FileAssembly) -> None:
        if assembly.vanished():
            self.vanished += 1
            self._staged.drop_entry(assembly.path)
            return
        entry = assembly.entry(self._nodes, self._staged)
        self._staged.put_entry(assembly.path, encode_entry(entry))
        self._bad_pages = [item for item in self._bad_pages if item[0] != assembly.path]
        self._bad_pages.extend((assembly.path, offset) for offset in assembly.bad_offsets())

    def _remember_pack(self, name: bytes, stored_bytes: int) -> None:
        self._pack_keys[name] = (self._key.id, stored_bytes)
        self._stored_bytes += stored_bytes

    # --- the end --------------------------------------------------------------------------------------------

    def bad_pages(self) -> Sequence[tuple[bytes, int]]:
        """Return (path, byte offset) of every damaged page found so far."""
        return tuple(self._bad_pages)

    def recheck(self) -> set[bytes]:
        """Look for the re-used packs again; return the paths whose files must be captured again.

        Call it before ``pg_backup_stop``: what is read again then still lies before the stop position.
        """
        gone = self._unusable() - self._missing
        if not gone:
            return set()
        self._missing = self._missing | gone
        self._nodes.forget(gone)
        return {path for path, body in self._staged.entries() if self._uses(body, gone)}

    def _uses(self, body: bytes, packs: frozenset[bytes]) -> bool:
        entry = decode_entry(body)
        if entry.inline is not None and packs.intersection(entry.inline.packs):
            return True
        for leaf in entry.leaves:
            place = self._staged.node(leaf.node_id)  # a leaf of this run has no place of its own yet
            if place is not None and place.pack in packs:
                return True
            if packs.intersection(self._staged.keep_leaf(leaf.node_id) or {}):
                return True
        return False

    def commit(self, facts: CommitFacts) -> SnapshotRecord:
        """Store the tree and the snapshot object. On return the snapshot exists.

        Raises:
            CaptureError: a re-used pack vanished after the last look.
            ObjectStoreError: nothing is visible.
        """
        self._end_ready()  # they have journals, which the commit removes
        usage = PackUsage()
        root = store_tree(self._staged, self._nodes, usage)
        for node in self._nodes.used:
            usage.add_node(self._nodes.place(node))
        # Asked before the look: a process that sleeps in between must not make the look seem younger than it is.
        checked_at = self._context.store.server_time()
        gone = self._absent([*usage.data, *usage.nodes])
        if gone:
            raise CaptureError(f"{len(gone)} packs that this backup re-uses vanished from the store while it ran")
        packs = collect_pack_table(usage, self._pack_keys)
        key_ids = sorted({use.key_id for use in (*packs.data, *packs.nodes)} | {self._key.id})
        if not self._context.keyring.exists(self._key.id, service=self._scope.service):
            raise MissingObjectError(f"data key {self._key.id} of this backup is not in the repository any more")
        for key_id in self._closed_keys(key_ids):
            raise MissingObjectError(
                f"data key {key_id} is needed by this backup, and no stored wrapping opens it for every recipient"
            )
        meta = self.previous_meta()
        locks = extend_reused(
            self._context.store,
            self._reused(usage),
            service=self._scope.service,
            meta=meta,
            began_at=self._began_at,
            now=checked_at,
        )
        record = self._record(facts, usage, tuple(key_ids), meta, checked_at)
        header_sha256 = commit_snapshot(
            self._context.store,
            signer=self._context.signer,
            scope=self._scope,
            record=record,
            previous_sha256=meta.get("header_sha256"),
            packs=packs,
            secret=SnapshotSecret(root=root, attachments=facts.attachments, bad_pages=tuple(facts.bad_pages)),
            data_key=self._key.secret,
            now=self._context.clock.now(),
        )
        self._publish(usage, facts, header_sha256, locks)
        return replace(record, header_sha256=header_sha256)

    def _record(
        self,
        facts: CommitFacts,
        usage: PackUsage,
        key_ids: tuple[KeyId, ...],
        meta: Mapping[str, str],
        checked_at: datetime,
    ) -> SnapshotRecord:
        previous = meta.get("snapshot")
        return SnapshotRecord(
            id=self.snapshot,
            service=self._scope.service,
            component=self._scope.component,
            kind=facts.kind,
            method=facts.method,
            state=facts.facts.state,
            host=self._context.signer.host,
            started_at=facts.started_at,
            stopped_at=facts.stopped_at,
            checked_at=checked_at,
            key_ids=key_ids,
            sealed_key_id=self._key.id,
            previous=SnapshotId(previous) if previous else None,
            source_bytes=usage.source_bytes,
            read_bytes=self.read_bytes,
            stored_bytes=self._stored_bytes,
            files=usage.files,
            facts=facts.facts,
            header_sha256="",
        )

    def _reused(self, usage: PackUsage) -> Reused:
        """Return what this snapshot uses, by whose it is."""
        scope, own_key = self._scope, self._key.id
        used = [
            (name, layout.pack_key(scope.service, scope.component, kind, name.hex()), self._pack_keys[name][0])
            for kind, names in (("packs", usage.data), ("nodes", usage.nodes))
            for name in names
        ]
        return Reused(
            packs=[key for name, key, key_id in used if key_id != own_key and name not in self._resumed],
            resumed=[key for name, key, key_id in used if key_id != own_key and name in self._resumed],
            key_ids={key_id for _, _, key_id in used if key_id != own_key},
            own=[key for _, key, key_id in used if key_id == own_key],
            own_key_id=own_key,
        )

    def _publish(self, usage: PackUsage, facts: CommitFacts, header_sha256: str, locks: Mapping[str, str]) -> None:
        for kind, names in (("packs", usage.data), ("nodes", usage.nodes)):
            for name in names:
                key_id, stored = self._pack_keys[name]
                self._staged.put_pack(name, kind, key_id, stored)
        self._staged.publish(
            {
                **self._identity,
                "snapshot": str(self.snapshot),
                "header_sha256": header_sha256,
                **locks,
                **_source_meta(facts.facts),
                "method": facts.method,
                "source": facts.source,
                "source_bytes": str(usage.source_bytes),
            }
        )
        self._published = True
        self._journal.clear()

    def _unusable(self) -> frozenset[bytes]:
        """Return which of the known packs must not be re-used: absent, condemned, or not readable for everybody."""
        closed = self._closed_keys({key_id for key_id, _ in self._pack_keys.values()})
        unreadable = {name for name, (key_id, _) in self._pack_keys.items() if key_id in closed}
        return self._absent(self._pack_keys) | unreadable

    def _closed_keys(self, key_ids: Iterable[KeyId]) -> frozenset[KeyId]:
        """Return which data keys do not open for every present recipient: added since, or the wrapping is gone."""
        needed = frozenset(self._context.recipients)
        others = frozenset(key_ids) - {self._key.id}
        known = self._context.keyring.recipients_of_each(others, service=self._scope.service)
        return frozenset(key_id for key_id, recipients in known.items() if not needed <= recipients)

    def _absent(self, packs: Iterable[bytes]) -> frozenset[bytes]:
        """Return which of these packs the store does not have, or that are condemned."""
        wanted = set(packs)
        if not wanted:
            return frozenset()
        service, component = self._scope.service, self._scope.component
        present: set[bytes] = set()
        for kind in ("packs", "nodes"):
            for info in self._context.store.list(layout.pack_prefix(service, component, kind)):
                with suppress(ValueError):
                    present.add(bytes.fromhex(info.key.rsplit("/", 1)[-1]))
        condemned = {
            bytes.fromhex(key.rsplit("/", 1)[-1])
            for key in condemned_packs(self._context.store, trust=self._context.keyring.trust, scope=self._scope)
        }
        return frozenset(wanted - present | wanted & condemned)


def _source_meta(facts: PostgresFacts | FilesFacts) -> Mapping[str, str]:
    """Return what the next run must compare before it trusts this one's cache."""
    if isinstance(facts, FilesFacts):
        return {}
    return {
        "system_id": str(facts.system_id),
        "timeline": str(int(facts.timeline)),
        "data_checksums": str(facts.data_checksums),
    }


def _memory_source(path: bytes, mode: int, content: bytes) -> SourceFile:
    nobody = FileIdentity(device=0, inode=0, modified_ns=0, changed_ns=0, read_began_ns=0)
    return SourceFile(path=path, absolute="", mode=mode, size=len(content), chunk_bytes=64 << 10, identity=nobody)


def lock_path(state_dir: Path, service: ServiceName, component: ComponentName) -> Path:
    """Return the file that is locked on a host while a snapshot of a component is written."""
    return state_dir / "run" / f"{service}-{component}.lock"


def _lock(path: Path) -> int:
    """Take the component's lock on this host; held by the process, so a crash releases it."""
    make_folder(path.parent)
    descriptor = open_private(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise BusyError(f"another backup of {path.stem} is running on this host") from error
    return descriptor
