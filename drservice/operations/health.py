"""``check``: named yes/no questions about this host, the repository and each component, each failure with its remedy.

Nothing here changes anything so that it passes. A question that cannot be asked is failed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta

from drservice.clock import Clock
from drservice.components.postgres.connection import Session, connect
from drservice.components.postgres.controlfile import read_control_file
from drservice.components.postgres.facts import ClusterFacts, archiver_status, cluster_facts
from drservice.components.postgres.replication import identify_system
from drservice.components.postgres.server import find_programs
from drservice.components.postgres.tablespaces import named_tablespaces
from drservice.environments.interface import EnvironmentSpec
from drservice.environments.isolation import require_isolated
from drservice.environments.sandbox import prepare_sandbox
from drservice.errors import DrError
from drservice.model.estate import CaptureMethod, Estate, PostgresSettings, Service, WalMode
from drservice.objectstore.interface import CreateMode
from drservice.operations.backup import choose_method, refuse_unrecoverable
from drservice.operations.checklist import Checklist, CheckResult
from drservice.operations.evidence import Evidence
from drservice.operations.healthdocuments import check_documents
from drservice.operations.healthfiles import check_evidence, check_files
from drservice.operations.healthsource import asking_primary, check_configuration, check_tools, judge_program
from drservice.operations.healthstream import check_stream
from drservice.operations.healthwal import archive_lines, check_helper, is_ours
from drservice.operations.info import component_info
from drservice.operations.keys import check_identities
from drservice.operations.lineage import Lineage
from drservice.operations.progress import SilentProgress
from drservice.operations.storeproof import check_store_proof
from drservice.repository.repository import Repository

_PROBE_LIFETIME = timedelta(minutes=10)


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthContext:
    """What the checks look at. ``repository`` is ``None`` where it could not be opened."""

    estate: Estate
    repository: Repository
    evidence: Evidence
    clock: Clock


def run_checks(context: HealthContext, services: Sequence[Service]) -> list[CheckResult]:
    """Ask everything about the host, the repository and the given services."""
    checklist = Checklist()
    _check_store(context, checklist)
    check_store_proof(
        context.estate,
        context.repository.store.capabilities,
        context.evidence,
        clock=context.clock,
        progress=SilentProgress(),
        to=checklist,
    )
    _check_keys(context, services, checklist)
    _check_recovery_tools(context, checklist)
    check_evidence(context.evidence, context.estate, checklist)
    for service in services:
        for component in service.databases():
            prefix = f"{service.name}/{component.name}"
            _check_component(context, service, component, prefix, checklist)
            _check_repository_of(context, service, component, prefix, checklist)
        for files in service.files():
            check_files(context.repository, service, files, checklist)
            check_documents(context.estate, service, files, clock=context.clock, checklist=checklist)
    return checklist.results


def _check_store(context: HealthContext, checklist: Checklist) -> None:
    store = context.repository.store
    facts = store.capabilities
    with checklist.asking("store answers"):
        store.server_time()
        checklist.ok("store answers", store.description)
    if not facts.writable:
        checklist.warn(
            "store writable", "opened for reading only", "Fine on a recovery host; a backup host must write."
        )
    else:
        checklist.ok("store writable", "yes")
    if facts.create_mode is CreateMode.SINGLE_WRITER:
        checklist.warn(
            "create is exclusive",
            "the store ignores If-None-Match and keeps no versions: only one host may write here",
            "Use a store with conditional writes, or a versioned bucket.",
        )
    else:
        checklist.ok("create is exclusive", facts.create_mode.value)
    for warning in facts.warnings:
        checklist.warn("store weakness", warning, "See docs/reference/object-stores.md.")


def _check_keys(context: HealthContext, services: Sequence[Service], checklist: Checklist) -> None:
    settings = context.estate.repository
    with checklist.asking("this host may write"):
        key = context.repository.host_key
        checklist.ok("this host may write", f"signs as {key.host} ({key.fingerprint})")
    if len(settings.recipients) < 2:
        checklist.warn(
            "two recipients",
            "only one identity can read the backups",
            "Add a second recipient whose identity lies sealed elsewhere.",
        )
    else:
        checklist.ok("two recipients", f"{len(settings.recipients)} identities can read")
    if not settings.identities:
        checklist.ok("identity", "none here: this host writes and cannot read")
        return
    with checklist.asking("identity"):
        for service in services:
            for item in check_identities(context.repository, service):
                if item.exposed:
                    told = f"{service.name}: everybody on this machine may read {item.identity}, and so every backup"
                    checklist.warn("identity is secret", told, "Take the right away: chmod o-r FILE.")
                if item.opened or (item.key_id is None and item.recipient is not None):
                    checklist.ok("identity", f"{service.name}: {str(item.recipient)[:16]}... {item.detail}")
                else:
                    told = f"{service.name}: {item.identity} {item.detail}"
                    checklist.fail("identity", told, "Configure the right identity, or drservice keys rewrap.")


def _check_recovery_tools(context: HealthContext, checklist: Checklist) -> None:
    with checklist.asking("isolation works here"):
        spec = EnvironmentSpec(
            service=next(iter(context.estate.services)),
            purpose="probe",
            expires_at=context.clock.now() + _PROBE_LIFETIME,
        )
        environment = prepare_sandbox(
            spec, environments_dir=context.estate.state_dir / "environments", clock=context.clock
        )
        try:
            probes = environment.self_test()
        finally:
            environment.destroy()
        require_isolated(probes)
        checklist.ok("isolation works here", f"{len(probes)} ways out were tried from inside, none is open")


def _check_component(
    context: HealthContext, service: Service, component: PostgresSettings, prefix: str, checklist: Checklist
) -> None:
    method = choose_method(component)
    if method is CaptureMethod.PG_BASEBACKUP:
        with checklist.asking(f"{prefix}: server reached"):
            identity = identify_system(component.dsn, application_name="drservice check")
            checklist.ok(f"{prefix}: server reached", f"PostgreSQL {identity.server_version // 10000}, replication")
            _check_lineage(context, service, component, prefix, identity.system_id, checklist)
    with checklist.asking(f"{prefix}: settings"), connect(component.dsn, application_name="drservice check") as session:
        facts = cluster_facts(session)
        checklist.ok(f"{prefix}: settings", f"PostgreSQL {facts.major} on timeline {facts.timeline}")
        _check_lineage(context, service, component, prefix, facts.system_id, checklist)
        if facts.in_recovery:
            with asking_primary(component, facts, prefix, checklist) as primary:
                if primary is not None:
                    _check_archiving(context, service, component, *primary, prefix, checklist)
        else:
            _check_archiving(context, service, component, session, facts, prefix, checklist)
        _check_pages(facts, prefix, checklist)
        check_configuration(component, session, facts, prefix, checklist)
        check_tools(component, facts, prefix, checklist)
        with checklist.asking(f"{prefix}: tablespaces"):
            spaces = named_tablespaces(session)
            checklist.ok(f"{prefix}: tablespaces", "; ".join(map(str, spaces)) or "none but the default")
        if method is CaptureMethod.LOCAL:
            _check_local(component, facts, prefix, checklist)


def _check_lineage(
    context: HealthContext,
    service: Service,
    component: PostgresSettings,
    prefix: str,
    system_id: str,
    checklist: Checklist,
) -> None:
    name = f"{prefix}: right cluster"
    with checklist.asking(name):
        scope = context.repository.scope(service.name, component.name)
        lineage = Lineage(context.repository, scope, context.estate.state_dir)
        lineage.require(system_id)  # type: ignore[arg-type]  # decimal text from the server is a SystemId
        checklist.ok(name, f"system identifier {system_id}")


def _check_archiving(
    context: HealthContext,
    service: Service,
    component: PostgresSettings,
    session: Session,
    facts: ClusterFacts,
    prefix: str,
    checklist: Checklist,
) -> None:
    lines = archive_lines(context.estate, service, component)
    with checklist.asking(f"{prefix}: can be rolled forward"):
        refuse_unrecoverable(facts, component.wal.mode)
        checklist.ok(
            f"{prefix}: can be rolled forward", f"wal_level {facts.wal_level}, archive_mode {facts.archive_mode}"
        )
    check_stream(context.estate, service, component, session, facts, clock=context.clock, checklist=checklist)
    if component.wal.mode is WalMode.STREAM:
        return
    command = facts.archive_command
    if command is None:
        checklist.warn(
            f"{prefix}: archive_command", "this role may not see it", "GRANT pg_read_all_settings to the role."
        )
    elif is_ours(command):
        checklist.ok(f"{prefix}: archive_command", command)
    else:
        checklist.fail(
            f"{prefix}: archive_command",
            f"it does not call drservice: {command or 'empty'}",
            "Put into postgresql.conf:\n" + "\n".join(lines),
        )
    check_helper(context.estate, service, component, command, checklist)
    with checklist.asking(f"{prefix}: archiver"):
        status = archiver_status(session)
        if status.failing:
            checklist.fail(
                f"{prefix}: archiver",
                f"failed {status.failed_count} times, last with {status.last_failed}",
                "Look at PostgreSQL's log: the message of `drservice wal push` stands there.",
            )
        else:
            checklist.ok(f"{prefix}: archiver", f"last archived {status.last_archived or 'nothing yet'}")


def _check_pages(facts: ClusterFacts, prefix: str, checklist: Checklist) -> None:
    if facts.data_checksums:
        checklist.ok(f"{prefix}: page checksums", "on")
    else:
        checklist.warn(
            f"{prefix}: page checksums",
            "off: damage in data files cannot be noticed while it is backed up",
            "Stop the server and run pg_checksums --enable.",
        )


def _check_local(component: PostgresSettings, facts: ClusterFacts, prefix: str, checklist: Checklist) -> None:
    directory = component.data_directory
    assert directory is not None, "choose_method says local only with a directory"
    name = f"{prefix}: data directory"
    with checklist.asking(name):
        control = read_control_file(directory)
        if control.system_id != facts.system_id:
            checklist.fail(
                name,
                f"{directory} is cluster {control.system_id}, the dsn reaches {facts.system_id}",
                "data_directory must be the directory of the very server the dsn reaches.",
            )
        else:
            checklist.ok(name, str(directory))
    if not os.access(directory / "base", os.R_OK | os.X_OK):
        checklist.fail(f"{prefix}: readable", f"{directory} is closed to this user", "Run as its owner or as root.")
    missing = facts.privileges.missing_for_local_backup(facts.major)
    needed = [line for line in missing if "backup" in line]
    if needed:
        checklist.fail(f"{prefix}: privileges", f"{facts.privileges.name} may not back up", "Run: " + " ".join(needed))
    else:
        checklist.ok(f"{prefix}: privileges", f"{facts.privileges.name} may back up")


def _check_repository_of(
    context: HealthContext, service: Service, component: PostgresSettings, prefix: str, checklist: Checklist
) -> None:
    with checklist.asking(f"{prefix}: restorable window"):
        known = component_info(
            context.repository, service, component, state_dir=context.estate.state_dir, clock=context.clock
        )
        _judge(
            checklist,
            f"{prefix}: snapshots",
            bad=not known.snapshots,
            good=f"{len(known.snapshots)}",
            problem="there is none",
            remedy=f"Run: drservice backup {service.name}",
        )
        if known.snapshots:
            _judge(
                checklist,
                f"{prefix}: restorable window",
                bad=not known.windows or bool(known.gaps),
                good=known.windows[-1].window.describe() if known.windows else "",
                problem="; ".join(gap.describe() for gap in known.gaps) or "no snapshot has the WAL it needs",
                remedy=f"Nothing behind a gap can be reached; run: drservice backup {service.name}",
            )
            _judge_versions(known.snapshots[-1].postgres.server_version, prefix, checklist)
        for key, error in known.unreadable.items():
            checklist.fail(f"{prefix}: unreadable snapshot", f"{key}: {error.message}", error.hint)
        if known.measured is None or not known.measured.proved:
            checklist.warn(
                f"{prefix}: recovery proved",
                "never on this host: backed up is not recoverable until it was tried",
                f"Run: drservice drill {service.name}",
            )
        else:
            checklist.ok(f"{prefix}: recovery proved", f"{known.measured.restored_at}, {known.measured.target}")


def _judge_versions(major: int, prefix: str, checklist: Checklist) -> None:
    name = f"{prefix}: server programs"
    try:
        programs = find_programs(major)
    except DrError as error:
        checklist.warn(name, f"{error.message}: this host cannot restore it", error.hint)
    else:
        judge_program("postgres", programs, name, checklist)


def _judge(checklist: Checklist, name: str, *, bad: bool, good: str, problem: str, remedy: str) -> None:
    answer: Callable[[], None] = (
        (lambda: checklist.fail(name, problem, remedy)) if bad else (lambda: checklist.ok(name, good))
    )
    answer()
