"""``restore-point``: leave a name in the WAL that can be restored to, and say so only once it is archived.

Recovery stops at the first record of a name, so a name is used once per cluster: it is written down in the repository
as soon as it is in the WAL. If that WAL then does not reach the store in time the name is used up all the same: it may
arrive later.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from drservice import telemetry
from drservice.clock import Clock
from drservice.components.postgres.connection import connect
from drservice.components.postgres.facts import ClusterFacts, cluster_facts, create_restore_point, switch_wal
from drservice.errors import ObjectExistsError, RestorePointError, RestorePointNameError, WalTimeoutError
from drservice.model.estate import PostgresSettings, Service
from drservice.model.wal import WalFileName, segment_name
from drservice.operations.backup import archiver_says, refuse_unrecoverable, why_not_whole
from drservice.operations.lineage import Lineage
from drservice.operations.progress import Progress
from drservice.repository.names import NamedPoint, is_name_taken, is_point_name, publish_name
from drservice.repository.records import Scope
from drservice.repository.repository import Repository

_POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class RestorePointContext:
    """What leaving a restore point works with."""

    repository: Repository
    state_dir: Path
    clock: Clock
    progress: Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftPoint:
    """A restore point of one cluster that can be restored to."""

    component: PostgresSettings
    point: NamedPoint


def require_point_name(name: str) -> None:
    """Return if a restore point may have this name.

    Raises:
        RestorePointNameError: it may not.
    """
    if not is_point_name(name):
        raise RestorePointNameError(f"{name!r} cannot name a restore point")


def leave_restore_point(
    context: RestorePointContext, service: Service, name: str, *, component: str | None = None
) -> tuple[LeftPoint, ...]:
    """Leave a restore point in the named cluster, or in every cluster of a service, and wait until it is archived.

    Raises:
        RestorePointNameError: the name is taken or no name.
        RestorePointError: there is nothing to restore from, or not every cluster has it.
        CaptureError, UnsupportedClusterError, SystemIdentifierError: the server's WAL leads nowhere; nothing was left.
        PostgresError, PostgresUnreachableError: the server refused, or does not answer.
        WalTimeoutError: the name is in the WAL, which did not reach the store in time.
    """
    require_point_name(name)
    clusters = [service.database(component)] if component is not None else service.databases()
    if not clusters:
        raise RestorePointError(f"service {service.name} has no PostgreSQL cluster", hint="Nothing was left.")
    prepared = [(cluster, _prepare(context, service, cluster, name)) for cluster in clusters]
    left: list[LeftPoint] = []
    for cluster, facts in prepared:
        left.append(_leave(context, service, cluster, facts, name))
    context.progress.done()
    return tuple(left)


def _prepare(context: RestorePointContext, service: Service, cluster: PostgresSettings, name: str) -> ClusterFacts:
    """Ask everything that could refuse, before a name is used up in the WAL of any cluster."""
    context.progress.step(f"ask {service.name}/{cluster.name}")
    scope = context.repository.scope(service.name, cluster.name)
    context.repository.host_key.require_listed()
    with connect(cluster.production_dsn, application_name="drservice restore-point") as session:
        facts = cluster_facts(session)
    if facts.in_recovery:
        raise RestorePointError(
            f"{scope.service}/{scope.component}: dsn leads to a standby, where no restore point can be left",
            hint="Set primary_dsn of the component to the primary.",
        )
    refuse_unrecoverable(facts, cluster.wal.mode)
    Lineage(context.repository, scope, context.state_dir).require(facts.system_id)
    missing = [line for line in facts.privileges.missing_for_local_backup(facts.major) if _is_needed(line)]
    if missing:
        raise RestorePointError(f"{scope.service}/{scope.component}: the role lacks rights", hint="\n".join(missing))
    if is_name_taken(context.repository.store, scope, facts.system_id, name):
        raise RestorePointNameError(f"{scope.service}/{scope.component} has a restore point {name} already")
    usable = [
        record
        for record in context.repository.snapshots(scope).records
        if record.postgres.system_id == facts.system_id and record.postgres.stop_lsn <= facts.current_lsn
    ]
    if not usable:
        raise RestorePointError(
            f"{scope.service}/{scope.component} has no snapshot of this server that a restore could start from",
            hint=f"Nothing was left. Take one: drservice backup {service.name}.",
        )
    return facts


def _is_needed(grant: str) -> bool:
    return "pg_switch_wal" in grant or "pg_create_restore_point" in grant


def _leave(
    context: RestorePointContext, service: Service, cluster: PostgresSettings, facts: ClusterFacts, name: str
) -> LeftPoint:
    scope = context.repository.scope(service.name, cluster.name)
    context.progress.step(f"leave {name} in {service.name}/{cluster.name}")
    left_at = context.clock.now()
    with connect(cluster.production_dsn, application_name="drservice restore-point") as session:
        lsn = create_restore_point(session, name)
        point = NamedPoint(name=name, system_id=facts.system_id, timeline=facts.timeline, lsn=lsn, left_at=left_at)
        _publish(context, scope, point)
        switch_wal(session)
    _wait(context, scope, cluster, point, facts.wal_segment_bytes)
    telemetry.info("restore point left", service=service.name, component=cluster.name, name=name, lsn=str(lsn))
    return LeftPoint(component=cluster, point=point)


def _publish(context: RestorePointContext, scope: Scope, point: NamedPoint) -> None:
    repository = context.repository
    try:
        publish_name(repository.store, repository.host_key, scope, point, now=context.clock.now())
    except ObjectExistsError as error:
        raise RestorePointNameError(
            f"somebody else left a restore point {point.name} in {scope.service}/{scope.component} at the same time",
            hint="A restore to it would stop at the earlier of the two. Leave another one under a new name.",
        ) from error


def _wait(
    context: RestorePointContext, scope: Scope, cluster: PostgresSettings, point: NamedPoint, segment_bytes: int
) -> None:
    """Wait until the segment that holds the record is whole in the store."""
    number = (point.lsn.value - 1) // segment_bytes  # the position is the end of the record
    name = WalFileName.parse(segment_name(point.timeline, number, segment_bytes))
    archive = context.repository.wal(scope)
    context.progress.step(f"wait for {name.name} in the store")
    deadline = context.clock.monotonic() + cluster.wal.archive_wait.total_seconds()
    while (problem := why_not_whole(archive, name, point.system_id, segment_bytes)) is not None:
        if context.clock.monotonic() > deadline:
            raise WalTimeoutError(
                f"{name.name} with the restore point {point.name} did not reach the store whole within"
                f" {cluster.wal.archive_wait}: {problem}{archiver_says(cluster)}",
                hint="The name is used up: mend archiving, then leave another one under a new name.",
            )
        context.clock.sleep(_POLL_SECONDS)
