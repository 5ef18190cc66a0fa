"""A standby as the source of a backup (trap T5): what makes its copy consistent, and who archives the WAL it needs.

A standby writes no WAL, so its backup has neither a checkpoint of its own nor a record that marks its end:

* It begins at the redo position of the last restartpoint, which is made when the backup starts if a newer checkpoint
  was replayed, and may be minutes old if not.
* It is consistent at the ``minRecoveryPoint`` in ``pg_control``: no page reaches the disk before that field covers it,
  so the ``pg_control`` copied *last* covers every page copied before. That very position, with its timeline, is what is
  recorded as the snapshot's end and what recovery waits for.
* Pages are whole only if the primary writes full pages. The server refuses to start or stop a backup across WAL that
  was written without; ``pg_control`` tells it of the checkpoint, too.
* It cannot switch WAL: the last segment reaches the store when the primary has filled it, at its ``archive_timeout``,
  or when the primary is asked to switch (``primary_dsn``).

Sources: PostgreSQL's ``xlog.c`` (do_pg_backup_start, do_pg_backup_stop, UpdateMinRecoveryPoint), ``xlogrecovery.c``
(read_backup_label, CheckRecoveryConsistency), documentation of pg_basebackup, "Notes".
"""

from __future__ import annotations

from dataclasses import dataclass, field

from drservice.clock import Clock
from drservice.components.postgres.backupsession import BackupSession, BackupStart
from drservice.components.postgres.connection import connect
from drservice.components.postgres.controlfile import ClusterState, ControlFile, WalLevel
from drservice.components.postgres.facts import cluster_facts, switch_wal
from drservice.errors import CaptureError, PostgresError, SystemIdentifierError
from drservice.model.ids import SystemId
from drservice.model.wal import Lsn, Timeline
from drservice.repository.folders import ByteProgress

_POLL_SECONDS = 1.0


def standby_end(control: ControlFile, *, start: Lsn, timeline: Timeline) -> Lsn:
    """Return where a copy of a standby is consistent, from the ``pg_control`` that was copied after everything else.

    Args:
        control: of the copy.
        start: where the backup began.
        timeline: of the start.

    Raises:
        CaptureError: it is not a standby's, the standby went over to another timeline meanwhile, or WAL without
            full pages is involved.
    """
    if control.state is not ClusterState.IN_ARCHIVE_RECOVERY:
        raise CaptureError(
            f"the server is a standby, but its pg_control says {control.state.name.lower().replace('_', ' ')}",
            hint="It was promoted or shut down while it was backed up; run the backup again.",
        )
    if control.wal_level is WalLevel.MINIMAL or not control.full_page_writes:
        setting = "wal_level = minimal" if control.wal_level is WalLevel.MINIMAL else "full_page_writes = off"
        raise CaptureError(
            f"the primary wrote the last checkpoint with {setting}: a copy of its standby cannot be recovered",
            hint="Correct it on the primary, run CHECKPOINT there, and back up again.",
        )
    if control.timeline != timeline or control.min_recovery_timeline != timeline:
        raise CaptureError(
            f"the backup began on timeline {timeline}, but the standby has gone on to {control.min_recovery_timeline}",
            hint="Its primary was replaced meanwhile. Run the backup again, after a CHECKPOINT on the new primary.",
        )
    if control.min_recovery_point < start or control.min_recovery_point < control.checkpoint:
        raise CaptureError(
            f"pg_control calls the copy consistent at {control.min_recovery_point}, before its own checkpoint"
            f" {control.checkpoint} (start {start}): it is not of this backup"
        )
    return control.min_recovery_point


def require_role(control: ControlFile, start: BackupStart) -> None:
    """Refuse the directory of a standby under a primary's backup, and the other way round.

    Raises:
        CaptureError: dsn and data_directory are of different servers of one cluster.
    """
    is_standbys = control.state in {ClusterState.IN_ARCHIVE_RECOVERY, ClusterState.SHUT_DOWN_IN_RECOVERY}
    if is_standbys != start.from_standby:
        server, directory = ("a standby", "a primary's") if start.from_standby else ("a primary", "a standby's")
        raise CaptureError(
            f"dsn leads to {server}, but data_directory is {directory}",
            hint="Both must be of one server: `SHOW data_directory` on the server tells its own.",
        )


@dataclass(slots=True, kw_only=True)
class Watched:
    """Progress that looks every second whether the backup can still succeed: a lost cause is not read to its end."""

    session: BackupSession
    clock: Clock
    progress: ByteProgress
    _looked: float = field(init=False)

    def __post_init__(self) -> None:
        self._looked = self.clock.monotonic()

    def advance(self, amount: int) -> None:
        """Pass ``amount`` on.

        Raises:
            CaptureError, StandbyPromotedError: as :meth:`BackupSession.check_alive`.
        """
        self.progress.advance(amount)
        now = self.clock.monotonic()
        if now - self._looked >= _POLL_SECONDS:
            self._looked = now
            self.session.check_alive()


def require_primary(dsn: str, system_id: SystemId) -> None:
    """Check that ``primary_dsn`` leads to the primary of a standby.

    Raises:
        SystemIdentifierError: it leads to another cluster.
        CaptureError: to another standby.
        PostgresError, PostgresUnreachableError: it does not answer as it should.
    """
    with connect(dsn, application_name="drservice backup") as session:
        facts = cluster_facts(session)
    if facts.system_id != system_id:
        raise SystemIdentifierError(
            f"primary_dsn leads to cluster {facts.system_id}, the standby is of cluster {system_id}",
            hint="Point primary_dsn at the primary of this standby.",
        )
    if facts.in_recovery:
        raise CaptureError(
            "primary_dsn leads to a standby",
            hint="Give it target_session_attrs=read-write and all hosts, or point it at the primary.",
        )


def switch_on_primary(dsn: str, system_id: SystemId) -> str:
    """Have the primary end its present WAL segment, so that it is archived now; return what was done, in words.

    Nothing a backup depends on: where it fails, the segment is archived later. So a refusal is told, not raised.

    Raises:
        SystemIdentifierError, CaptureError: as :func:`require_primary`.
    """
    try:
        require_primary(dsn, system_id)
        with connect(dsn, application_name="drservice backup") as session:
            end = switch_wal(session)
    except CaptureError:
        raise
    except PostgresError as error:
        return f"WARNING: the primary was not asked to switch WAL: {error.message}"
    return f"the primary ended its WAL segment at {end}"
