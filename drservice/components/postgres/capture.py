"""Capturing a cluster by reading its data directory (method ``local``), and what both methods share.

The order is PostgreSQL's (documentation 26.3.4): start, copy, stop. The copy is worthless without its ``backup_label``,
so ``pg_control`` is stored poisoned (trap T12), and nothing is a snapshot before its WAL is in the store.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from drservice.clock import Clock
from drservice.components.postgres.backupsession import BackupSession, BackupStart, BackupStop, CheckpointSpeed
from drservice.components.postgres.controlfile import (
    CONTROL_PATH,
    ControlFile,
    poisoned_copy,
    read_control,
    require_checkpoint_of_start,
)
from drservice.components.postgres.layout import TABLESPACES, ClusterListing, FileRule, ListedFile, list_cluster
from drservice.components.postgres.pages import PageChecker
from drservice.components.postgres.recovery import parse_backup_label
from drservice.components.postgres.standby import Watched, require_role, standby_end
from drservice.components.postgres.tablespaces import oid_of, version_directory
from drservice.errors import CaptureError
from drservice.model.ids import SystemId
from drservice.model.snapshot import PostgresFacts
from drservice.model.wal import Lsn, Timeline
from drservice.repository.changes import ChangeRule, rule_for
from drservice.repository.folders import ByteProgress
from drservice.repository.intake import SourceFile
from drservice.repository.nodes import FileIdentity
from drservice.repository.writer import SnapshotWriter

CHUNK_BYTES = 64 << 10
LARGE_CLUSTER_BYTES = 2 << 40
LARGE_CHUNK_BYTES = 128 << 10
_RECHECKS = 3
_MACHINE_ID = Path("/etc/machine-id")


@dataclass(frozen=True, slots=True, kw_only=True)
class Captured:
    """What a capture found out, whatever its method."""

    method: str
    started_at: datetime
    stopped_at: datetime
    start_lsn: Lsn
    stop_lsn: Lsn
    timeline: Timeline
    control: ControlFile
    server_version: int
    attachments: Mapping[str, bytes]
    bad_pages: Sequence[tuple[bytes, int]]
    """(path, block number within the file)."""
    notes: tuple[str, ...]
    from_standby: bool = False
    """Then the last segment is archived when the primary has ended it, not by the backup."""
    source: str = ""
    """Whose files these are; the next run believes its cache for the same source only. Empty: for none."""

    def facts(self) -> PostgresFacts:
        """Return what the snapshot says publicly."""
        return PostgresFacts(
            system_id=SystemId(self.control.system_id),
            timeline=self.timeline,
            start_lsn=self.start_lsn,
            stop_lsn=self.stop_lsn,
            server_version=self.server_version,
            segment_bytes=self.control.wal_segment_bytes,
            block_bytes=self.control.block_bytes,
            data_checksums=self.control.has_checksums,
            bad_pages=len(self.bad_pages),
        )


def capture_local(
    session: BackupSession,
    writer: SnapshotWriter,
    *,
    data_directory: Path,
    system_id: SystemId,
    server_version: int,
    checkpoint: CheckpointSpeed,
    clock: Clock,
    progress: ByteProgress,
) -> Captured:
    """Read a running cluster's data directory into a snapshot.

    Args:
        session: an open backup session on the server of this very directory.
        writer: takes the files; not committed here.
        data_directory: readable by this process.
        system_id: the server's; the directory must be of the same cluster.
        server_version: major version.
        checkpoint: fast or spread.
        clock: tells start and end.
        progress: hears of source bytes.

    Raises:
        CaptureError: the session dropped, a standby was promoted, the directory is another server's, or a file cannot
            be read.
        UnsupportedClusterError: a tablespace's link does not lead straight to a folder of the server's.
    """
    control, _ = read_control(lambda: _read_control_bytes(data_directory))
    _require_cluster(control, system_id, data_directory)
    own = version_directory(control, server_version)
    writer.make_ready(_likely_bytes(_list(data_directory, own), writer.previous_at()))
    started_at = clock.now()
    start = session.start("drservice", checkpoint=checkpoint)
    control, _ = read_control(lambda: _read_control_bytes(data_directory))
    require_role(control, start)
    require_checkpoint_of_start(control, start=start.lsn, timeline=start.timeline)
    listing = _list(data_directory, own)
    _take(session, writer, listing, data_directory, control, clock, progress)
    control = _capture_control(writer, data_directory, system_id)
    stop = session.stop()
    return Captured(
        method="local",
        started_at=started_at,
        stopped_at=clock.now(),
        start_lsn=start.lsn,
        stop_lsn=_end_of(start, stop, control),
        timeline=start.timeline,
        control=control,
        server_version=server_version,
        attachments=label_attachments(stop, start.lsn),
        bad_pages=page_numbers(writer.bad_pages(), control.block_bytes),
        notes=tuple(f"left out: {item.path} ({item.reason})" for item in listing.refused),
        from_standby=start.from_standby,
        source=source_of(data_directory),
    )


def _take(
    session: BackupSession,
    writer: SnapshotWriter,
    listing: ClusterListing,
    data_directory: Path,
    control: ControlFile,
    clock: Clock,
    progress: ByteProgress,
) -> None:
    """Take everything that was listed but ``pg_control``."""
    for directory in listing.directories:
        writer.add_directory(os.fsencode(directory.path), directory.mode)
    sources = _sources(listing, data_directory, control, clock)
    same_life = _is_same_life(writer.previous_meta(), control, source_of(data_directory))
    watched = Watched(session=session, clock=clock, progress=progress)
    for rule, group in _by_rule(sources, listing, data_directory, same_life=same_life):
        writer.capture_files(group, rule=rule, progress=watched)
    session.check_alive()
    _recapture_lost(writer, sources, watched)


def _likely_bytes(listing: ClusterListing, since: datetime | None) -> int:
    """Return about how much will have to be read: what was written since the last snapshot was begun."""
    begin_ns = 0 if since is None else int(since.timestamp() * 1e9)
    return sum(item.identity.size for item in listing.files if item.identity.mtime_ns >= begin_ns)


def _capture_control(writer: SnapshotWriter, data_directory: Path, system_id: SystemId) -> ControlFile:
    """Take ``pg_control``, after everything else: on a standby it tells how far to replay what was read before."""
    control, raw = read_control(lambda: _read_control_bytes(data_directory))
    _require_cluster(control, system_id, data_directory)
    writer.add_bytes(CONTROL_PATH.encode(), 0o600, poisoned_copy(raw))
    return control


def _end_of(start: BackupStart, stop: BackupStop, control: ControlFile) -> Lsn:
    return standby_end(control, start=start.lsn, timeline=start.timeline) if start.from_standby else stop.lsn


def label_attachments(stop: BackupStop, start: Lsn) -> dict[str, bytes]:
    """Return the label files to keep, byte for byte (trap T2).

    Raises:
        CaptureError: the label is not of this backup.
    """
    label = parse_backup_label(stop.label_file)
    if label.start != start:
        raise CaptureError(f"the server returned a backup_label for {label.start}, but this backup began at {start}")
    attachments = {"backup_label": stop.label_file}
    if stop.tablespace_map:
        attachments["tablespace_map"] = stop.tablespace_map
    return attachments


def page_numbers(bad: Sequence[tuple[bytes, int]], block_bytes: int) -> list[tuple[bytes, int]]:
    """Turn byte offsets into block numbers within their files."""
    return [(path, offset // block_bytes) for path, offset in bad]


def _read_control_bytes(data_directory: Path) -> bytes:
    try:
        return (data_directory / CONTROL_PATH).read_bytes()
    except OSError as error:
        raise CaptureError(
            f"cannot read {CONTROL_PATH} below {data_directory}: {error.strerror}",
            hint="data_directory must be the server's, readable by this user; or use method: pg_basebackup.",
        ) from error


def _require_cluster(control: ControlFile, system_id: SystemId, data_directory: Path) -> None:
    """Refuse the directory of another cluster: its files under this server's label would restore to garbage."""
    if control.system_id != system_id:
        raise CaptureError(
            f"{data_directory} belongs to cluster {control.system_id}, but the server is {system_id}",
            hint="data_directory and dsn must be of one cluster: `SHOW data_directory` on the server tells its own.",
        )


def _list(data_directory: Path, own: str) -> ClusterListing:
    try:
        return list_cluster(data_directory, version_directory=own)
    except OSError as error:
        raise CaptureError(
            f"cannot list {error.filename or data_directory}: {error.strerror}",
            hint="Run as root or as the owner of the data directory; or use method: pg_basebackup.",
        ) from error


def _sources(listing: ClusterListing, root: Path, control: ControlFile, clock: Clock) -> list[SourceFile]:
    chunk_bytes = LARGE_CHUNK_BYTES if listing.total_bytes >= LARGE_CLUSTER_BYTES else CHUNK_BYTES
    listed_ns = int(clock.now().timestamp() * 1e9)
    places = {str(item.oid): _straight(item.target) for item in listing.tablespaces if not item.in_place}
    top = os.path.realpath(root)
    return [
        SourceFile(
            path=os.fsencode(item.path),
            absolute=_absolute(item.path, top, places),
            mode=item.mode,
            size=item.identity.size,
            chunk_bytes=chunk_bytes,
            identity=FileIdentity(
                device=item.identity.device,
                inode=item.identity.inode,
                modified_ns=item.identity.mtime_ns,
                changed_ns=item.identity.ctime_ns,
                read_began_ns=listed_ns,
            ),
            check=_checker(item, control),
        )
        for item in listing.files
        if item.rule is not FileRule.COPY_LAST
    ]


def _straight(location: str) -> str:
    """Return a location without links on the way to it; it was none itself, and what it became is not followed."""
    folder, name = os.path.split(location.rstrip("/"))
    return os.path.join(os.path.realpath(folder), name)  # noqa: PTH118 - text that is compared byte for byte


def _absolute(path: str, root: str, places: Mapping[str, str]) -> str:
    """Return where a file is read: in a tablespace not by the link, which may be exchanged at any moment."""
    top, _, rest = path.partition("/")
    if top == TABLESPACES and places:
        oid, _, inside = rest.partition("/")
        if oid in places:
            return f"{places[oid]}/{inside}"
    return f"{root}/{path}"


def _checker(item: ListedFile, control: ControlFile) -> PageChecker | None:
    if item.relation is None or not control.has_checksums:
        return None
    return PageChecker(
        first_block=item.relation.first_block(control.relation_segment_blocks), block_bytes=control.block_bytes
    )


def source_of(data_directory: Path) -> str:
    """Return what tells one copy of a cluster from another: the machine, and the very directory.

    A standby has the same files as its primary, and cloned machines the same inodes and times: what the cache knows of
    one says nothing of the other, even where the state directory was cloned or moved with it.
    """
    try:
        machine = _MACHINE_ID.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        machine = ""  # a container without one: its directory's path and inode have to do
    status = data_directory.stat()
    return f"{machine}:{os.path.realpath(data_directory)}:{status.st_dev}:{status.st_ino}"


def _is_same_life(meta: Mapping[str, str], control: ControlFile, source: str) -> bool:
    """Tell whether the last snapshot is of the same life of the same copy of the same cluster (T15)."""
    return (
        meta.get("system_id") == str(control.system_id)
        and meta.get("timeline") == str(int(control.timeline))
        and meta.get("data_checksums") == str(control.has_checksums)
        and meta.get("source") == source
    )


def _by_rule(
    sources: Sequence[SourceFile], listing: ClusterListing, data_directory: Path, *, same_life: bool
) -> Iterator[tuple[ChangeRule, list[SourceFile]]]:
    """Group files by how they are judged unchanged: each tablespace by the file system it lies on."""
    if not same_life:
        yield ChangeRule.READ_ALL, list(sources)
        return
    rules = {str(item.oid): rule_for(Path(item.target)) for item in listing.tablespaces if not item.in_place}
    usual = rule_for(data_directory)
    groups: dict[ChangeRule, list[SourceFile]] = {}
    for source in sources:
        oid = oid_of(source.path) if rules else None
        rule = usual if oid is None else rules.get(str(oid), usual)
        groups.setdefault(rule, []).append(source)
    yield from groups.items()


def _recapture_lost(writer: SnapshotWriter, sources: Sequence[SourceFile], progress: ByteProgress) -> None:
    """Read again what relied on packs that vanished meanwhile; it still lies before the stop position."""
    for _ in range(_RECHECKS):
        lost = writer.recheck()
        if not lost:
            return
        writer.capture_files(
            [source for source in sources if source.path in lost], rule=ChangeRule.READ_ALL, progress=progress
        )
    raise CaptureError("packs that this backup re-uses keep vanishing from the store; is a collection running?")
