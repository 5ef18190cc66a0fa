"""What a server says about itself: settings, position, rights of the role, archiver; and the few things asked of it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from drservice.components.postgres.connection import Session
from drservice.model.ids import SystemId
from drservice.model.wal import Lsn, Timeline


@dataclass(frozen=True, slots=True, kw_only=True)
class TablespaceFacts:
    """An extra tablespace."""

    oid: int
    location: str
    in_place: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RolePrivileges:
    """What the session's role may do."""

    name: str
    superuser: bool
    replication: bool
    backup: bool
    """May call both ``pg_backup_start`` and ``pg_backup_stop``."""
    switch_wal: bool
    restore_point: bool
    read_all_settings: bool

    def missing_for_local_backup(self, major: int) -> tuple[str, ...]:
        """Return the GRANT lines that a ``local`` backup still needs; empty if none."""
        lines: list[str] = []
        if not self.backup and major >= 15:
            lines += [
                f"GRANT EXECUTE ON FUNCTION pg_backup_start(text, boolean) TO {self.name};",
                f"GRANT EXECUTE ON FUNCTION pg_backup_stop(boolean) TO {self.name};",
            ]
        elif not self.backup:
            lines += [
                f"GRANT EXECUTE ON FUNCTION pg_start_backup(text, boolean, boolean) TO {self.name};",
                f"GRANT EXECUTE ON FUNCTION pg_stop_backup(boolean, boolean) TO {self.name};",
            ]
        if not self.switch_wal:
            lines.append(f"GRANT EXECUTE ON FUNCTION pg_switch_wal() TO {self.name};")
        if not self.restore_point:
            lines.append(f"GRANT EXECUTE ON FUNCTION pg_create_restore_point(text) TO {self.name};")
        if not self.read_all_settings:
            lines.append(f"GRANT pg_read_all_settings TO {self.name};")
        return tuple(lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterFacts:
    """What a server says about itself. ``None``: the role may not see it."""

    server_version: int
    system_id: SystemId
    in_recovery: bool
    timeline: Timeline
    current_lsn: Lsn
    """Primary: flushed WAL. Standby: replayed WAL."""
    data_directory: str | None
    config_file: str | None
    hba_file: str | None
    ident_file: str | None
    wal_level: str
    archive_mode: str
    archive_command: str | None
    full_page_writes: bool
    data_checksums: bool
    wal_segment_bytes: int
    block_bytes: int
    max_wal_senders: int
    tablespaces: tuple[TablespaceFacts, ...]
    privileges: RolePrivileges

    @property
    def major(self) -> int:
        """The major version."""
        return self.server_version // 10000


def cluster_facts(session: Session) -> ClusterFacts:
    """Ask the server everything a backup has to know before it begins.

    Raises:
        PostgresError, PostgresUnreachableError: as :meth:`Session.rows`.
    """
    # The view shows a role only what it may see, where current_setting() would fail.
    settings = {
        str(name): str(value)
        for name, value in session.rows(
            "select name, setting from pg_settings where name in ('data_directory', 'config_file',"
            " 'hba_file', 'ident_file', 'wal_level', 'archive_mode', 'archive_command', 'full_page_writes',"
            " 'data_checksums', 'wal_segment_size', 'block_size', 'max_wal_senders')"
        )
    }
    system_id, in_recovery = session.row("select system_identifier::text, pg_is_in_recovery() from pg_control_system()")
    # system_identifier is a bigint in SQL but an unsigned number everywhere else.
    unsigned = int(system_id) % (1 << 64)
    timeline, lsn = wal_position(session, standby=bool(in_recovery))
    tablespaces = session.rows(
        "select oid, pg_tablespace_location(oid) from pg_tablespace"
        " where spcname not in ('pg_default', 'pg_global') order by oid"
    )
    return ClusterFacts(
        server_version=session.server_version,
        system_id=SystemId(str(unsigned)),
        in_recovery=bool(in_recovery),
        timeline=timeline,
        current_lsn=lsn,
        data_directory=settings.get("data_directory"),
        config_file=settings.get("config_file"),
        hba_file=settings.get("hba_file"),
        ident_file=settings.get("ident_file"),
        wal_level=settings["wal_level"],
        archive_mode=settings["archive_mode"],
        archive_command=settings.get("archive_command"),
        full_page_writes=settings["full_page_writes"] == "on",
        data_checksums=settings["data_checksums"] == "on",
        wal_segment_bytes=int(settings["wal_segment_size"]),
        block_bytes=int(settings["block_size"]),
        max_wal_senders=int(settings["max_wal_senders"]),
        tablespaces=tuple(
            TablespaceFacts(oid=int(oid), location=str(place), in_place=not str(place).startswith("/"))
            for oid, place in tablespaces
        ),
        privileges=_privileges(session),
    )


def wal_position(session: Session, *, standby: bool) -> tuple[Timeline, Lsn]:
    """Return timeline and position of a server: what a primary has flushed, what a standby has replayed."""
    if standby:
        timeline, lsn = session.row(
            "select greatest(c.timeline_id, r.min_recovery_end_timeline),"
            " coalesce(pg_last_wal_replay_lsn(), c.redo_lsn)::text"
            " from pg_control_checkpoint() c, pg_control_recovery() r"
        )
        return Timeline(int(timeline)), Lsn.parse(lsn)
    # pg_control lags behind a promotion; the name of the present segment does not.
    name, lsn = session.row("select pg_walfile_name(pg_current_wal_lsn()), pg_current_wal_flush_lsn()::text")
    return Timeline(int(name[:8], 16)), Lsn.parse(lsn)


def _privileges(session: Session) -> RolePrivileges:
    if session.major >= 15:
        backup = session.row(
            "select has_function_privilege('pg_backup_start(text, boolean)', 'execute')"
            " and has_function_privilege('pg_backup_stop(boolean)', 'execute')"
        )[0]
    else:
        backup = session.row(
            "select has_function_privilege('pg_start_backup(text, boolean, boolean)', 'execute')"
            " and has_function_privilege('pg_stop_backup(boolean, boolean)', 'execute')"
        )[0]
    name, superuser, replication, switch, point, read = session.row(
        "select quote_ident(rolname), rolsuper, rolreplication,"
        " has_function_privilege('pg_switch_wal()', 'execute'),"
        " has_function_privilege('pg_create_restore_point(text)', 'execute'),"
        " pg_has_role('pg_read_all_settings', 'usage') from pg_roles where rolname = current_user"
    )
    return RolePrivileges(
        name=name,
        superuser=superuser,
        replication=replication,
        backup=bool(backup),
        switch_wal=switch,
        restore_point=point,
        read_all_settings=read,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiverStatus:
    """``pg_stat_archiver``: what archive_command did so far."""

    archived_count: int
    last_archived: str | None
    last_archived_at: datetime | None
    failed_count: int
    last_failed: str | None
    last_failed_at: datetime | None

    @property
    def failing(self) -> bool:
        """Whether the last attempt failed."""
        if self.last_failed_at is None:
            return False
        return self.last_archived_at is None or self.last_failed_at > self.last_archived_at


def archiver_status(session: Session) -> ArchiverStatus:
    """Return what the archiver reports."""
    row = session.row(
        "select archived_count, last_archived_wal, last_archived_time, failed_count, last_failed_wal,"
        " last_failed_time from pg_stat_archiver"
    )
    return ArchiverStatus(
        archived_count=row[0],
        last_archived=row[1],
        last_archived_at=row[2],
        failed_count=row[3],
        last_failed=row[4],
        last_failed_at=row[5],
    )


def switch_wal(session: Session) -> Lsn:
    """End the present WAL segment, so that it is archived; return the end of its last record."""
    return Lsn.parse(session.row("select pg_switch_wal()::text")[0])


def create_restore_point(session: Session, name: str) -> Lsn:
    """Write a named restore point into the WAL and return its position."""
    return Lsn.parse(session.row("select pg_create_restore_point(%s)::text", (name,))[0])


def current_snapshot_xmax(session: Session) -> int:
    """Return the first transaction id (64 bits) that has not begun as seen by a new snapshot."""
    return int(session.row("select pg_snapshot_xmax(pg_current_snapshot())::text")[0])
