"""Starting PostgreSQL on placed files in an environment, replaying to the target, and proving that it was reached.

What the server's log and catalogue say is compared with the plan: consistency, where recovery stopped, the timeline.
What is not said is a failure, never assumed (traps T29, T32).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal

from drservice.clock import Clock, to_iso
from drservice.components.postgres.connection import connect
from drservice.components.postgres.controlfile import ClusterState, ControlFile, read_control_file
from drservice.components.postgres.recovery import (
    Options,
    RecoveryLog,
    ReplayKind,
    StopKind,
    TargetAction,
    empty_ident,
    interpret_log,
    isolation_options,
    local_trust_hba,
    minimal_postgresql_conf,
    recovery_options,
)
from drservice.components.postgres.server import PostgresPrograms
from drservice.components.postgres.waldump import LONG_PAGE_HEADER_BYTES
from drservice.environments.exchange import RESTORE_COMMAND, SCRIPT_NAME, fetch_script
from drservice.environments.interface import Environment
from drservice.errors import (
    EnvironmentFailedError,
    EnvironmentLimitError,
    IsolationError,
    PostgresError,
    ProofError,
    ReplayError,
)
from drservice.model.wal import Lsn, Timeline
from drservice.operations.feeder import Feeder
from drservice.operations.locate import WAL_BLOCK_BYTES, RecoveryEnd, Resolved

_POLL_SECONDS = 0.05
_FIRST_POLL_SECONDS = 0.01
"""A server that has little to replay is there in a quarter of a second: looks become rarer the longer it takes."""
_POLLS_GROW = 1.05
_CONNECT_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reached:
    """Where a recovery ended, as proven."""

    lsn: Lsn
    time: datetime | None
    """Of the last transaction replayed; ``None`` if there was none after the snapshot."""
    timeline: Timeline
    """The one the server is on: a new one if it promoted."""
    evidence: tuple[str, ...]


def start_server(
    environment: Environment,
    programs: PostgresPrograms,
    control: ControlFile,
    resolved: Resolved,
    *,
    action: TargetAction = TargetAction.PROMOTE,
    extra: Options = (),
) -> None:
    """Start PostgreSQL inside, set to replay to the target and do ``action`` there; ``extra`` options come last.

    Raises:
        EnvironmentFailedError, ProgramMissingError: it did not start.
    """
    environment.write_configuration(SCRIPT_NAME, fetch_script())
    files = {
        "config_file": environment.write_configuration("postgresql.conf", minimal_postgresql_conf({})),
        "hba_file": environment.write_configuration("pg_hba.conf", local_trust_hba()),
        "ident_file": environment.write_configuration("pg_ident.conf", empty_ident()),
    }
    plan = resolved.plan
    own = plan.timeline == plan.snapshot.postgres.timeline
    timeline: Timeline | Literal["current"] = "current" if own else plan.timeline
    options = (
        *files.items(),
        ("unix_socket_directories", "/env/sock"),
        ("port", "5432"),
        *isolation_options(control, major=programs.major),
        *recovery_options(resolved.replay, restore_command=RESTORE_COMMAND, action=action, timeline=timeline),
    )
    if plan.reach.gap is not None and programs.major >= 15:
        # Reading ahead (since version 15) would ask for the missing segment before the target is reached.
        options = (*options, ("recovery_prefetch", "off"))
    arguments = [word for name, value in (*options, *extra) for word in ("-c", f"{name}={value}")]
    environment.start([str(programs.path("postgres")), "-D", "/env/data", *arguments])


def await_recovery(
    environment: Environment,
    feeder: Feeder,
    *,
    clock: Clock,
    seconds: float,
    read_log: Callable[[], str],
    action: TargetAction = TargetAction.PROMOTE,
) -> RecoveryLog:
    """Wait until the server has done at the target what it was told; ``read_log`` returns what it has said so far.

    Raises:
        DrError: the feeder's own problem, if it caused the end.
        EnvironmentLimitError: the environment was ended for a broken limit.
        ReplayError: the server ended, or nothing happened for ``seconds``.
    """
    last_change = clock.monotonic()
    seen = (-1, -1)
    pause = _FIRST_POLL_SECONDS
    while True:
        text = read_log()
        log = interpret_log(text)
        if log.ready and (log.new_timeline is not None or (log.paused and action is TargetAction.PAUSE)):
            return log
        if not environment.running():
            environment.require_within_limits()
            log = interpret_log(read_log())
            if action is TargetAction.SHUTDOWN and log.shut_down_at_target and environment.exit_status() == 0:
                return log
            raise _ended(read_log(), feeder)
        present = (feeder.state.served, len(text))
        if present != seen:
            seen, last_change = present, clock.monotonic()
        if clock.monotonic() - last_change > seconds:
            raise ReplayError(f"the server in {environment.id} made no progress for {seconds:.0f} s: {_tail(text)}")
        clock.sleep(pause)
        pause = min(pause * _POLLS_GROW, _POLL_SECONDS)


def _ended(text: str, feeder: Feeder) -> Exception:
    log = interpret_log(text)
    if feeder.state.problem is not None:
        return feeder.state.problem
    if log.target_missed:
        return ReplayError(
            "the archived WAL ended before the target was reached", hint="`drservice info` shows the reachable window."
        )
    reason = log.fatal[-1] if log.fatal else _tail(text)
    return ReplayError(f"PostgreSQL ended during recovery: {reason}")


def _tail(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1][-300:] if lines else "its log is empty"


def prove(
    environment: Environment,
    log: RecoveryLog,
    feeder: Feeder,
    resolved: Resolved,
    *,
    action: TargetAction = TargetAction.PROMOTE,
    promotes_to: Timeline | None = None,
) -> Reached:
    """Compare what was reached with what was planned.

    Args:
        environment: where the server runs, or ended by itself (``SHUTDOWN``).
        log: what it said.
        feeder: what it asked for.
        resolved: what was planned.
        action: what it was to do at the target.
        promotes_to: the timeline that was taken for it; ``None`` = any new one.

    Raises:
        ProofError: they differ, or the server does not say.
        PostgresError: the recovered server cannot be asked.
    """
    evidence: list[str] = []
    if log.consistent_at is None:
        raise ProofError("the server did not report a consistent state")
    evidence.append(f"consistent at {log.consistent_at}")
    evidence.append(_prove_stop(log, feeder, resolved))
    match action:
        case TargetAction.PROMOTE:
            reached = _promoted(environment, log, resolved, promotes_to)
        case TargetAction.PAUSE:
            reached = _paused(environment, log, resolved)
        case TargetAction.SHUTDOWN:
            reached = _shut_down(environment, resolved)
    _prove_position(reached.lsn, resolved)
    return replace(reached, evidence=(*evidence, *reached.evidence))


def _promoted(environment: Environment, log: RecoveryLog, resolved: Resolved, promotes_to: Timeline | None) -> Reached:
    environment.require_own_socket()
    with connect(environment.dsn, application_name="drservice restore") as session:
        in_recovery, replayed, last, walfile = session.row(
            "select pg_is_in_recovery(), pg_last_wal_replay_lsn()::text, pg_last_xact_replay_timestamp(),"
            " pg_walfile_name(pg_current_wal_lsn())"
        )
    if in_recovery:
        raise ProofError("the server is still in recovery")
    timeline = Timeline(int(walfile[:8], 16))
    if timeline <= resolved.plan.timeline or timeline != log.new_timeline:
        raise ProofError(f"the server is on timeline {timeline}, planned was a new one after {resolved.plan.timeline}")
    if promotes_to is not None and timeline != promotes_to:
        raise ProofError(f"the server is on timeline {timeline}, taken for it was {promotes_to}")
    consistent = log.redo_done_at or log.consistent_at
    assert consistent is not None, "prove has asked"
    return Reached(
        lsn=Lsn.parse(replayed) if replayed else consistent,
        time=last,
        timeline=timeline,
        evidence=(f"promoted from timeline {resolved.plan.timeline} to {timeline}",),
    )


def _paused(environment: Environment, log: RecoveryLog, resolved: Resolved) -> Reached:
    if log.insufficient_parameters:
        # It pauses then wherever it is (trap T31), and that is not the target.
        raise ProofError(f"the server paused before the target: {log.insufficient_parameters[0]}")
    environment.require_own_socket()
    with connect(environment.dsn, application_name="drservice restore") as session:
        in_recovery, paused, replayed, last = session.row(
            "select pg_is_in_recovery(), case when pg_is_in_recovery() then pg_is_wal_replay_paused() end,"
            " pg_last_wal_replay_lsn()::text, pg_last_xact_replay_timestamp()"
        )
    if not in_recovery or not paused or replayed is None:
        raise ProofError(
            "the server did not pause at the target, it promoted",
            hint="PostgreSQL pauses only where people could connect already; take --action promote for this target.",
        )
    text = f"paused there, read only, on timeline {resolved.plan.timeline}"
    return Reached(lsn=Lsn.parse(replayed), time=last, timeline=resolved.plan.timeline, evidence=(text,))


def _shut_down(environment: Environment, resolved: Resolved) -> Reached:
    """Read what a server that shut down at its target left: it cannot be asked any more."""
    control = read_control_file(environment.data)
    if control.state is not ClusterState.SHUT_DOWN_IN_RECOVERY:
        raise ProofError(f"the server was to shut down in recovery, and pg_control says {control.state.name}")
    if control.min_recovery_timeline not in {0, resolved.plan.timeline}:
        found = control.min_recovery_timeline
        raise ProofError(f"the server is on timeline {found}, planned was {resolved.plan.timeline}")
    text = f"shut down there, in recovery, on timeline {resolved.plan.timeline}"
    last = max(control.min_recovery_point, resolved.plan.snapshot.postgres.stop_lsn)
    return Reached(lsn=last, time=None, timeline=resolved.plan.timeline, evidence=(text,))


def _prove_stop(log: RecoveryLog, feeder: Feeder, resolved: Resolved) -> str:
    if resolved.ends is RecoveryEnd.END_OF_WAL:
        return _prove_end_of_wal(log, feeder, resolved)
    stop, target = log.stop, resolved.plan.target
    if stop is None:
        raise ProofError(f"the server does not say that it stopped at {target.describe()}")
    match resolved.replay.kind:
        case ReplayKind.TIME:
            assert target.time is not None
            late = stop.kind in {StopKind.BEFORE_COMMIT, StopKind.BEFORE_ABORT}
            if not late or stop.at is None or stop.at <= target.time:
                raise ProofError(f"recovery stopped at {stop.kind.value} {stop.at}, which is not {target.describe()}")
            return f"stopped {stop.kind.value} of transaction {stop.xid} of {to_iso(stop.at)}"
        case ReplayKind.IMMEDIATE:
            if stop.kind is not StopKind.AT_CONSISTENCY:
                raise ProofError(f"recovery stopped at {stop.kind.value}, not at the snapshot's consistency")
            return "stopped as soon as the snapshot was consistent"
        case _:
            wanted = Lsn.parse(resolved.replay.value)
            side = StopKind.AFTER_LSN if resolved.replay.inclusive else StopKind.BEFORE_LSN
            if stop.kind is not side or stop.lsn is None or stop.lsn < wanted:
                raise ProofError(f"recovery stopped at {stop.kind.value} {stop.lsn}, planned was {side.value} {wanted}")
            return f"stopped {side.value.removesuffix(' LSN')} the record at {stop.lsn}"


def _prove_end_of_wal(log: RecoveryLog, feeder: Feeder, resolved: Resolved) -> str:
    if log.stop is not None:
        raise ProofError(f"recovery stopped at {log.stop.kind.value} although it was to reach the end of the WAL")
    if resolved.wal_end is not None:
        return f"replayed to the end of valid WAL in the last segment, {resolved.wal_end}"
    if not feeder.state.asked_past_end:
        raise ProofError("the server did not read the archived WAL to its end: a record in the middle is unreadable")
    return "replayed to the proven end of the archived WAL"


def _prove_position(reached: Lsn, resolved: Resolved) -> None:
    plan = resolved.plan
    if reached < plan.snapshot.postgres.stop_lsn:
        raise ProofError(f"replay ended at {reached}, before the snapshot's end {plan.snapshot.postgres.stop_lsn}")
    if reached > plan.reach.end:
        raise ProofError(f"replay ended at {reached}, behind everything the plan provides ({plan.reach.end})")
    if resolved.wal_end is not None and _behind_header(reached) < resolved.wal_end:
        raise ProofError(f"replay ended at {reached}, before the end of valid WAL at {resolved.wal_end}")


def _behind_header(position: Lsn) -> Lsn:
    """Return where the next record can begin: at the beginning of a page stands its header."""
    return position + LONG_PAGE_HEADER_BYTES if position.value % WAL_BLOCK_BYTES == 0 else position


def await_connection(environment: Environment, *, clock: Clock) -> None:
    """Wait until the server takes connections.

    Raises:
        PostgresError, EnvironmentFailedError: it does not within a minute, or it ended.
        IsolationError: what listens there is not its own socket.
    """
    deadline = clock.monotonic() + _CONNECT_SECONDS
    pause = _FIRST_POLL_SECONDS
    while True:
        try:
            environment.require_own_socket()
            connect(environment.dsn, application_name="drservice restore").close()
        except (IsolationError, EnvironmentLimitError):
            raise
        except (PostgresError, EnvironmentFailedError):
            # A server that was just started has no socket yet.
            if clock.monotonic() > deadline or not environment.running():
                raise
            clock.sleep(pause)
            pause = min(pause * _POLLS_GROW, _POLL_SECONDS)
        else:
            return


def restart_server(environment: Environment, programs: PostgresPrograms, *, clock: Clock) -> None:
    """Start a recovered server again that was stopped on purpose, as isolated as before and without any recovery.

    Raises:
        EnvironmentFailedError, PostgresError: it does not start.
    """
    options = (
        ("config_file", "/env/conf/postgresql.conf"),
        ("hba_file", "/env/conf/pg_hba.conf"),
        ("ident_file", "/env/conf/pg_ident.conf"),
        ("unix_socket_directories", "/env/sock"),
        ("port", "5432"),
        *isolation_options(read_control_file(environment.data), major=programs.major),
    )
    arguments = [word for name, value in options for word in ("-c", f"{name}={value}")]
    environment.start([str(programs.path("postgres")), "-D", "/env/data", *arguments])
    await_connection(environment, clock=clock)
