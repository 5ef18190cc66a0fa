"""What is archived for a cluster, as a value that plans can be made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from drservice.errors import FormatError, MissingObjectError, NoIdentityError
from drservice.model.reach import TailSegment, WalInventory
from drservice.model.snapshot import SnapshotRecord
from drservice.model.wal import HistoryEntry, Timeline, WalFileKind, WalFileName, parse_history, segment_number
from drservice.operations.walsource import Streamed, WalSource, streamed_segments
from drservice.repository.repository import Repository
from drservice.repository.walarchive import ArchivedFile, WalArchive


@dataclass(frozen=True, slots=True, kw_only=True)
class Archived:
    """The archive of one cluster: the inventory for planning, and the files themselves."""

    inventory: WalInventory
    files: dict[str, ArchivedFile]
    unread_histories: tuple[str, ...]
    """History files that need an identity to be read: what lies on their timelines is not judged."""
    source: WalSource
    """Where the files are read from, and the segments that are in pieces only."""
    streamed: Mapping[str, Streamed] = field(default_factory=dict)
    """Segments that are in pieces only, by name."""


def read_archive(source: WalSource, *, proven: bool = False) -> Archived:
    """List the WAL of a cluster, complete or not at all, and read its history files.

    Args:
        source: of the cluster.
        proven: of what is in pieces only, read the pieces (needs an identity); else their names are believed.

    Raises:
        ObjectStoreError: the listing is not complete.
        DamagedObjectError, FormatError, KeyProblemError: a history file is unusable.
        NoIdentityError, WrongIdentityError: pieces were to be read, and cannot be here.
    """
    archive, system_id, segment_bytes = source.archive, source.system_id, source.segment_bytes
    segments: dict[Timeline, set[int]] = {}
    partials: dict[Timeline, set[int]] = {}
    histories: dict[Timeline, tuple[HistoryEntry, ...]] = {}
    files: dict[str, ArchivedFile] = {}
    unread: list[str] = []
    for listed in archive.listing(system_id):
        files[listed.name] = listed
        name = WalFileName.parse(listed.name)
        if name.kind is WalFileKind.SEGMENT:
            segments.setdefault(name.timeline, set()).add(segment_number(listed.name, segment_bytes))
        elif name.kind is WalFileKind.PARTIAL:
            partials.setdefault(name.timeline, set()).add(segment_number(listed.name, segment_bytes))
        elif name.kind is WalFileKind.HISTORY:
            try:
                text = archive.fetch(name, system_id=system_id).decode("utf-8", "replace")
            except NoIdentityError:
                unread.append(listed.name)
            else:
                histories[name.timeline] = _parse(text, listed.name)
    tails: dict[Timeline, dict[int, TailSegment]] = {}
    streamed: dict[str, Streamed] = {}
    for item in streamed_segments(source, segments=segments, histories=histories, proven=proven):
        if item.is_whole:
            segments.setdefault(item.timeline, set()).add(item.number)
        elif item.number in partials.get(item.timeline, ()):
            continue
        else:
            tails.setdefault(item.timeline, {})[item.number] = item.tail
        streamed[item.name] = item
    inventory = WalInventory(
        system_id=system_id,
        segment_bytes=segment_bytes,
        segments={timeline: frozenset(numbers) for timeline, numbers in segments.items()},
        histories=histories,
        stored_at={name: item.modified_at for name, item in files.items()}
        | {name: item.stored_at for name, item in streamed.items()},
        partials={timeline: frozenset(numbers) for timeline, numbers in partials.items()},
        tails=tails,
    )
    return Archived(inventory=inventory, files=files, unread_histories=tuple(unread), source=source, streamed=streamed)


def _parse(text: str, name: str) -> tuple[HistoryEntry, ...]:
    try:
        return parse_history(text)
    except ValueError as error:
        raise FormatError(f"{name} is no history file: {error}") from error


def newest_lineage(records: tuple[SnapshotRecord, ...]) -> SnapshotRecord | None:
    """Return the newest snapshot: its cluster is the one that restores mean unless a snapshot is named."""
    return records[-1] if records else None


def source_of(repository: Repository, record: SnapshotRecord) -> WalSource:
    """Return the WAL of a snapshot's cluster."""
    return WalSource(
        repository,
        repository.scope(record.service, record.component),
        system_id=record.postgres.system_id,
        segment_bytes=record.postgres.segment_bytes,
    )


def archive_of(repository: Repository, record: SnapshotRecord, *, proven: bool = False) -> Archived:
    """Read the archive that belongs to a snapshot's cluster; see :func:`read_archive`."""
    return read_archive(source_of(repository, record), proven=proven)


def last_write(archive: WalArchive, archived: Archived, name: str) -> datetime:
    """Return when the last WAL of a file was written; of pieces, when the server sent the last one.

    Raises:
        MissingObjectError: there is no such file any more.
        ObjectStoreError: the store did not answer as it should.
    """
    if (streamed := archived.streamed.get(name)) is not None:
        return archived.source.server_time_of(streamed)
    if (file := archived.files.get(name)) is None:  # it has become whole while pieces were listed
        listed = archive.listing(archived.inventory.system_id)
        file = next((item for item in listed if item.name == name), None)
        if file is None:
            raise MissingObjectError(f"{name} was archived a moment ago and is not listed")
    return archive.facts(file).last_write
