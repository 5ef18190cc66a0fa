"""``wal push`` and ``wal fetch``: what PostgreSQL's archive_command and restore_command call.

Exit protocol (PostgreSQL documentation 26.3.1 and 26.3.5): push must exit 0 only when the file is durable. For
fetch, PostgreSQL takes any status from 1 to 125 as "end of WAL" and would promote, so only *proven absence* may look
like that.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from drservice import telemetry
from drservice.components.postgres.walfile import HEAD_BYTES, SMALL_FILE_BYTES, SegmentFacts, check_wal_file
from drservice.errors import ForeignSegmentError, FormatError, SegmentAbsentError, WalError, WalGapError
from drservice.model.ids import SystemId
from drservice.model.wal import Timeline, WalFileKind, WalFileName, parse_history, segment_name, segment_number
from drservice.operations.lineage import Lineage
from drservice.operations.walsource import WalSource
from drservice.repository.records import Scope
from drservice.repository.repository import Repository
from drservice.repository.walarchive import ArchivedFile, PutOutcome, WalArchive, write_time


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushed:
    """What a push did."""

    name: str
    outcome: PutOutcome
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """A WAL file that may be archived under its name."""

    name: WalFileName
    system_id: SystemId


def push_wal(repository: Repository, scope: Scope, path: Path, *, state_dir: Path) -> Pushed:
    """Archive one WAL file; on return it is durable in the store, byte for byte.

    Raises:
        ForeignSegmentError: it is not what its name says, or of another cluster (trap T17); nothing was stored.
        WalError: it cannot be read, or the server still writes it; nothing was stored.
        SegmentConflictError: other bytes are archived under this name (trap T16); nothing was overwritten.
        DamagedObjectError, ObjectStoreError: not archived, or not known to be.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise WalError(
            f"cannot read {path}: {error.strerror}",
            hint="archive_command passes %p relative to the data directory; run it from there.",
        ) from error
    checked = check_pushed(path, data, pinned=Lineage(repository, scope, state_dir).pinned())
    _require_finished(path, checked.name)
    outcome = repository.wal(scope).put(checked.name, data, system_id=checked.system_id, last_write=write_time(path))
    telemetry.info("wal file archived", name=path.name, outcome=outcome.value, bytes=len(data))
    return Pushed(name=path.name, outcome=outcome, bytes=len(data))


def _require_finished(path: Path, name: WalFileName) -> None:
    """Refuse a segment that a server still writes, which only a person's hand pushes: the whole one could never follow.

    In ``pg_wal`` a finished one is marked for the archiver, or the server has gone on to a later one.

    Raises:
        WalError: it is being written.
    """
    status = path.parent / "archive_status"
    if name.kind is not WalFileKind.SEGMENT or not status.is_dir():
        return
    if any((status / f"{name.name}{mark}").exists() for mark in (".ready", ".done")):
        return
    for neighbour in path.parent.glob(f"{name.name[:8]}*"):
        if len(neighbour.name) == len(name.name) and neighbour.name > name.name and _holds_what_it_says(neighbour):
            return
    raise WalError(
        f"{name.name} is still being written",
        hint="PostgreSQL archives it when it is finished; `select pg_switch_wal()` finishes it.",
    )


def _holds_what_it_says(segment: Path) -> bool:
    """Tell a segment from one that is recycled under a name to come."""
    try:
        with segment.open("rb") as stream:
            check_wal_file(segment.name, stream.read(HEAD_BYTES), segment.stat().st_size)
    except (ValueError, OSError, ForeignSegmentError):
        return False
    return True


def check_pushed(path: Path, data: bytes | memoryview, *, pinned: SystemId | None) -> Checked:
    """Check that ``data``, read from ``path``, is the WAL file its name says, of the right cluster; stores nothing.

    Raises:
        ForeignSegmentError: it is not (traps T17, T19).
    """
    head = bytes(data) if len(data) <= SMALL_FILE_BYTES else bytes(data[:HEAD_BYTES])
    facts = check_wal_file(path.name, head, len(data), expected_system_id=pinned)
    system_id = facts.system_id if isinstance(facts, SegmentFacts) else _owner(path, pinned)
    return Checked(name=facts.name, system_id=system_id)


def _owner(path: Path, pinned: SystemId | None) -> SystemId:
    """Return the cluster of a ``.history`` or ``.backup`` file, which does not carry it: its neighbours'.

    The pin alone is not enough: a copied ``archive_command`` on another server would be believed, and its history would
    lead every restore onto a timeline that never was.
    """
    found = _neighbours_cluster(path)
    if found is None:
        raise ForeignSegmentError(
            f"no readable segment beside {path} tells which cluster it belongs to",
            hint="archive_command must name the file in the server's own pg_wal.",
        )
    if pinned is not None and found != pinned:
        raise ForeignSegmentError(f"{path.name} lies beside segments of cluster {found}, this component is {pinned}")
    return found


def _neighbours_cluster(path: Path) -> SystemId | None:
    for neighbour in sorted(path.parent.iterdir(), reverse=True):
        try:
            if WalFileName.parse(neighbour.name).kind is not WalFileKind.SEGMENT:
                continue
            with neighbour.open("rb") as stream:
                facts = check_wal_file(neighbour.name, stream.read(HEAD_BYTES), neighbour.stat().st_size)
        except (ValueError, OSError, ForeignSegmentError):
            continue  # recycled segments are full of another position's bytes; the next one will do
        if isinstance(facts, SegmentFacts):
            return facts.system_id
    return None


def fetch_wal(repository: Repository, scope: Scope, name: str, destination: Path, *, system_id: SystemId) -> int:
    """Put one archived WAL file at ``destination``, complete or not at all; returns its size.

    Raises:
        SegmentAbsentError: proven: no such file, and no later segment on this timeline or one that descends from it.
        WalGapError: no such file, but later ones exist: a hole, never the end.
        WalError: no WAL file name; or a read, damage, key or store error of any kind.
    """
    try:
        parsed = WalFileName.parse(name)
    except ValueError as error:
        raise WalError(str(error)) from error
    archive = repository.wal(scope)
    try:
        data = archive.fetch(parsed, system_id=system_id)
    except SegmentAbsentError:
        source = _streamed_source(repository, scope, parsed, system_id)
        whole = source.whole_from_pieces(parsed) if source is not None else None
        if whole is None:
            prove_absent(archive, parsed, system_id=system_id, source=source)
            raise
        data = whole
    _place(data, destination)
    return len(data)


def _streamed_source(repository: Repository, scope: Scope, name: WalFileName, system_id: SystemId) -> WalSource | None:
    """Return the WAL of a cluster of which pieces are stored; ``None`` if there are none that a segment may be in."""
    if name.kind is not WalFileKind.SEGMENT:
        return None
    segment_bytes = repository.tail(scope).segment_bytes(system_id)
    if segment_bytes is None:
        return None
    return WalSource(repository, scope, system_id=system_id, segment_bytes=segment_bytes)


def prove_absent(
    archive: WalArchive, name: WalFileName, *, system_id: SystemId, source: WalSource | None = None
) -> None:
    """Return only if ``name`` is proven to be beyond the end of the archive, by a complete listing.

    The two names that can follow are also asked for directly: a listing behind a cache may lag. A segment that is not
    finished, and of which only pieces are stored, is the end; so is the one in which a timeline was left for another,
    which begins with a copy of it: a standby that follows the old one asks for it after every failover.

    Args:
        archive: of the component.
        name: the file.
        system_id: its cluster.
        source: the same WAL, if pieces of any of it are stored.

    Raises:
        WalGapError: the file or a later one exists: this is a hole.
        ObjectStoreError: the listing is not complete; nothing is proven.
    """
    if name.kind is WalFileKind.SEGMENT:
        for follower in _followers(name):
            if archive.exists(follower, system_id=system_id):
                raise WalGapError(f"{name.name} is missing in the middle: {follower.name} is archived")
    files = list(archive.listing(system_id))
    if name.kind is WalFileKind.HISTORY:
        _require_no_later_timeline(name, files)
        return
    family = _family(name, files, archive, system_id)
    later = [
        item.name
        for item in files
        if WalFileName.parse(item.name).kind is WalFileKind.SEGMENT
        and item.timeline in family
        and _position(item.name) >= _position(name.name)
    ]
    if later:
        raise WalGapError(f"{name.name} is missing in the middle: {later[0]} is archived")
    for timeline in sorted(family) if source is not None and name.kind is WalFileKind.SEGMENT else ():
        assert source is not None, "looked at"
        following = segment_number(name.name, source.segment_bytes) + 1
        for number, _ in source.pieces(timeline, following, None):
            streamed = segment_name(timeline, number, source.segment_bytes)
            raise WalGapError(f"{name.name} is missing in the middle: pieces of {streamed} are stored")


def _require_no_later_timeline(name: WalFileName, files: list[ArchivedFile]) -> None:
    """Refuse to call a history absent while its timeline or a later one is archived.

    PostgreSQL probes histories upward and takes the last one before the first that is absent for the newest. The first
    timeline has none: a server that promotes from it asks for it all the same (``writeTimeLineHistory``).

    Raises:
        WalGapError: naming what is there.
    """
    later = [item.name for item in files if item.timeline >= name.timeline]
    if later and name.timeline > 1:
        raise WalGapError(
            f"{name.name} is missing although {later[-1]} is archived",
            hint="With recovery_target_timeline = latest a timeline would be left out silently; `drservice restore` and"
            " its --timeline go along one whose history is lost.",
        )


def _followers(name: WalFileName) -> tuple[WalFileName, ...]:
    """Return the names that can come after a segment's, whatever the segment size is."""
    log, number = _position(name.name)
    following = ((log, number + 1), (log + 1, 0))
    return tuple(
        WalFileName.parse(f"{name.timeline:08X}{high:08X}{low:08X}")
        for high, low in following
        if max(high, low) < 1 << 32
    )


def _position(name: str) -> tuple[int, int]:
    """Order segments of any size: log and segment part of the name compare like the positions they stand for."""
    return int(name[8:16], 16), int(name[16:24], 16)


def _family(name: WalFileName, files: list[ArchivedFile], archive: WalArchive, system_id: SystemId) -> set[Timeline]:
    """Return the timelines whose WAL needs a file's segment on its own timeline, which they all go through."""
    family = {name.timeline}
    size: int | None = None
    for item in files:
        if item.timeline <= name.timeline or not item.name.endswith(".history"):
            continue
        text = archive.fetch(WalFileName.parse(item.name), system_id=system_id).decode("utf-8", "replace")
        try:
            entries = parse_history(text)
        except ValueError as error:
            raise FormatError(f"{item.name} is no history file: {error}") from error
        left_at = next((entry.end for entry in entries if entry.timeline == name.timeline), None)
        if left_at is None:
            continue
        size = size or _segment_bytes(files, archive)
        if size is None or segment_number(name.name[:24], size) < left_at.segment_number(size):
            family.add(item.timeline)
    return family


def _segment_bytes(files: list[ArchivedFile], archive: WalArchive) -> int | None:
    """Return the size of a cluster's segments by one that is archived; ``None`` without any."""
    segment = next((item for item in files if WalFileName.parse(item.name).kind is WalFileKind.SEGMENT), None)
    return archive.facts(segment).plain_bytes if segment is not None else None


def _place(data: bytes, destination: Path) -> None:
    """Write beside the destination and rename: a half download is never served (trap T28)."""
    temporary = destination.with_name(f".{destination.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(destination)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise WalError(f"cannot write {destination}: {error.strerror}") from error
