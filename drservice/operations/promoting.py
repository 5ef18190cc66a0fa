"""Ending the recovery of a server that is paused at its target: what ``environment promote`` does.

The feeder of the restore is gone; it left in the exchange folder whatever a promotion asks for.
"""

from __future__ import annotations

from drservice.clock import Clock
from drservice.components.postgres.connection import connect
from drservice.environments.interface import Environment
from drservice.environments.marks import refuse_marked
from drservice.errors import ProofError, ReplayError, UsageError
from drservice.model.wal import Lsn, Timeline
from drservice.operations.replay import Reached

_PROMOTE_SECONDS = 60
_POLL_SECONDS = 0.05


def promote_paused(environment: Environment, *, clock: Clock) -> Reached:
    """Promote a paused server onto a new timeline, where it stands, and prove it; it goes on running in its sandbox.

    Raises:
        NeutralizedCopyError: it was neutralized.
        UsageError: it is not paused in recovery.
        ReplayError: it did not promote within a minute.
        ProofError: it is not where it stood.
        EnvironmentFailedError, PostgresError: it does not run, or cannot be asked.
    """
    refuse_marked(environment.describe().path)
    environment.require_own_socket()
    with connect(environment.dsn, application_name="drservice promote") as session:
        in_recovery, paused, position, last = session.row(
            "select pg_is_in_recovery(), case when pg_is_in_recovery() then pg_is_wal_replay_paused() end,"
            " pg_last_wal_replay_lsn()::text, pg_last_xact_replay_timestamp()"
        )
        if not in_recovery or not paused:
            raise UsageError(
                f"the server in {environment.id} is not paused in recovery",
                hint="Only restore --action pause leaves one that is.",
            )
        session.row("select pg_promote(wait => false)")
        deadline = clock.monotonic() + _PROMOTE_SECONDS
        while session.row("select pg_is_in_recovery()")[0]:
            if clock.monotonic() > deadline:
                raise ReplayError(f"the server in {environment.id} did not promote within {_PROMOTE_SECONDS} s")
            clock.sleep(_POLL_SECONDS)
        replayed, walfile = session.row("select pg_last_wal_replay_lsn()::text, pg_walfile_name(pg_current_wal_lsn())")
    if replayed != position:
        raise ProofError(f"the server was paused at {position} and promoted at {replayed}")
    timeline = Timeline(int(walfile[:8], 16))
    text = f"promoted where it was paused, at {position}, onto timeline {timeline}"
    return Reached(lsn=Lsn.parse(position), time=last, timeline=timeline, evidence=(text,))
