"""What is archived for a cluster, as a value that plans can be made from."""

from __future__ import annotations

from dataclasses import dataclass

from drservice.errors import FormatError, NoIdentityError
from drservice.model.ids import SystemId
from drservice.model.recovery import WalInventory
from drservice.model.snapshot import SnapshotRecord
from drservice.model.wal import HistoryEntry, Timeline, WalFileKind, WalFileName, parse_history, segment_number
from drservice.repository.repository import Repository
from drservice.repository.walarchive import ArchivedFile, WalArchive


@dataclass(frozen=True, slots=True, kw_only=True)
class Archived:
    """The archive of one cluster: the inventory for planning, and the files themselves."""

    inventory: WalInventory
    files: dict[str, ArchivedFile]
    unread_histories: tuple[str, ...]
    """History files that need an identity to be read: what lies on their timelines is not judged."""


def read_archive(archive: WalArchive, *, system_id: SystemId, segment_bytes: int) -> Archived:
    """List the WAL of a cluster, complete or not at all, and read its history files.

    Raises:
        ObjectStoreError: the listing is not complete.
        DamagedObjectError, FormatError, KeyProblemError: a history file is unusable.
    """
    segments: dict[Timeline, set[int]] = {}
    partials: dict[Timeline, set[int]] = {}
    histories: dict[Timeline, tuple[HistoryEntry, ...]] = {}
    files: dict[str, ArchivedFile] = {}
    unread: list[str] = []
    for item in archive.listing(system_id):
        files[item.name] = item
        name = WalFileName.parse(item.name)
        if name.kind is WalFileKind.SEGMENT:
            segments.setdefault(name.timeline, set()).add(segment_number(item.name, segment_bytes))
        elif name.kind is WalFileKind.PARTIAL:
            partials.setdefault(name.timeline, set()).add(segment_number(item.name, segment_bytes))
        elif name.kind is WalFileKind.HISTORY:
            try:
                text = archive.fetch(name, system_id=system_id).decode("utf-8", "replace")
            except NoIdentityError:
                unread.append(item.name)
            else:
                histories[name.timeline] = _parse(text, item.name)
    inventory = WalInventory(
        system_id=system_id,
        segment_bytes=segment_bytes,
        segments={timeline: frozenset(numbers) for timeline, numbers in segments.items()},
        histories=histories,
        stored_at={name: item.modified_at for name, item in files.items()},
        partials={timeline: frozenset(numbers) for timeline, numbers in partials.items()},
    )
    return Archived(inventory=inventory, files=files, unread_histories=tuple(unread))


def _parse(text: str, name: str) -> tuple[HistoryEntry, ...]:
    try:
        return parse_history(text)
    except ValueError as error:
        raise FormatError(f"{name} is no history file: {error}") from error


def newest_lineage(records: tuple[SnapshotRecord, ...]) -> SnapshotRecord | None:
    """Return the newest snapshot: its cluster is the one that restores mean unless a snapshot is named."""
    return records[-1] if records else None


def archive_of(repository: Repository, record: SnapshotRecord) -> Archived:
    """Read the archive that belongs to a snapshot's cluster."""
    scope = repository.scope(record.service, record.component)
    return read_archive(
        repository.wal(scope), system_id=record.postgres.system_id, segment_bytes=record.postgres.segment_bytes
    )
