"""Capturing a folder of files, and finding out what production has lost by itself.

The rows that refer to documents must have been read *before* this walk begins (document 5): a row that is visible
means that its file was written, so a walk that starts later finds it, unless production lost it. What is missing or
damaged in production is recorded, never repaired and never taken for our loss.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from drservice.clock import Clock
from drservice.components.odoo_filestore.record import ATTACHMENT, DocumentRecord, encode_record
from drservice.components.odoo_filestore.walk import Aside, Walk
from drservice.errors import CaptureError
from drservice.model.estate import FilesKind, FilesSettings
from drservice.model.snapshot import FilesFacts
from drservice.repository.changes import ChangeRule, rule_for
from drservice.repository.folders import ByteProgress, FilesOutcome, ListedFolder
from drservice.repository.marks import NO_LOOK
from drservice.repository.pool import without_cycle_collector
from drservice.repository.writer import CommitFacts, SnapshotWriter

METHOD = "walk"
_LINK_MODE = 0o777
_RECHECKS = 3
_DIGEST_BYTES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class CapturedFiles:
    """What a capture found out."""

    kind: FilesKind
    started_at: datetime
    stopped_at: datetime
    referred: int | None
    files: int
    """Regular files in the snapshot."""
    reused_files: int
    read_bytes: int
    record: DocumentRecord
    attachments: Mapping[str, bytes] = field(default_factory=dict)
    """What else the snapshot is to keep beside the files."""

    def facts(self) -> FilesFacts:
        """Return what the snapshot says publicly."""
        return FilesFacts(
            walk_began_at=self.started_at,
            referred=self.referred,
            missing=len(self.record.missing),
            corrupt=len(self.record.corrupt),
            foreign=len(self.record.foreign),
            vanished=len(self.record.vanished),
            unreadable=len(self.record.unreadable),
            left_out=len(self.record.left_out),
        )

    def commit_facts(self) -> CommitFacts:
        """Return what the writer needs to commit the snapshot."""
        return CommitFacts(
            kind=self.kind.value,
            method=METHOD,
            started_at=self.started_at,
            stopped_at=self.stopped_at,
            facts=self.facts(),
            attachments={**self.attachments, ATTACHMENT: encode_record(self.record)},
            bad_pages=(),
        )


def capture_files(
    writer: SnapshotWriter,
    *,
    component: FilesSettings,
    referred: Mapping[str, int] | None,
    clock: Clock,
    progress: ByteProgress,
) -> CapturedFiles:
    """Take a live folder into a snapshot; commit it with ``captured.commit_facts()``.

    A file that cannot be read makes the snapshot partial, one that is damaged in production makes it degraded; neither
    ends the run, and both are recorded by name. Files that are deleted meanwhile are counted.

    Args:
        writer: takes the files; not committed here.
        component: which folder, of which kind.
        referred: documents that production's rows refer to (``xx/<sha1>``, with their size), read before this call;
            ``None`` if no database was asked.
        clock: tells start and end.
        progress: hears of source bytes.

    Raises:
        DocumentsUnreadableError: the folder itself cannot be opened.
        CaptureError: it was exchanged meanwhile, or packs that are re-used keep vanishing from the store.
        ObjectStoreError: nothing partial is visible.
    """
    started_at = clock.now()
    walk = Walk(
        os.fspath(component.path),
        component.kind,
        on_folder=lambda folder: writer.add_directory(folder.path, folder.mode),
        on_link=lambda link: writer.add_link(link.path, _LINK_MODE, link.target),
    )
    hashed = component.kind is FilesKind.ODOO_FILESTORE
    unseen = _Unseen(referred or ())
    try:
        with without_cycle_collector():
            outcome = writer.capture_folders(
                walk.root, _noting(walk.folders(), unseen), rule=_rule(component), hashed=hashed, progress=progress
            )
        _recapture_lost(writer, walk, outcome, hashed=hashed, progress=progress)
    finally:
        walk.close()
    missing = unseen.names()
    missing.update(path for path in outcome.vanished if referred is not None and os.fsdecode(path) in referred)
    return CapturedFiles(
        kind=component.kind,
        started_at=started_at,
        stopped_at=clock.now(),
        referred=len(referred) if referred is not None else None,
        files=outcome.files,
        reused_files=outcome.reused_files,
        read_bytes=outcome.read_bytes,
        record=replace(_record(outcome, walk.aside, missing), root_mode=walk.root_mode),
    )


def _rule(component: FilesSettings) -> ChangeRule:
    """Documents are named by their content: where inode and times mean little, name, size and time are enough."""
    rule = rule_for(component.path)
    if rule is ChangeRule.READ_ALL and component.kind is FilesKind.ODOO_FILESTORE:
        return ChangeRule.NAMED
    return rule


class _Unseen:
    """The documents that rows refer to and that the walk has not met: 20 bytes for each."""

    def __init__(self, names: Iterable[str]) -> None:
        self._folders: dict[bytes, bytearray] = {}
        for name in names:
            folder, _, digest = name.partition("/")
            self._folders.setdefault(folder.encode(), bytearray()).extend(bytes.fromhex(digest))

    def meet(self, folder: ListedFolder) -> None:
        """Forget what is there."""
        digests = self._folders.pop(folder.path, None)
        if digests is not None:
            left = bytearray().join(digest for digest in _each(digests) if digest.hex().encode() not in folder.looks)
            if left:
                self._folders[folder.path] = left

    def names(self) -> set[bytes]:
        """Return those that are left, as paths in the snapshot."""
        return {
            b"%s/%s" % (folder, digest.hex().encode())
            for folder, digests in self._folders.items()
            for digest in _each(digests)
        }


def _each(digests: bytearray) -> Iterator[bytes]:
    return (bytes(digests[at : at + _DIGEST_BYTES]) for at in range(0, len(digests), _DIGEST_BYTES))


def _noting(folders: Iterable[ListedFolder], unseen: _Unseen) -> Iterator[ListedFolder]:
    """Take what is there off what is referred to."""
    for folder in folders:
        unseen.meet(folder)
        yield folder


def _recapture_lost(
    writer: SnapshotWriter, walk: Walk, outcome: FilesOutcome, *, hashed: bool, progress: ByteProgress
) -> None:
    """Read again what lies in packs that vanished from the store while this ran."""
    for _ in range(_RECHECKS):
        lost = writer.recheck()
        if not lost:
            return
        folders: dict[bytes, dict[bytes, bytes]] = {}
        for path in sorted(lost):
            folder, _, name = path.rpartition(b"/")
            folders.setdefault(folder, {})[name] = NO_LOOK
        again = (ListedFolder(path, looks, flat=False) for path, looks in folders.items())
        repeated = writer.capture_folders(walk.root, again, rule=ChangeRule.READ_ALL, hashed=hashed, progress=progress)
        outcome.replace(lost, repeated)
    raise CaptureError("packs that this backup re-uses keep vanishing from the store")


def _record(outcome: FilesOutcome, aside: Aside, missing: set[bytes]) -> DocumentRecord:
    unreadable = sorted([*outcome.unreadable, *aside.unreadable])
    hidden = tuple(path + b"/" for path, _ in aside.unreadable)
    known = {path for path, _ in unreadable}
    return DocumentRecord(
        # What could not be looked at is not known to be missing.
        missing=tuple(
            sorted(name for name in missing if name not in known and not name.startswith(hidden or (b"\0",)))
        ),
        corrupt=tuple(sorted(outcome.not_their_name)),
        foreign=tuple(sorted(aside.foreign)),
        vanished=tuple(sorted([*outcome.vanished, *aside.vanished])),
        unreadable=tuple(unreadable),
        left_out=tuple(sorted(aside.left_out)),
    )
