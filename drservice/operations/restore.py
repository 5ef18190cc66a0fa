"""``restore``: plan, prove that the target exists, place, replay in isolation, prove that it was reached.

Nothing is written before the plan stands. The recovered server runs in the sandbox whether it is kept or not; with
``into`` its data directory is left behind, cleanly shut down, on a new timeline. The database leads: once it has
reached the target, its rows say which documents belong to it, and exactly those are placed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum
from pathlib import Path

from drservice import processes
from drservice.clock import Clock, to_iso
from drservice.components.postgres.controlfile import ControlFile
from drservice.components.postgres.existing import Existing, examine
from drservice.components.postgres.placing import (
    announce_history,
    finish_cluster,
    make_target,
    place_cluster,
    require_empty,
)
from drservice.components.postgres.server import PostgresPrograms, find_programs
from drservice.environments.exchange import Exchange
from drservice.environments.interface import Environment, EnvironmentDescription, EnvironmentSpec, Probe
from drservice.environments.isolation import require_isolated
from drservice.environments.limits import Limits
from drservice.environments.sandbox import prepare_sandbox
from drservice.errors import DrError, ExitStatus, TargetOutsideWindowError, UnknownNameError, UsageError
from drservice.model.estate import FilesSettings, PostgresSettings, Service
from drservice.model.ids import EnvironmentId, SnapshotId
from drservice.model.recovery import Target, TargetKind
from drservice.model.snapshot import SnapshotRecord
from drservice.operations.alternatives import offering_another
from drservice.operations.feeder import Feeder
from drservice.operations.filesrestore import FilesRestore, RestoredFiles
from drservice.operations.holding import held
from drservice.operations.inventory import Archived, archive_of, newest_lineage
from drservice.operations.locate import Resolved, WalScanner, plan_segments, resolve
from drservice.operations.measured import Measured, remember
from drservice.operations.phases import Phases
from drservice.operations.production import database_in, endpoints_of
from drservice.operations.progress import Progress
from drservice.operations.replay import Reached, await_connection, await_recovery, prove, start_server
from drservice.operations.selection import SIDE_OPTIONS, Selected, SideRestore, SideServer, select_files
from drservice.repository.placing import Placed
from drservice.repository.records import Scope
from drservice.repository.repository import Repository

_KEPT = timedelta(days=7)
_PASSING = timedelta(hours=12)
_STALL_SECONDS = 300.0


class Afterwards(Enum):
    """What becomes of the recovered server."""

    STOP = "stop"
    LEAVE_RUNNING = "leave running"


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreContext:
    """What a restore works with."""

    repository: Repository
    state_dir: Path
    clock: Clock
    progress: Progress

    @property
    def environments_dir(self) -> Path:
        """Where environments are made."""
        return self.state_dir / "environments"


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreRequest:
    """What is asked for."""

    service: Service
    component: PostgresSettings
    target: Target
    into: Path | None
    """A directory that keeps what is restored; ``None`` = inside the environment. New or empty, unless ``delta``."""
    delta: bool = False
    """Restore onto the cluster's directory if there is one of the same cluster: only what differs is fetched."""
    afterwards: Afterwards
    files: tuple[FilesSettings, ...] = ()
    """Folders to restore with the cluster. With any, ``into`` gets a folder for each component, by its name."""
    without: frozenset[SnapshotId] = frozenset()
    """Snapshots not to start from, because they are known to be damaged."""
    database: str | None = None
    """Bring back only this database of the cluster; the content of the others is left out, and no files follow it."""
    purpose: str = "restore"
    limits: Limits = field(default_factory=Limits)
    made: Callable[[EnvironmentId], None] = lambda _: None
    """Hears which environment was made before anything runs in it."""

    @property
    def cluster_directory(self) -> Path | None:
        """Where the cluster is kept; ``None`` = inside the environment."""
        return self.into / self.component.name if self.into is not None and self.files else self.into


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A plan with all it was made from."""

    resolved: Resolved
    archived: Archived
    scope: Scope
    records: tuple[SnapshotRecord, ...]
    """The snapshots that were considered, oldest first."""
    unreadable: tuple[str, ...]
    """Snapshots that could not be considered, with the reason."""
    selected: Selected | None = None
    """What of the snapshot is placed; ``None`` = all of it."""

    @property
    def placed_bytes(self) -> int:
        """The size of what is placed."""
        return self.resolved.plan.snapshot.source_bytes if self.selected is None else self.selected.wanted_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreResult:
    """What a restore brought."""

    planned: Planned
    reached: Reached
    phases: dict[str, float]
    rto_seconds: float
    environment: EnvironmentDescription
    kept: bool
    """Whether the environment still runs."""
    into: Path | None
    isolation: Sequence[Probe]
    restored_bytes: int
    fetched_bytes: int
    wal_segments: int
    stripped_settings: tuple[str, ...]
    programs: PostgresPrograms
    data_checksums: bool
    database: str | None
    """The one database that was brought back, else the one that production's dsn names."""
    files: tuple[RestoredFiles, ...] = ()
    side: SideRestore | None = None
    """Set if only one database was brought back."""

    @property
    def used_records(self) -> tuple[SnapshotRecord, ...]:
        """Every snapshot that something was placed from, the cluster's first."""
        return (self.planned.resolved.plan.snapshot, *(record for item in self.files for record in item.records))

    @property
    def is_partial(self) -> bool:
        """Whether something is missing that the rows refer to, or that was there."""
        return any(item.problems() for item in self.files)


def plan_restore(context: RestoreContext, request: RestoreRequest) -> Planned:
    """Choose snapshot and WAL and prove that the target exists; writes nothing but a probe environment.

    Raises:
        TargetOutsideWindowError, WalGapError: it cannot be reached.
        UnknownNameError: the snapshot has no such database.
        NoIdentityError, WrongIdentityError: the WAL cannot be read here.
    """
    context.progress.step("plan")
    scope = context.repository.scope(request.service.name, request.component.name)
    listing = context.repository.snapshots(scope)
    unreadable = tuple(f"{key}: {error.message}" for key, error in listing.unreadable.items())
    for text in unreadable:
        context.progress.note(f"WARNING: a snapshot cannot be read and is left out: {text}")
    known = (*listing.records, *(listing.void if request.target.kind is TargetKind.SNAPSHOT else ()))
    records = tuple(record for record in known if record.id not in request.without)
    newest = _lineage_of(request.target, records, unreadable)
    if newest is None:
        broken = f"; {len(unreadable)} cannot be read ({unreadable[0]})" if unreadable else ""
        raise TargetOutsideWindowError(
            f"{scope.service}/{scope.component} has no readable snapshot{broken}", hint="Take one: drservice backup."
        )
    archived = archive_of(context.repository, newest)
    with scanner_of(context, newest, scope) as scanner:
        resolved = resolve(request.target, records, archived.inventory, scanner)
    selected = None
    if request.database is not None:
        reader = context.repository.reader(scope, resolved.plan.snapshot.id)
        selected = select_files(reader, request.database)
    return Planned(
        resolved=resolved,
        archived=archived,
        scope=scope,
        records=records,
        unreadable=unreadable,
        selected=selected,
    )


def scanner_of(context: RestoreContext, record: SnapshotRecord, scope: Scope) -> WalScanner:
    """Return what reads the archived WAL of a snapshot's cluster; use it as a context manager."""
    return WalScanner(
        archive=context.repository.wal(scope),
        system_id=record.postgres.system_id,
        segment_bytes=record.postgres.segment_bytes,
        major=record.postgres.server_version,
        service=scope.service,
        environments_dir=context.environments_dir,
        clock=context.clock,
        progress=context.progress,
    )


def _withhold(into: Path) -> None:
    """Take ``pg_control`` out of a copy that was not proven: no server starts without it.

    A failure after the promotion leaves a directory that was shut down cleanly and would start like a good one.
    """
    try:
        folder = os.open(into / "global", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return  # nothing was placed that could start
    try:
        with suppress(FileNotFoundError):
            os.rename("pg_control", "pg_control.unproven", src_dir_fd=folder, dst_dir_fd=folder)
        os.fsync(folder)
    finally:
        os.close(folder)


def _lineage_of(
    target: Target, records: tuple[SnapshotRecord, ...], unreadable: tuple[str, ...]
) -> SnapshotRecord | None:
    if target.kind is TargetKind.TIME and target.time is not None:
        # After `init --adopt` an instant before the change of clusters belongs to the one that was there then.
        before = tuple(record for record in records if record.stopped_at <= target.time)
        return newest_lineage(before or records)
    if target.kind is not TargetKind.SNAPSHOT:
        return newest_lineage(records)
    found = next((record for record in records if record.id == target.snapshot), None)
    if found is None:
        why = "; ".join(text for text in unreadable if str(target.snapshot) in text)
        others = ", ".join(f"{record.id} of {to_iso(record.stopped_at)}" for record in reversed(records[-5:]))
        raise UnknownNameError(
            f"there is no readable snapshot {target.snapshot}{f' ({why})' if why else ''}",
            hint=f"Readable: {others or 'none'}.",
        )
    return found


def run_restore(context: RestoreContext, request: RestoreRequest) -> RestoreResult:
    """Restore a cluster to a target and prove it.

    A failure leaves no running server and no environment; a directory given with ``into`` then holds an incomplete
    copy that PostgreSQL refuses to start (``pg_control`` is not there, or set aside as ``pg_control.unproven``).

    Raises:
        UsageError: neither a directory nor a running server was asked for.
        TargetDirectoryError: ``into`` is not empty.
        TargetOutsideWindowError, WalGapError: it cannot be reached; nothing was written.
        IsolationError: the environment leaks; nothing was started.
        DamagedObjectError, MissingObjectError, RecoveryError, ReplayError, ProofError: see the message.
    """
    if request.into is None and request.afterwards is Afterwards.STOP:
        raise UsageError("there would be nothing left to look at", hint="Give --into DIR, or --start, or both.")
    if request.database is not None and request.files:
        raise UsageError("one database is restored without the files that follow the cluster")
    if request.database is not None and request.delta:
        raise UsageError("one database is restored into a new directory: what is left out would stay as it is there")
    if request.into is not None and not request.delta:
        require_empty(request.into)
    phases = Phases()
    phases.begin(context.clock)
    scope = context.repository.scope(request.service.name, request.component.name)
    with held(context.repository, scope, clock=context.clock, progress=context.progress):
        return _run(context, request, phases)


def _run(context: RestoreContext, request: RestoreRequest, phases: Phases) -> RestoreResult:
    directory = request.cluster_directory
    planned = plan_restore(context, request)
    onto = _examine(request, planned)
    phases.end("plan")
    lifetime = _KEPT if request.afterwards is Afterwards.LEAVE_RUNNING else _PASSING
    if request.into is not None and request.files:
        make_target(request.into, processes.server_account(None))
    spec = EnvironmentSpec(
        service=request.service.name,
        purpose=request.purpose,
        data_directory=directory,
        expires_at=context.clock.now() + lifetime,
        limits=request.limits,
    )
    environment = prepare_sandbox(spec, environments_dir=context.environments_dir, clock=context.clock)
    try:
        request.made(environment.id)
        result = _recover(context, request, planned, environment, phases, onto)
    except BaseException:
        # First what must not be started, then the clean-up, which may fail by itself.
        if directory is not None and (onto is None or phases.seconds["fetch"]):
            _withhold(directory)  # before that an existing one was not touched, or its pg_control is aside already
        environment.destroy()
        raise
    if request.afterwards is Afterwards.STOP:
        environment.stop()
        environment.destroy()
    if directory is not None and request.database is None:  # a side restore never takes production's place
        announce_history(directory, result.reached.timeline, account=processes.server_account(directory))
    if request.purpose != "mutation" and request.database is None:
        _remember(context, request, planned, result)
    context.progress.done()
    return result


def _examine(request: RestoreRequest, planned: Planned) -> Existing | None:
    """Look at the directory of a delta restore; ``None``: everything is placed anew.

    Raises:
        TargetDirectoryError, ServerRunningError: it must not be restored onto, or files would go into a folder that
            holds some; nothing was written.
    """
    if not request.delta or request.into is None or request.cluster_directory is None:
        return None
    for component in request.files:
        require_empty(request.into / component.name)
    return examine(request.cluster_directory, system_id=planned.resolved.plan.snapshot.postgres.system_id)


def _remember(context: RestoreContext, request: RestoreRequest, planned: Planned, result: RestoreResult) -> None:
    """Keep the rates for estimates, and whether recovery was proved."""
    seconds = result.phases
    remember(
        context.state_dir,
        planned.scope,
        Measured(
            restored_at=to_iso(context.clock.now()),
            snapshot=planned.resolved.plan.snapshot.id,
            target=request.target.describe(),
            restored_bytes=result.restored_bytes,
            fetch_seconds=seconds["fetch"],
            wal_segments=result.wal_segments,
            replay_seconds=seconds["replay"],
            other_seconds=sum(seconds.values()) - seconds["fetch"] - seconds["replay"],
            proved=request.purpose == "restore" and not result.is_partial,
        ),
    )


def _recover(
    context: RestoreContext,
    request: RestoreRequest,
    planned: Planned,
    environment: Environment,
    phases: Phases,
    onto: Existing | None,
) -> RestoreResult:
    record = planned.resolved.plan.snapshot
    context.progress.step("isolation self-test")
    probes = environment.self_test(production=endpoints_of(request.component.dsn))
    require_isolated(probes)
    programs = find_programs(record.postgres.server_version)
    phases.end("start")
    account = processes.server_account(None) if onto is None else onto.account
    try:
        control, placed, stripped = _place(context, request, planned, environment, phases, account, onto)
    except DrError as error:
        if error.exit_status is not ExitStatus.INTEGRITY:
            raise
        raise offering_another(error, planned.resolved, planned.records, planned.archived.inventory) from error
    segments = plan_segments(planned.resolved.plan, planned.archived.inventory)
    side = SideServer(environment, planned.selected.selection) if planned.selected is not None else None
    context.progress.step("replay WAL", total_items=len(segments))
    with Exchange(environment.wal) as exchange:
        feeder = Feeder(
            exchange,
            context.repository.wal(planned.scope),
            plan=planned.resolved.plan,
            inventory=planned.archived.inventory,
            progress=context.progress,
        )
        try:
            feeder.start()
            start_server(environment, programs, control, planned.resolved, extra=SIDE_OPTIONS if side else ())
            phases.end("start")
            read_log = side.read if side is not None else environment.server_log
            log = await_recovery(environment, feeder, clock=context.clock, seconds=_STALL_SECONDS, read_log=read_log)
            await_connection(environment, clock=context.clock)
            phases.end("replay")
        finally:
            feeder.stop()
        context.progress.step("prove the target")
        reached = prove(environment, log, feeder, planned.resolved)
        settled = side.settle() if side is not None else None
        exchange.clear()
    phases.end("check")
    files = _restore_files(context, request, environment, _instant(planned, reached), phases)
    return RestoreResult(
        planned=planned,
        reached=reached,
        phases=dict(phases.seconds),
        rto_seconds=phases.total(),
        environment=environment.describe(),
        kept=request.afterwards is Afterwards.LEAVE_RUNNING,
        into=request.into,
        isolation=probes,
        restored_bytes=planned.placed_bytes,
        fetched_bytes=placed.fetched_bytes,
        wal_segments=feeder.state.served,
        stripped_settings=stripped,
        programs=programs,
        data_checksums=record.postgres.data_checksums,
        database=settled.database if settled is not None else database_in(request.component.dsn),
        files=files,
        side=settled,
    )


def _place(
    context: RestoreContext,
    request: RestoreRequest,
    planned: Planned,
    environment: Environment,
    phases: Phases,
    account: processes.Account | None,
    onto: Existing | None,
) -> tuple[ControlFile, Placed, tuple[str, ...]]:
    record = planned.resolved.plan.snapshot
    reader = context.repository.reader(planned.scope, record.id)
    opened = context.repository.open_snapshot(planned.scope, record.id)
    context.progress.step("fetch and place", total_bytes=planned.placed_bytes)
    control, placed = place_cluster(
        reader,
        environment.data,
        open_store=context.repository.open_store,
        scope=planned.scope,
        secrets=context.repository.secrets(planned.scope, opened),
        account=account,
        workers=request.component.workers,
        progress=context.progress,
        wanted=planned.selected.selection.wants if planned.selected is not None else None,
        onto=onto,
    )
    phases.end("fetch")
    context.progress.step("make durable")
    stripped = finish_cluster(reader, environment.data, placed, account=account)
    phases.end("place")
    return control, placed, stripped


def _instant(planned: Planned, reached: Reached) -> datetime | None:
    """Return which instant the files have to stand for; ``None`` = the latest."""
    target = planned.resolved.plan.target
    match target.kind:
        case TargetKind.LATEST:
            return None
        case TargetKind.TIME:
            return target.time
        case TargetKind.SNAPSHOT:
            return planned.resolved.plan.snapshot.stopped_at
        case _:
            return reached.time or planned.resolved.plan.snapshot.stopped_at


def _restore_files(
    context: RestoreContext,
    request: RestoreRequest,
    environment: Environment,
    instant: datetime | None,
    phases: Phases,
) -> tuple[RestoredFiles, ...]:
    """Place what belongs to the recovered position; the time is booked as fetching, which nearly all of it is."""
    files = FilesRestore(repository=context.repository, service=request.service, progress=context.progress)
    restored = tuple(
        files.beside(
            environment,
            component,
            instant=instant,
            into=request.into / component.name if request.into is not None else None,
        )
        for component in request.files
    )
    phases.end("fetch")
    return restored
