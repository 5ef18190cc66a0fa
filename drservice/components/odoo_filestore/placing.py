"""Bringing documents back: exactly those that a recovered database refers to, each checked against its name.

Everything is placed in a folder beside the target under a name of this run (``staging``), made durable, and renamed
into place as a whole: under the target's name there is everything or nothing. A crash leaves the folder of its run,
which nobody takes for a restore and anybody may delete.

A document that cannot be restored from the preferred snapshot is looked for in the others, and then in the sets that
were stored between them. One that production itself had lost is told apart from one that we lost; one that was damaged
in production already is *not* placed: under its name Odoo would take every later upload of the right content for a
collision.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from drservice.components.odoo_filestore.names import is_document, sha1_of_name
from drservice.components.odoo_filestore.placingsets import FoundInSets, place_from_sets
from drservice.components.odoo_filestore.record import document_record
from drservice.components.odoo_filestore.staging import Staging, staging
from drservice.errors import DocumentsDamagedError, DrError, NoIdentityError
from drservice.model.documents import StoredSet
from drservice.model.ids import SnapshotId
from drservice.processes import Account
from drservice.repository.bulkplacing import BulkPlaced, PlacingSpec, WantedFile, data_bytes, place_whole_files
from drservice.repository.nodes import EntryKind
from drservice.repository.placing import PlacingProgress
from drservice.repository.pool import without_cycle_collector
from drservice.repository.reader import UNUSABLE_PACK, SnapshotReader
from drservice.repository.records import Scope
from drservice.repository.repository import Repository

_CLOSED = 0o700
"""Mode of a restored folder that its owner alone may look into: documents, and whatever an environment holds."""
_OPEN = 0o755
"""Mode of a plain folder whose snapshot did not record one."""
_NAMED_IN_ERRORS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedDocuments:
    """What became of every document that was wanted, each in one of five places: names as rows have them."""

    expected: int
    placed: int
    missing: tuple[str, ...]
    """In none of the snapshots, and none says that production did not have it: lost by us, or newer than they are."""
    corrupt: tuple[str, ...]
    """In a snapshot, and damaged there beyond reading."""
    missing_in_production: tuple[str, ...]
    corrupt_in_production: tuple[str, ...]
    extra: int
    """Documents of the first snapshot that nobody wants; not placed."""
    from_older: int
    """Placed from another than the first snapshot."""
    used: tuple[SnapshotId, ...]
    """The snapshots that documents were placed from, in the order they were asked."""
    recovered_from_older: tuple[str, ...]
    """Lost or damaged in production by the first snapshot's own record, and placed from another one."""
    written_bytes: int
    fetched_bytes: int
    unreadable: tuple[str, ...]
    """Why snapshots, sets, or parts of them, could not be looked into."""
    from_sets: int = 0
    """Placed from sets of documents: no snapshot has them."""
    used_sets: tuple[str, ...] = ()
    """The sets that documents were placed from, in the order they were asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedFolder:
    """What was placed of a plain folder: everything."""

    files: int
    folders: int
    links: int
    written_bytes: int
    fetched_bytes: int


@dataclass(slots=True)
class _Search:
    """Documents that are still to be found, and what is known of them."""

    wanted: set[str]
    placed: int = 0
    from_older: int = 0
    extra: int = 0
    written_bytes: int = 0
    fetched_bytes: int = 0
    damaged: set[str] = field(default_factory=set)
    never_there: set[str] = field(default_factory=set)
    never_right: set[str] = field(default_factory=set)
    lost_since: set[str] = field(default_factory=set)
    """Of which production had no good copy any more when the first snapshot was taken."""
    used: list[SnapshotId] = field(default_factory=list)
    sets: FoundInSets = field(default_factory=FoundInSets)
    unreadable: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceContext:
    """Where from, whose, and how."""

    repository: Repository
    scope: Scope
    account: Account | None
    """Owner of what is made (as root) if it is for a server to read, or ``None`` for the present user."""
    workers: int
    progress: PlacingProgress


def place_documents(
    context: PlaceContext,
    snapshots: Sequence[SnapshotId],
    target: Path,
    *,
    wanted: Collection[str],
    sets: Sequence[StoredSet] = (),
) -> PlacedDocuments:
    """Place the documents that rows refer to as a new filestore.

    Args:
        context: repository, component, owner, workers, progress.
        snapshots: the preferred one first; the others are asked for what it lacks.
        target: new or empty; its parent exists.
        wanted: ``store_fname`` of every row, as read from the recovered database.
        sets: where what no snapshot has is looked for, in this order.

    Returns:
        Counts and names; ``target`` holds every document that could be restored, and no other.

    Raises:
        TargetDirectoryError: the target is in use; nothing was written.
        RecoveryError: the folder cannot be written; nothing is under the target's name.
        ObjectStoreError: the store does not answer; the same.
        NoIdentityError: nothing can be opened here.
    """
    search = _Search(wanted=set(wanted))
    expected = len(search.wanted)
    with without_cycle_collector(), staging(target) as made:
        for number, snapshot in enumerate(snapshots):
            if search.wanted or number == 0:
                _place_from(context, snapshot, made, search, preferred=number == 0)
        if search.wanted and sets:
            _place_from_sets(context, sets, made, search)
        made.put_in_place(context.account, mode=_CLOSED)
    left = search.wanted
    lost = left & search.damaged
    wrong = (left & search.never_right) - lost
    absent = (left & search.never_there) - lost - wrong
    return PlacedDocuments(
        expected=expected,
        placed=search.placed,
        missing=tuple(sorted(left - lost - wrong - absent)),
        corrupt=tuple(sorted(lost)),
        missing_in_production=tuple(sorted(absent)),
        corrupt_in_production=tuple(sorted(wrong)),
        extra=search.extra,
        from_older=search.from_older,
        used=tuple(search.used),
        recovered_from_older=tuple(sorted(search.lost_since - left)),
        written_bytes=search.written_bytes,
        fetched_bytes=search.fetched_bytes,
        unreadable=tuple(search.unreadable),
        from_sets=len(search.sets.placed),
        used_sets=tuple(search.sets.used),
    )


def _place_from_sets(context: PlaceContext, sets: Sequence[StoredSet], made: Staging, search: _Search) -> None:
    """Place what the sets have of what no snapshot had."""
    archive = context.repository.document_sets(context.scope)
    found = place_from_sets(archive, sets, made, wanted=search.wanted, account=context.account)
    search.wanted -= found.placed
    search.damaged |= found.damaged
    search.never_there |= found.missing
    search.never_right |= found.corrupt
    search.placed += len(found.placed)
    search.written_bytes += found.written_bytes
    search.fetched_bytes += found.fetched_bytes
    search.unreadable += found.unreadable
    search.sets = found


def _place_from(
    context: PlaceContext, snapshot: SnapshotId, made: Staging, search: _Search, *, preferred: bool
) -> None:
    """Place what one snapshot has of what is still wanted; damage of it costs only what it is in."""
    try:
        reader, spec = _open(context, snapshot, made)
        record = document_record(reader)
    except NoIdentityError:
        raise
    except UNUSABLE_PACK as error:
        search.unreadable.append(f"snapshot {snapshot}: {error.message}")
        return
    search.never_there.update(map(os.fsdecode, record.missing))
    files: Iterable[WantedFile] = _documents(reader, search, preferred=preferred)
    if not made.has_space(reader.record.source_bytes):  # what is wanted may be less
        files = list(files)
        made.require_space(data_bytes(reader, files))
    lost: set[str] = set()
    placed = 0
    files = _in_folders(files, made)
    for reply in place_whole_files(reader, files, spec, workers=context.workers, progress=context.progress):
        made.wrote(reply.written_bytes)
        placed += reply.files
        search.written_bytes += reply.written_bytes
        search.fetched_bytes += reply.fetched_bytes
        lost.update(os.fsdecode(path) for path, _ in reply.lost)
    search.wanted |= lost
    if preferred:
        search.lost_since = {os.fsdecode(name) for name in (*record.missing, *record.corrupt)} & search.wanted
    search.damaged |= lost
    search.placed += placed
    search.from_older += 0 if preferred else placed
    search.used += [snapshot] if placed else []


def _documents(reader: SnapshotReader, search: _Search, *, preferred: bool) -> Iterator[WantedFile]:
    """Yield the wanted documents of a snapshot that are what their name says, and take them off what is wanted."""

    def lost(error: DrError) -> None:
        search.unreadable.append(f"snapshot {reader.record.id}: {error.message}")

    for entry in reader.entries(on_lost=lost):
        name = entry.path.decode("ascii", "replace")  # no document has any other characters
        if entry.kind is not EntryKind.FILE or not is_document(name):
            continue
        if name not in search.wanted:
            search.extra += preferred
        elif entry.sha1:
            search.never_right.add(name)
        else:
            search.wanted.discard(name)
            yield WantedFile(entry, sha1_of_name(name))


def _in_folders(files: Iterable[WantedFile], made: Staging) -> Iterator[WantedFile]:
    """Make the folder of each file before it is placed."""
    for item in files:
        made.make_folder(item.entry.path.rpartition(b"/")[0])
        yield item


def place_folder(context: PlaceContext, snapshot: SnapshotId, target: Path) -> PlacedFolder:
    """Place a plain folder as it was captured: files, folders, links.

    Args:
        context: repository, component, owner, workers, progress.
        snapshot: which one.
        target: new or empty; its parent exists.

    Raises:
        TargetDirectoryError: the target is in use; nothing was written.
        DocumentsDamagedError: files cannot be restored, by name; nothing is under the target's name.
        DamagedObjectError, MissingObjectError, FormatError, RecoveryError, ObjectStoreError: the same.
    """
    with without_cycle_collector(), staging(target) as made:
        reader, spec = _open(context, snapshot, made)
        recorded = document_record(reader).root_mode
        entries = list(reader.entries())
        folders = [entry for entry in entries if entry.kind is EntryKind.DIRECTORY]
        links = [entry for entry in entries if entry.kind is EntryKind.LINK]
        files = [WantedFile(entry, b"") for entry in entries if entry.kind is EntryKind.FILE]
        made.require_space(data_bytes(reader, files))
        for entry in folders:  # from above to below, as entries come
            made.make_folder(entry.path, entry.mode & 0o777)
        total = BulkPlaced()
        for reply in place_whole_files(reader, files, spec, workers=context.workers, progress=context.progress):
            made.wrote(reply.written_bytes)
            total = total.plus(reply)
        if total.lost:
            named = "; ".join(f"{_shown(path)}: {why}" for path, why in total.lost[:_NAMED_IN_ERRORS])
            raise DocumentsDamagedError(f"{len(total.lost)} of {len(files)} files cannot be restored: {named}")
        for entry in links:
            made.make_link(entry.path, entry.target, context.account)
        kept = recorded if recorded is not None else _OPEN
        made.put_in_place(context.account, mode=_CLOSED if context.account is not None else kept)
    return PlacedFolder(
        files=total.files,
        folders=len(folders),
        links=len(links),
        written_bytes=total.written_bytes,
        fetched_bytes=total.fetched_bytes,
    )


def _open(context: PlaceContext, snapshot: SnapshotId, made: Staging) -> tuple[SnapshotReader, PlacingSpec]:
    repository, scope = context.repository, context.scope
    opened = repository.open_snapshot(scope, snapshot)
    opened.record.documents  # noqa: B018  # refuses a snapshot of a cluster before anything is written
    reader = SnapshotReader(repository.store, scope=scope, keyring=repository.keyring, opened=opened)
    spec = PlacingSpec(
        open_store=repository.open_store,
        scope=scope,
        secrets=repository.secrets(scope, opened),
        root=made.root,
        account=context.account,
    )
    return reader, spec


def _shown(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")
