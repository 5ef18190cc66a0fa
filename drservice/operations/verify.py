"""``verify``: prove that what the repository holds is whole; damage is healed by the next backup.

Objects are judged one by one in :mod:`drservice.repository.verify`. Here they are judged together: a snapshot without
the WAL that makes it consistent is not whole, however good every object is that is there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from drservice.clock import Clock
from drservice.errors import (
    DamagedObjectError,
    DrError,
    FormatError,
    MissingObjectError,
    ObjectExistsError,
    ObjectStoreError,
    WalGapError,
)
from drservice.model.estate import ComponentSettings, PostgresSettings, Service
from drservice.model.ids import SystemId
from drservice.model.reach import WalGap, WalInventory, measure_reach
from drservice.model.recovery import Target, TargetKind, timeline_for
from drservice.model.snapshot import SnapshotRecord
from drservice.model.wal import Timeline, WalFileKind, WalFileName, segment_name, segment_number, segments_between
from drservice.operations.inventory import Archived, read_archive
from drservice.operations.progress import Progress
from drservice.operations.walsource import Streamed, WalSource
from drservice.repository import layout
from drservice.repository.holds import condemn, condemned_packs
from drservice.repository.records import Scope
from drservice.repository.repository import Repository
from drservice.repository.verify import Depth, Finding, Verified, share_of, verify_component

_ATTEMPTS = 5
_FIRST_TIMELINE = Timeline(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """The outcome for one component, and what was done about damage."""

    verified: Verified
    condemned: tuple[str, ...]
    """Packs that count as missing from now on: the next backup stores their chunks again."""
    not_published: str | None
    """Why damaged packs could not be condemned from here."""
    not_judged: tuple[str, ...]
    """History files that need an identity: whether WAL is missing on their timelines is not known."""


def run_verify(
    repository: Repository,
    service: Service,
    component: ComponentSettings,
    *,
    depth: Depth,
    percent: int,
    clock: Clock,
    progress: Progress,
) -> Verification:
    """Verify one component, and that the WAL its snapshots need is there; damaged packs are condemned if possible.

    Raises:
        ObjectStoreError: the store did not answer: not verified.
    """
    scope = repository.scope(service.name, component.name)
    progress.step(f"verify {service.name}/{component.name} ({depth.value})")
    seed = os.urandom(8).hex()
    verified = verify_component(
        repository,
        scope,
        depth=depth,
        percent=percent,
        chosen=lambda key, share: share_of(key, share, seed),
        advance=progress.advance,
    )
    not_judged = _judge_wal(repository, verified) if isinstance(component, PostgresSettings) else ()
    progress.done()
    condemned: tuple[str, ...] = ()
    not_published = None
    if damaged := set(verified.damaged_packs()):
        try:
            if fresh := damaged - condemned_packs(repository.store, trust=repository.trust, scope=scope):
                _condemn(repository, scope, fresh, clock)
        except DrError as error:
            not_published = error.message
        else:
            condemned = tuple(sorted(damaged))
    return Verification(verified=verified, condemned=condemned, not_published=not_published, not_judged=not_judged)


# --- WAL -------------------------------------------------------------------------------------------------------


def _judge_wal(repository: Repository, verified: Verified) -> tuple[str, ...]:
    """Add what is wrong with the WAL as a whole to the findings; return the histories that could not be read.

    Raises:
        ObjectStoreError: a listing is not complete.
    """
    verified.findings[:] = [_with_spoilt_snapshots(finding, verified.snapshots) for finding in verified.findings]
    clusters: dict[SystemId, list[SnapshotRecord]] = {}
    for record in verified.snapshots:
        clusters.setdefault(record.postgres.system_id, []).append(record)
    unread: list[str] = []
    for system_id, records in clusters.items():
        source = WalSource(
            repository, verified.scope, system_id=system_id, segment_bytes=records[-1].postgres.segment_bytes
        )
        found, names = _judge_cluster(source, verified.scope, records, decrypted=verified.decrypted)
        if found:
            # Segments arrive while a listing goes on, and one that lags shows holes: only what stays missing is told.
            again, names = _judge_cluster(source, verified.scope, records, decrypted=verified.decrypted)
            found = [finding for finding in again if finding.key in {first.key for first in found}]
        verified.findings.extend(found)
        unread.extend(names)
    return tuple(unread)


def _judge_cluster(
    source: WalSource, scope: Scope, records: Sequence[SnapshotRecord], *, decrypted: bool
) -> tuple[list[Finding], tuple[str, ...]]:
    """Judge the WAL of one cluster against its snapshots."""

    def key_of(timeline: Timeline, name: str) -> str:
        return layout.wal_key(scope.service, scope.component, system_id, timeline, name)

    system_id = source.system_id
    findings: list[Finding] = []
    try:
        archived = read_archive(source)
    except ObjectStoreError:
        raise
    except (DrError, ValueError) as error:
        problem = error if isinstance(error, DrError) else FormatError(f"a history file is unreadable: {error}")
        key = layout.wal_prefix(scope.service, scope.component, system_id)
        findings.append(Finding(key=key, problem=problem.message, code=problem.code, snapshots=()))
        archived = _without_histories(source)
    for streamed in archived.streamed.values():
        findings += _judge_pieces(source, streamed, decrypted=decrypted)
    findings += _missing_histories(archived, records, key_of)
    own = _missing_own_segments(archived.inventory, records, key_of)
    findings += own
    told = {finding.key for finding in own}
    for gap in _gaps(records, archived.inventory):
        key = key_of(gap.timeline, gap.first_name)
        if key not in told:
            findings.append(Finding(key=key, problem=gap.describe(), code=WalGapError.code, snapshots=()))
    return findings, archived.unread_histories


def _missing_own_segments(
    inventory: WalInventory, records: Sequence[SnapshotRecord], key_of: Callable[[Timeline, str], str]
) -> list[Finding]:
    """Find snapshots without the WAL from their start to their stop: they can never become consistent."""
    missing: dict[str, Finding] = {}
    for record in records:
        facts = record.postgres
        held = inventory.segments.get(facts.timeline, frozenset())
        numbers = segments_between(facts.start_lsn, facts.stop_lsn, inventory.segment_bytes)
        lost = [number for number in numbers if number not in held]
        if not lost:
            continue
        name = segment_name(facts.timeline, lost[0], inventory.segment_bytes)
        key = key_of(facts.timeline, name)
        before = missing[key].snapshots if key in missing else ()
        missing[key] = Finding(
            key=key,
            problem=f"WAL segment {name} is not in the archive: without it a snapshot cannot become consistent",
            code=MissingObjectError.code,
            snapshots=(*before, record.id),
        )
    return list(missing.values())


def _missing_histories(
    archived: Archived, records: Sequence[SnapshotRecord], key_of: Callable[[Timeline, str], str]
) -> list[Finding]:
    """Find timelines that began with a promotion whose history file is not archived: nothing leads to them."""
    used = set(archived.inventory.segments) | {record.postgres.timeline for record in records}
    findings = []
    for timeline in sorted(used):
        name = f"{timeline:08X}.history"
        if timeline > _FIRST_TIMELINE and name not in archived.files:
            problem = f"{name} is not in the archive: how timeline {timeline} descends is not known"
            findings.append(
                Finding(key=key_of(timeline, name), problem=problem, code=MissingObjectError.code, snapshots=())
            )
    return findings


def _gaps(records: Sequence[SnapshotRecord], inventory: WalInventory) -> list[WalGap]:
    """Return the holes behind the snapshots on every branch, each once."""
    found: dict[str, WalGap] = {}
    for record in records:
        for timeline in sorted(inventory.timelines()):
            path = timeline_for(record, inventory, Target(kind=TargetKind.LATEST, timeline=timeline))
            if isinstance(path, str):
                continue
            gap = measure_reach(record, inventory, path).gap
            if gap is not None:
                found.setdefault(gap.first_name, gap)
    return list(found.values())


def _judge_pieces(source: WalSource, streamed: Streamed, *, decrypted: bool) -> list[Finding]:
    """Check the pieces of a segment that is in pieces only, each and as a whole; read are all of them.

    Without an identity it is not seen whether their bytes contradict each other.
    """
    unusable: dict[str, DrError] = {}
    for stored in streamed.pieces:
        try:
            source.tail.check(stored, system_id=source.system_id)
        except DrError as error:
            if error.exit_status != MissingObjectError.exit_status:
                raise
            unusable[stored.key] = error
    found = [Finding(key=key, problem=error.message, code=error.code, snapshots=()) for key, error in unusable.items()]
    problem: DrError | None = None
    if decrypted:
        problem = source.tail.rebuild(
            source.system_id, streamed.timeline, streamed.number, source.segment_bytes
        ).problem
    elif (furthest := max(item.piece.end for item in streamed.pieces)) > streamed.tail.end:
        text = f"WAL of {streamed.name} behind {streamed.tail.end} is missing, although what follows was stored"
        problem = WalGapError(f"{text} (up to {furthest})")
    if problem is not None and not isinstance(problem, DamagedObjectError):
        key = streamed.pieces[0].key
        found.append(Finding(key=key, problem=problem.message, code=problem.code, snapshots=()))
    return found


def _without_histories(source: WalSource) -> Archived:
    """Return what can be judged when a history file cannot be used: each timeline for itself."""
    system_id, segment_bytes = source.system_id, source.segment_bytes
    files = {item.name: item for item in source.archive.listing(system_id)}
    segments: dict[Timeline, set[int]] = {}
    for name, item in files.items():
        if WalFileName.parse(name).kind is WalFileKind.SEGMENT:
            segments.setdefault(item.timeline, set()).add(segment_number(name, segment_bytes))
    inventory = WalInventory(
        system_id=system_id,
        segment_bytes=segment_bytes,
        segments={timeline: frozenset(numbers) for timeline, numbers in segments.items()},
        histories={},
    )
    return Archived(inventory=inventory, files=files, unread_histories=(), source=source)


def _with_spoilt_snapshots(finding: Finding, records: Sequence[SnapshotRecord]) -> Finding:
    """Name the snapshots that a damaged WAL file keeps from becoming consistent."""
    if "/wal/" not in finding.key:
        return finding
    spoilt = tuple(record.id for record in records if _own_segment(finding.key, record))
    return replace(finding, snapshots=(*finding.snapshots, *spoilt))


def _own_segment(key: str, record: SnapshotRecord) -> bool:
    """Tell whether a key is that of a segment (or of its repaired copy) between a snapshot's start and stop."""
    facts = record.postgres
    prefix = layout.wal_prefix(record.service, record.component, facts.system_id) + f"{facts.timeline:08X}/"
    name, _, suffix = key.removeprefix(prefix).partition(".")
    if not key.startswith(prefix) or (suffix and not suffix.startswith("r")):
        return False
    own = segments_between(facts.start_lsn, facts.stop_lsn, facts.segment_bytes)
    return segment_number(name, facts.segment_bytes) in own


# --- damaged packs ---------------------------------------------------------------------------------------------


def _condemn(repository: Repository, scope: Scope, packs: set[str], clock: Clock) -> None:
    for attempt in range(_ATTEMPTS):
        try:
            condemn(
                repository.store,
                repository.host_key,
                scope,
                packs=packs,
                reason="damaged or missing when verified",
                now=clock.now(),
            )
        except ObjectExistsError:
            if attempt + 1 == _ATTEMPTS:
                raise
        else:
            return
