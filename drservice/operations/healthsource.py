"""What ``check`` asks about the source of a cluster's backups: a standby's primary, configuration files, programs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from drservice.components.postgres.connection import Session, connect
from drservice.components.postgres.facts import ClusterFacts, cluster_facts
from drservice.components.postgres.gathering import gather_configuration, grants_for_reading
from drservice.components.postgres.server import PostgresPrograms, require_tool
from drservice.components.postgres.standby import require_primary
from drservice.components.postgres.versions import known_problems
from drservice.errors import DrError, ProgramMissingError
from drservice.model.estate import CaptureMethod, PostgresSettings
from drservice.operations.backup import choose_method
from drservice.operations.checklist import Checklist

_NAMED = 5


@contextmanager
def asking_primary(
    component: PostgresSettings, standby: ClusterFacts, prefix: str, checklist: Checklist
) -> Iterator[tuple[Session, ClusterFacts] | None]:
    """Ask the primary of a standby, whose settings count, and answer whether backups of the standby can end in time.

    ``None`` where the primary is not known or does not answer.
    """
    name = f"{prefix}: standby"
    dsn = component.primary_dsn
    if dsn is None:
        checklist.warn(
            name,
            "dsn leads to a standby, which cannot end a WAL segment; how its primary archives cannot be looked at, and"
            " what is at risk is not known",
            "Set primary_dsn. Without it a backup waits until the primary has filled its segment: set archive_timeout"
            " there, below archive_wait.",
        )
        yield None
        return
    try:
        require_primary(dsn, standby.system_id)
        session = connect(dsn, application_name="drservice check")
    except DrError as error:
        checklist.fail(name, error.message, error.hint)
        yield None
        return
    with session:
        facts = cluster_facts(session)
        _judge_primary(name, standby, facts, checklist)
        yield session, facts


def _judge_primary(name: str, standby: ClusterFacts, primary: ClusterFacts, checklist: Checklist) -> None:
    behind = max(primary.current_lsn.value - standby.current_lsn.value, 0)
    if not primary.full_page_writes:
        checklist.fail(
            name,
            "full_page_writes is off on the primary: no standby of it can be backed up",
            "Set full_page_writes = on there, reload, and run CHECKPOINT there.",
        )
    elif not primary.privileges.switch_wal:
        checklist.warn(
            name,
            f"{primary.privileges.name} may not end a WAL segment on the primary: backups wait until it is filled",
            f"Run on the primary: GRANT EXECUTE ON FUNCTION pg_switch_wal() TO {primary.privileges.name};",
        )
    else:
        checklist.ok(name, f"{behind} bytes behind its primary, which ends its WAL segment for each backup")


def check_configuration(
    component: PostgresSettings, session: Session, facts: ClusterFacts, prefix: str, checklist: Checklist
) -> None:
    """Ask which configuration files outside the data directory each snapshot has, and which it cannot have."""
    name = f"{prefix}: configuration files"
    local = choose_method(component) is CaptureMethod.LOCAL
    with checklist.asking(name):
        found = gather_configuration(session, data_directory=component.data_directory if local else None)
        outside = f"{len(found.files)} outside the data directory, in each snapshot"
        secrets = f"; not taken: {', '.join(path for path, _ in found.left_out)}" if found.left_out else ""
        if found.missing:
            told = "; ".join(f"{path}: {reason}" for path, reason in found.missing[:_NAMED])
            checklist.warn(
                name,
                f"{len(found.missing)} are NOT in the snapshots: {told} ({outside}{secrets})",
                "Run drservice as the data directory's owner or as root on the server's host. Through the server it"
                " takes rights that let a role read every file of the server: "
                + " ".join(grants_for_reading(facts.privileges.name)),
            )
        elif found.files:
            checklist.ok(name, f"{outside}{secrets}")
        else:
            checklist.ok(name, f"in the data directory{secrets}")


def check_tools(component: PostgresSettings, facts: ClusterFacts, prefix: str, checklist: Checklist) -> None:
    """Ask for PostgreSQL's client programs that work on this cluster, and for known problems of their versions."""
    needed = ["pg_dump", "pg_restore"]
    if choose_method(component) is CaptureMethod.PG_BASEBACKUP:
        needed.insert(0, "pg_basebackup")
    for program in needed:
        name = f"{prefix}: {program}"
        try:
            programs = require_tool(program, server=facts.major)
        except ProgramMissingError as error:
            answer = checklist.fail if program == "pg_basebackup" else checklist.warn
            answer(name, error.message, error.hint)
        else:
            judge_program(program, programs, name, checklist)
    problems = known_problems("postgres", facts.major, facts.server_version % 10000)
    if problems:
        told = "; ".join(problem.describe(facts.major) for problem in problems)
        checklist.warn(f"{prefix}: server version", told, "Update the server to its newest minor version.")


def judge_program(program: str, programs: PostgresPrograms, name: str, checklist: Checklist) -> None:
    """Answer which version of a program is used, with a warning if that version has known problems."""
    where = f"{programs.major}.{programs.minor} in {programs.directory}"
    problems = programs.problems(program)
    if problems:
        told = "; ".join(problem.describe(programs.major) for problem in problems)
        checklist.warn(name, f"{where}: {told}", "Update it to the newest minor version.")
    else:
        checklist.ok(name, where)
