"""Continuity of the archive: which WAL is missing in it, and what this host still has of that.

PostgreSQL forgets a segment once its archiver was told that it is durable, and a standby marks whatever it receives as
done though it never reached this archive (trap T21). So the archive is compared with the snapshots that need it and
with ``pg_wal``, again and again: what is missing and still here is pushed, through the checks of ``wal push`` and one
more for each page, because a file that PostgreSQL does not offer may be re-used at any time. What PostgreSQL offers is
left to its archiver. What is nowhere any more is a hole that a new snapshot closes, and is told.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from drservice import telemetry
from drservice.clock import Clock
from drservice.components.postgres.controlfile import ClusterState, ControlFile, read_control_file
from drservice.components.postgres.walfile import SegmentFacts, check_wal_file, require_every_page
from drservice.errors import DrError, ForeignSegmentError, FormatError, NoIdentityError, SegmentConflictError, WalError
from drservice.model.continuity import Hole, holes_of
from drservice.model.ids import SystemId
from drservice.model.reach import TailSegment, WalInventory
from drservice.model.snapshot import SnapshotRecord
from drservice.model.wal import (
    HistoryEntry,
    Timeline,
    WalFileKind,
    WalFileName,
    parse_history,
    segment_begin,
    segment_name,
    segment_number,
)
from drservice.operations.lineage import Lineage
from drservice.operations.wal import check_pushed
from drservice.operations.walready import ReadyFolder
from drservice.operations.walsource import WalSource, streamed_segments
from drservice.repository.records import Scope
from drservice.repository.repository import Repository

LOOK_SECONDS = 60.0
_WHOLE_SECONDS = 3600.0
"""Between complete listings; in between only what is behind the first hole, or new, is listed."""
_SNAPSHOTS_SECONDS = 600.0
_OVERLAP = 16
"""Segments that parallel uploads may complete out of order."""
_IN_RECOVERY = frozenset({ClusterState.IN_ARCHIVE_RECOVERY, ClusterState.SHUT_DOWN_IN_RECOVERY})


@dataclass(frozen=True, slots=True, kw_only=True)
class Continuity:
    """How an archive is after a look, and what the look did."""

    system_id: SystemId | None
    """The cluster that is looked after; ``None`` before the first snapshot: nothing is needed yet."""
    inventory: WalInventory | None = None
    holes: tuple[Hole, ...] = ()
    """What is missing still."""
    filled: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()
    """Missing, and PostgreSQL offers it: its archiver is not that far."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """What is missing and is here, by name, and why it cannot be archived."""
    unread_histories: tuple[str, ...] = ()
    """Timelines of these are not judged: no identity here opens them, and ``pg_wal`` has them no more."""


class ArchiveWatch:
    """Looks after the archive of one component; what it has seen stays known, so that a look is one short listing.

    Args:
        repository: where the archive is.
        scope: of the component.
        directory: the data directory on this host; without one nothing can be filled.
        state_dir: of this host.
        clock: of this host.
    """

    def __init__(
        self, repository: Repository, scope: Scope, *, directory: Path | None, state_dir: Path, clock: Clock
    ) -> None:
        self._repository = repository
        self._scope = scope
        self._archive = repository.wal(scope)
        self._local = None if directory is None else _LocalWal(directory)
        self._lineage = Lineage(repository, scope, state_dir)
        self._day_keys = repository.day_keys(scope.service)
        self._clock = clock
        self._known: _Known | None = None
        self._records: Sequence[SnapshotRecord] = ()
        self._records_at = float("-inf")
        self._buffer = bytearray()

    def look(self, *, fill: bool, whole: bool = False) -> Continuity:
        """Compare once; with ``fill`` push what is missing and still here.

        Args:
            fill: archive it.
            whole: list everything, whatever is known.

        Raises:
            ObjectStoreError: a listing is not complete, or the store does not take what is pushed.
            DrError: key or lineage problems: nothing can be judged.
        """
        system_id = self._lineage.pinned()
        if system_id is None:
            return Continuity(system_id=None)
        records = [record for record in self._snapshots(whole=whole) if record.postgres.system_id == system_id]
        if not records:
            return Continuity(system_id=system_id)
        known = self._refreshed(system_id, records[-1].postgres.segment_bytes, whole=whole)
        filled, waiting, refused = list[str](), list[str](), dict[str, str]()
        if self._local is not None and (control := self._local.control(system_id)) is not None:
            self._learn_histories(known, control)
            offered = set(self._local.folder.names())
            holes = self._holes(records, known)
            waiting = [name for hole in holes for name in hole.names if name in offered]
            for name in self._fillable(known, records, holes, control) if fill else ():
                try:
                    if self._push(name, system_id):
                        known.add(WalFileName.parse(name))
                        filled.append(name)
                except (ForeignSegmentError, SegmentConflictError, WalError) as error:
                    refused[name] = error.message
        holes = self._holes(records, known)
        known.first_missing = {hole.timeline: hole.numbers[0] for hole in reversed(holes)}
        return Continuity(
            system_id=system_id,
            inventory=known.inventory,
            holes=tuple(holes),
            filled=tuple(filled),
            waiting=tuple(waiting),
            refused=refused,
            unread_histories=tuple(known.unread_histories),
        )

    def _holes(self, records: Sequence[SnapshotRecord], known: _Known) -> list[Hole]:
        """Return the holes; a segment of which every byte is in pieces is none, so these are listed where one shows."""
        holes = holes_of(records, known.inventory)
        if not holes:
            return holes
        source = WalSource(self._repository, self._scope, system_id=known.system_id, segment_bytes=known.segment_bytes)
        segments = {timeline: set(numbers) for timeline, numbers in known.segments.items()}
        pieces = streamed_segments(source, segments=segments, histories=known.histories, proven=False)
        tails: dict[Timeline, dict[int, TailSegment]] = {}
        for item in pieces:
            if item.is_whole:
                segments.setdefault(item.timeline, set()).add(item.number)
            else:
                tails.setdefault(item.timeline, {})[item.number] = item.tail
        inventory = replace(
            known.inventory,
            segments={timeline: frozenset(numbers) for timeline, numbers in segments.items()},
            tails=tails,
        )
        return holes_of(records, inventory)

    # --- what is archived -----------------------------------------------------------------------------------

    def _snapshots(self, *, whole: bool) -> Sequence[SnapshotRecord]:
        now = self._clock.monotonic()
        if whole or now - self._records_at >= _SNAPSHOTS_SECONDS:
            self._records = self._repository.snapshots(self._scope).records
            self._records_at = now
        return self._records

    def _refreshed(self, system_id: SystemId, segment_bytes: int, *, whole: bool) -> _Known:
        """List what is not known yet; what a failed listing has shown is forgotten with it."""
        now = self._clock.monotonic()
        known = self._known
        if whole or known is None or known.system_id != system_id or now - known.listed_at >= _WHOLE_SECONDS:
            known = _Known(system_id=system_id, segment_bytes=segment_bytes, listed_at=now)
        self._known = None
        for item in self._archive.listing(system_id, after=known.cursor()):
            name = WalFileName.parse(item.name)
            known.add(name)
            if name.kind is WalFileKind.HISTORY and name.timeline not in known.histories:
                self._read_history(known, name)
        self._known = known
        return known

    def _read_history(self, known: _Known, name: WalFileName) -> None:
        try:
            text = self._archive.fetch(name, system_id=known.system_id).decode("utf-8", "replace")
        except NoIdentityError:
            known.unread_histories.add(name.name)
            return
        try:
            known.histories[name.timeline] = parse_history(text)
        except ValueError as error:
            raise FormatError(f"{name.name} is no history file: {error}") from error

    def _learn_histories(self, known: _Known, control: ControlFile) -> None:
        """Take from ``pg_wal`` what the archive does not tell: not archived yet, or closed to this host."""
        assert self._local is not None, "called with a data directory"
        for number in range(2, control.timeline + 1):
            timeline = Timeline(number)
            if timeline not in known.histories and (entries := self._local.history(timeline)) is not None:
                known.histories[timeline] = entries
                known.unread_histories.discard(f"{timeline:08X}.history")

    # --- what can be filled ---------------------------------------------------------------------------------

    def _fillable(
        self, known: _Known, records: Sequence[SnapshotRecord], holes: Sequence[Hole], control: ControlFile
    ) -> Iterator[str]:
        """Yield what is missing and is finished here, histories first, as PostgreSQL archives.

        On a primary that is also what lies behind the end of the archive and is marked as done: nobody offers it any
        more. A standby's is its primary's to archive.
        """
        assert self._local is not None, "called with a data directory"
        done = self._local.folder.done()
        size = known.segment_bytes
        path = known.inventory.path_to(control.timeline)
        oldest = min(record.postgres.start_lsn for record in records).segment_number(size)
        missing = {name for hole in holes for name in hole.names}
        is_primary = control.state not in _IN_RECOVERY
        for name in map(WalFileName.parse, done):
            if name.kind is WalFileKind.HISTORY:
                if is_primary and name.timeline <= control.timeline and name.name not in known.archived_histories:
                    yield name.name
            elif name.kind is WalFileKind.SEGMENT and name.name in missing:
                missing.discard(name.name)
                yield name.name
            elif name.kind is WalFileKind.SEGMENT and is_primary:
                number = segment_number(name.name, size)
                is_needed = number >= oldest and number not in known.segments.get(name.timeline, ())
                if is_needed and any(
                    span.timeline == name.timeline
                    and span.begin.segment_number(size) <= number
                    and (span.end is None or segment_begin(number + 1, size) <= span.end)
                    for span in path
                ):
                    yield name.name
        for name in map(WalFileName.parse, sorted(missing)):
            if self._local.is_finished(name, control):
                yield name.name

    def _push(self, name: str, system_id: SystemId) -> bool:
        """Archive one file of ``pg_wal`` that is what its name says in each of its pages; ``False`` if it is gone."""
        assert self._local is not None, "called with a data directory"
        folder = self._local.folder
        if not folder.path(name).exists():
            return False  # PostgreSQL has removed it just now
        read = folder.read_any(name, self._buffer)
        with read.data as data:
            checked = check_pushed(folder.path(name), data, pinned=system_id)
            if checked.name.kind is WalFileKind.SEGMENT:
                facts = check_wal_file(name, bytes(data[:64]), len(data), expected_system_id=system_id)
                assert isinstance(facts, SegmentFacts), "check_pushed has read the same bytes"
                require_every_page(facts, data)
            outcome = self._archive.put(
                checked.name, data, system_id=system_id, last_write=read.last_write, key=self._day_keys.today()
            )
        telemetry.info("missing wal file archived", name=name, outcome=outcome.value)
        return True


@dataclass(slots=True, kw_only=True)
class _Known:
    """What was seen of an archive."""

    system_id: SystemId
    segment_bytes: int
    listed_at: float
    segments: dict[Timeline, set[int]] = field(default_factory=dict)
    partials: dict[Timeline, set[int]] = field(default_factory=dict)
    histories: dict[Timeline, tuple[HistoryEntry, ...]] = field(default_factory=dict)
    archived_histories: set[str] = field(default_factory=set)
    unread_histories: set[str] = field(default_factory=set)
    first_missing: dict[Timeline, int] = field(default_factory=dict)

    def add(self, name: WalFileName) -> None:
        """Note a file that is archived."""
        if name.kind is WalFileKind.HISTORY:
            self.archived_histories.add(name.name)
        elif name.kind is not WalFileKind.BACKUP:
            found = self.segments if name.kind is WalFileKind.SEGMENT else self.partials
            found.setdefault(name.timeline, set()).add(segment_number(name.name, self.segment_bytes))

    def cursor(self) -> WalFileName | None:
        """Return behind which name something may be new: before the first hole, else near the newest timeline's end."""
        held = {timeline: numbers for timeline, numbers in self.segments.items() if numbers}
        if not held:
            return None
        newest = max(held)
        places = {newest: max(held[newest]) - _OVERLAP, **self.first_missing}
        timeline = min(places)
        begin = min(places[timeline], max(held.get(timeline, {0})) - _OVERLAP) - 1
        return WalFileName.parse(segment_name(timeline, max(0, begin), self.segment_bytes))

    @property
    def inventory(self) -> WalInventory:
        """The same as plans are made from."""
        return WalInventory(
            system_id=self.system_id,
            segment_bytes=self.segment_bytes,
            segments={timeline: frozenset(numbers) for timeline, numbers in self.segments.items()},
            histories=dict(self.histories),
            partials={timeline: frozenset(numbers) for timeline, numbers in self.partials.items()},
        )


class _LocalWal:
    """The ``pg_wal`` of this host, as far as its cluster is the right one."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.folder = ReadyFolder(directory)

    def control(self, system_id: SystemId) -> ControlFile | None:
        """Return what the cluster says of itself; ``None`` for another cluster.

        Raises:
            DrError: there is none, or it cannot be read.
        """
        control = read_control_file(self._directory)
        return control if control.system_id == system_id else None

    def history(self, timeline: Timeline) -> tuple[HistoryEntry, ...] | None:
        """Return the ancestors of a timeline, if its history file is here and is one."""
        try:
            return parse_history(self.folder.path(f"{timeline:08X}.history").read_text("utf-8", "replace"))
        except (OSError, ValueError):
            return None

    def is_finished(self, name: WalFileName, control: ControlFile) -> bool:
        """Tell whether the server has left a segment that has no mark (as with ``archive_mode`` off).

        The last checkpoint lies behind it: nothing writes there any more.
        """
        end = segment_begin(segment_number(name.name, control.wal_segment_bytes) + 1, control.wal_segment_bytes)
        return (
            name.timeline == control.timeline
            and control.checkpoint >= end
            and not self.folder.is_ready(name.name)
            and self.folder.path(name.name).exists()
        )


def keep_continuous(watch: ArchiveWatch, stop: threading.Event, *, seconds: float = LOOK_SECONDS) -> None:
    """Look and fill until ``stop``; a hole that two looks have seen is told once, and when it is gone."""
    seen: set[str] = set()
    told: set[str] = set()
    problem = ""
    while not stop.wait(seconds):
        try:
            found = watch.look(fill=True)
        except DrError as error:
            if error.message != problem:
                telemetry.warning("the archive cannot be looked through", problem=error.message)
            problem = error.message
            continue
        except Exception as error:  # noqa: BLE001 - a defect here must not end what archives
            telemetry.error("the archive cannot be looked through", exception=error)
            continue
        problem = ""
        holes = {hole.first_name: hole for hole in found.holes}
        for name in (holes.keys() & seen) - told:
            telemetry.error("a hole in the archived WAL", hole=holes[name].describe(), refused=dict(found.refused))
        for name in told - holes.keys():
            telemetry.info("a hole in the archived WAL is no more", first=name)
        told = (told & holes.keys()) | (holes.keys() & seen)
        seen = set(holes)
