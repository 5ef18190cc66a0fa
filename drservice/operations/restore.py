"""``restore``: plan, prove that the target exists, place, replay in isolation, prove that it was reached.

Nothing is written before the plan stands. The recovered server runs in the sandbox whether it is kept or not; with
``into`` its data directory is left behind, cleanly shut down, on a new timeline. The database leads: once it has
reached the target, its rows say which documents belong to it, and exactly those are placed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta

from drservice import processes
from drservice.canonical import Json
from drservice.clock import to_iso
from drservice.components.postgres.controlfile import ControlFile
from drservice.components.postgres.existing import Existing, examine
from drservice.components.postgres.placing import (
    announce_history,
    finish_cluster,
    make_target,
    place_cluster,
    require_empty,
)
from drservice.components.postgres.recovery import ARCHIVING, RecoveryLog, TargetAction
from drservice.components.postgres.server import PostgresPrograms, find_programs
from drservice.components.postgres.supplying import configuration_of, supply_configuration
from drservice.components.postgres.withholding import (
    CONTROL_NAME,
    place_control,
    take_control,
    unveil_control,
    veil_control,
    withhold_control,
)
from drservice.environments.exchange import Exchange
from drservice.environments.interface import Environment, EnvironmentSpec
from drservice.environments.isolation import require_isolated
from drservice.environments.sandbox import prepare_sandbox
from drservice.errors import DrError, ExitStatus, UsageError
from drservice.model.documents import RowsAt
from drservice.model.losses import LossReport
from drservice.model.neutralized import Neutralized
from drservice.model.recovery import TargetKind
from drservice.operations.alternatives import offering_another
from drservice.operations.causes import naming_the_cause
from drservice.operations.feeder import Feeder
from drservice.operations.filesrestore import FilesRestore, RestoredFiles
from drservice.operations.holding import held
from drservice.operations.locate import RecoveryEnd, plan_segments, planned_wal
from drservice.operations.measured import Measured, remember
from drservice.operations.odoostart import shown_folders
from drservice.operations.phases import Phases
from drservice.operations.production import database_in, endpoints_of
from drservice.operations.replay import Reached, await_connection, await_recovery, prove, start_server
from drservice.operations.replaymemory import buffers_option
from drservice.operations.restoreplan import plan_restore
from drservice.operations.restorerequest import Afterwards, Planned, RestoreContext, RestoreRequest, RestoreResult
from drservice.operations.selection import SIDE_OPTIONS, SideRestore, SideServer
from drservice.operations.tablespaces import RestoredTablespace, Tablespaces
from drservice.operations.timelines import choose_timeline
from drservice.repository.placing import Placed

_KEPT = timedelta(days=7)
_PASSING = timedelta(hours=12)
_STALL_SECONDS = 300.0


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
    _require_action(request)
    if request.neutralize:
        from drservice.operations.neutralizing import require_neutralizable  # noqa: PLC0415 - 12 modules, seldom needed

        require_neutralizable(request)
    if request.into is not None and not request.delta:
        require_empty(request.into)
    phases = Phases()
    phases.begin(context.clock)
    scope = context.repository.scope(request.service.name, request.component.name)
    with held(context.repository, scope, clock=context.clock, progress=context.progress):
        return _run(context, request, phases)


def _run(context: RestoreContext, request: RestoreRequest, phases: Phases) -> RestoreResult:
    directory = request.cluster_directory
    planned = _plan(context, request)
    onto = _examine(request, planned)
    phases.end("plan")
    # An extract destroys what it leaves running; if it is killed, the reaper has to.
    is_kept = request.afterwards is Afterwards.LEAVE_RUNNING and request.purpose != "extract"
    lifetime = _KEPT if is_kept else _PASSING
    if request.into is not None and request.files:
        make_target(request.into, processes.server_account(None))
    spec = EnvironmentSpec(
        service=request.service.name,
        purpose=request.purpose,
        data_directory=directory,
        folders=shown_folders(request.service),
        expires_at=context.clock.now() + lifetime,
        limits=request.limits,
    )
    environment = prepare_sandbox(spec, environments_dir=context.environments_dir, clock=context.clock)
    try:
        request.made(environment.id)
        with naming_the_cause(environment):
            result = _recover(context, request, planned, environment, phases, onto)
        if request.afterwards is Afterwards.STOP:
            environment.stop()
        if directory is not None and request.database is None and request.action is TargetAction.PROMOTE:
            # Not of a side restore, which never takes production's place.
            announce_history(directory, result.reached.timeline, account=processes.server_account(directory))
        if request.in_place and onto is not None:
            raw = take_control(environment.log / CONTROL_NAME, timeline=result.reached.timeline)
            place_control(onto.path, raw, account=onto.account)
    except BaseException:
        # First what must not be started, then the clean-up, which may fail by itself.
        if request.in_place and directory is not None:
            unveil_control(directory)
        elif directory is not None and (onto is None or phases.seconds["fetch"]):
            withhold_control(directory)  # before that, an existing one was not touched, or its pg_control is aside
        environment.destroy()
        raise
    if request.afterwards is Afterwards.STOP:
        environment.destroy()
    _hand_over_configuration(context, request, planned)
    if request.purpose != "mutation" and request.database is None:
        _remember(context, request, planned, result)
    _keep_losses(context, request, result)
    context.progress.done()
    return result


def _plan(context: RestoreContext, request: RestoreRequest) -> Planned:
    """Plan, and say what the latest position may lack before anything of it is restored."""
    planned = plan_restore(context, request)
    told = planned.ends.describe_latest() if planned.ends is not None else None
    if told is not None and request.target.kind is TargetKind.LATEST:
        context.progress.note(told)
    _require_stop(request, planned)
    return planned


def _keep_losses(context: RestoreContext, request: RestoreRequest, result: RestoreResult) -> None:
    """Keep the loss report on this host; that it cannot be kept is told and does not undo a recovery."""
    if not result.losses or request.purpose != "restore":
        return
    from drservice.operations.lossreport import keep_report  # noqa: PLC0415 - for services with Odoo only

    document: dict[str, Json] = {
        "environment": result.environment.id,
        "service": request.service.name,
        "made_at": to_iso(context.clock.now()),
        "target": request.target.describe(),
        "losses": [item.as_json() for item in result.losses],
    }
    try:
        keep_report(context.state_dir, result.environment.id, document)
    except OSError as error:
        context.progress.note(f"WARNING: the loss report is not kept on this host: {error}")


def _hand_over_configuration(context: RestoreContext, request: RestoreRequest, planned: Planned) -> None:
    """Put the origin's configuration beside the data; only now, so that nothing that ran in isolation could use it.

    What cannot be handed over is told and does not undo a recovery that was proven.
    """
    directory, record = request.cluster_directory, planned.resolved.plan.snapshot
    if directory is None or request.database is not None:
        return  # nobody takes such a copy into production
    try:
        configuration = configuration_of(context.repository.reader(planned.scope, record.id))
        if configuration is None:
            return
        account = processes.server_account(directory)
        folder = supply_configuration(configuration, directory, snapshot=record.id, account=account)
    except DrError as error:
        context.progress.note(f"WARNING: the configuration of the origin is not handed over: {error.message}")
        return
    lacking = f"; {len(configuration.missing)} are missing" if configuration.missing else ""
    context.progress.note(f"configuration of the origin: {len(configuration.files)} files in {folder}{lacking}")


def _require_action(request: RestoreRequest) -> None:
    """Refuse an action at the target that leads nowhere.

    Raises:
        UsageError: saying what to ask for instead.
    """
    if request.action is TargetAction.PROMOTE:
        return
    if request.database is not None or request.in_place or request.tablespaces:
        raise UsageError(f"--action {request.action.value} is for a whole cluster beside production")
    if request.action is TargetAction.PAUSE and (request.into is not None or request.afterwards is Afterwards.STOP):
        raise UsageError(
            "a paused server is one to look at: it needs --start, and no --into",
            hint="Look with --start --action pause; then restore --into DIR to the instant that was right.",
        )
    if request.action is TargetAction.SHUTDOWN and (request.into is None or request.afterwards is not Afterwards.STOP):
        raise UsageError("a cluster that shuts down at the target is left in a directory: it needs --into, no --start")
    if request.action is TargetAction.SHUTDOWN and request.files:
        raise UsageError(
            "documents follow the rows of a running database, and this one shuts down",
            hint=f"Restore the cluster alone: --component {request.component.name}.",
        )


def _require_stop(request: RestoreRequest, planned: Planned) -> None:
    """Refuse an action at a target that recovery never stops at.

    Raises:
        UsageError: it would run to the end of the WAL, where PostgreSQL promotes whatever it was told.
    """
    if request.action is not TargetAction.PROMOTE and planned.resolved.ends is RecoveryEnd.END_OF_WAL:
        raise UsageError(
            f"{request.target.describe()} is the end of the archived WAL, where PostgreSQL always promotes",
            hint=f"For --action {request.action.value} name an instant or an LSN before it, or take --action promote.",
        )


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
    probes = environment.self_test(production=endpoints_of(request.component.dsn, request.component.production_dsn))
    require_isolated(probes)
    programs = find_programs(record.postgres.server_version)
    phases.end("start")
    account = processes.server_account(None) if onto is None else onto.account
    with _naming_another(planned):
        control, placed, stripped, spaces = _place(context, request, planned, environment, phases, account, onto)
    recovered = _replay_and_prove(context, request, planned, environment, programs, control, phases, spaces)
    phases.end("check")
    files = _restore_files(context, request, environment, planned, recovered.reached, phases)
    losses = _losses(context, request, planned, recovered.reached, environment)
    neutralized = _neutralize(context, request, planned, recovered.reached, environment)
    phases.end("check")
    side = recovered.side
    return RestoreResult(
        planned=planned,
        reached=recovered.reached,
        phases=dict(phases.seconds),
        rto_seconds=phases.total(),
        environment=environment.describe(),
        kept=request.afterwards is Afterwards.LEAVE_RUNNING,
        into=request.into,
        isolation=probes,
        restored_bytes=planned.placed_bytes,
        fetched_bytes=placed.fetched_bytes,
        wal_segments=recovered.wal_segments,
        stripped_settings=stripped,
        programs=programs,
        data_checksums=record.postgres.data_checksums,
        database=side.database if side is not None else database_in(request.component.dsn),
        files=files,
        side=side,
        tablespaces=recovered.tablespaces,
        action=request.action,
        losses=losses,
        neutralized=neutralized,
    )


def _losses(
    context: RestoreContext, request: RestoreRequest, planned: Planned, reached: Reached, environment: Environment
) -> tuple[LossReport, ...]:
    """Return what was lost, of each database that Odoo's documents follow."""
    if not request.service.filestores():
        return ()
    from drservice.operations.lossreport import report_losses  # noqa: PLC0415 - for services with Odoo only

    return report_losses(context, request, planned, reached, environment)


def _neutralize(
    context: RestoreContext, request: RestoreRequest, planned: Planned, reached: Reached, environment: Environment
) -> tuple[Neutralized, ...]:
    """Neutralize the copy, if that is asked for; its failure ends the restore, and nothing is left to start."""
    if not request.neutralize:
        return ()
    from drservice.operations.neutralizing import Copy, neutralize_service  # noqa: PLC0415 - 12 modules, seldom needed

    system_id = planned.resolved.plan.snapshot.postgres.system_id
    copy = Copy(environment=environment, system_id=system_id, clock=context.clock)
    return neutralize_service(context, request, copy, instant_of_files(planned, reached))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Recovered:
    """What the replay brought."""

    reached: Reached
    wal_segments: int
    side: SideRestore | None
    tablespaces: tuple[RestoredTablespace, ...]


def _replay_and_prove(
    context: RestoreContext,
    request: RestoreRequest,
    planned: Planned,
    environment: Environment,
    programs: PostgresPrograms,
    control: ControlFile,
    phases: Phases,
    spaces: Tablespaces,
) -> _Recovered:
    promotes_to = choose_timeline(context, request, planned)
    segments = plan_segments(planned.resolved.plan, planned.archived.inventory)
    side = SideServer(environment, planned.selected.selection) if planned.selected is not None else None
    context.progress.step("replay WAL", total_items=len(segments))
    with Exchange(environment.wal) as exchange:
        feeder = Feeder(
            exchange,
            planned_wal(planned.resolved.plan, planned.archived),
            plan=planned.resolved.plan,
            inventory=planned.archived.inventory,
            progress=context.progress,
            promotes_to=promotes_to,
        )
        try:
            feeder.start()
            log = _replay(context, request, planned, environment, programs, control, feeder, side, spaces)
            if request.action is not TargetAction.SHUTDOWN:
                await_connection(environment, clock=context.clock)
            phases.end("replay")
        finally:
            feeder.stop()
        context.progress.step("prove the target")
        reached = prove(environment, log, feeder, planned.resolved, action=request.action, promotes_to=promotes_to)
        settled = side.settle() if side is not None else None
        placed_spaces = spaces.settle(programs, kept=request.cluster_directory is not None)
        if request.action is TargetAction.PAUSE:
            feeder.leave_answers()
        else:
            exchange.clear()
    return _Recovered(reached=reached, wal_segments=feeder.state.served, side=settled, tablespaces=placed_spaces)


def _replay(
    context: RestoreContext,
    request: RestoreRequest,
    planned: Planned,
    environment: Environment,
    programs: PostgresPrograms,
    control: ControlFile,
    feeder: Feeder,
    side: SideServer | None,
    spaces: Tablespaces,
) -> RecoveryLog:
    read_log = side.read if side is not None else environment.server_log
    extra = SIDE_OPTIONS if side is not None else ()

    def start() -> None:
        options = (buffers_option(request.limits), *extra, *spaces.options(programs))
        start_server(environment, programs, control, planned.resolved, action=request.action, extra=options)

    def wait() -> RecoveryLog:
        return await_recovery(
            environment,
            feeder,
            clock=context.clock,
            seconds=_STALL_SECONDS,
            action=request.action,
            read_log=read_log,
        )

    return spaces.replay(start, wait)


@contextmanager
def _naming_another(planned: Planned) -> Iterator[None]:
    """Let the error of a damaged snapshot say which other one the target can be restored from."""
    try:
        yield
    except DrError as error:
        if error.exit_status is not ExitStatus.INTEGRITY:
            raise
        raise offering_another(error, planned.resolved, planned.records, planned.archived.inventory) from error


def _place(
    context: RestoreContext,
    request: RestoreRequest,
    planned: Planned,
    environment: Environment,
    phases: Phases,
    account: processes.Account | None,
    onto: Existing | None,
) -> tuple[ControlFile, Placed, tuple[str, ...], Tablespaces]:
    record = planned.resolved.plan.snapshot
    reader = context.repository.reader(planned.scope, record.id)
    spaces = Tablespaces.of(reader, environment, planned.moved, account)
    opened = context.repository.open_snapshot(planned.scope, record.id)
    request.before_writing(planned)
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
        tablespaces=planned.moved,
    )
    phases.end("fetch")
    context.progress.step("make durable")
    if request.in_place:
        control_file = environment.log / CONTROL_NAME
        stripped = finish_cluster(
            reader, environment.data, placed, account=account, control_file=control_file, keep=ARCHIVING
        )
        veil_control(environment.data, f"/env/log/{CONTROL_NAME}")
    else:
        stripped = finish_cluster(reader, environment.data, placed, account=account)
    phases.end("place")
    return control, placed, stripped, spaces


def instant_of_files(planned: Planned, reached: Reached) -> datetime | None:
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


def _rows_at(planned: Planned, reached: Reached) -> RowsAt:
    """Return what the recovered rows show: of ``consistent`` all of the position that was asked for, and no more.

    Replay names the end of its last record, which may lie on either side of it.
    """
    plan = planned.resolved.plan
    timeline, lsn = plan.timeline, reached.lsn
    look = planned.ends.shared.look if planned.ends is not None else None
    if plan.target.kind is TargetKind.CONSISTENT and plan.target.lsn is not None and look is not None:
        timeline, lsn = look.timeline, look.lsn
    return RowsAt(
        system_id=plan.snapshot.postgres.system_id,
        timeline=timeline,
        lsn=lsn,
        instant=reached.time or plan.snapshot.stopped_at,
    )


def _restore_files(
    context: RestoreContext,
    request: RestoreRequest,
    environment: Environment,
    planned: Planned,
    reached: Reached,
    phases: Phases,
) -> tuple[RestoredFiles, ...]:
    """Place what belongs to the recovered position; the time is booked as fetching, which nearly all of it is."""
    files = FilesRestore(repository=context.repository, service=request.service, progress=context.progress)
    rows = _rows_at(planned, reached)
    restored = tuple(
        files.beside(
            environment,
            component,
            instant=instant_of_files(planned, reached),
            rows=rows,
            into=request.into / component.name if request.into is not None else None,
        )
        for component in request.files
    )
    phases.end("fetch")
    return restored
