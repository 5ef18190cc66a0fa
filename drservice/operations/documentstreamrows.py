"""What the rows of a database say of its documents, asked in short read-only transactions that nobody waits for.

A connection lives for one look: one that stayed would keep Odoo from copying, renaming or dropping its database. Which
rows changed since an earlier look is told exactly by the transactions that wrote them (``xmin``): a row that is visible
now and was not then was written by one that had not ended then. That is one scan of the table, which needs no index and
sends only what is new.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from drservice.components.odoo_filestore.names import is_document
from drservice.components.postgres.asking import cut_after
from drservice.components.postgres.connection import Session, connect
from drservice.errors import PostgresError
from drservice.model.documents import DocumentPosition
from drservice.model.ids import SystemId
from drservice.model.wal import Lsn, Timeline

_SECONDS = 30.0
_CUT_SECONDS = _SECONDS + 5.0
_BATCH = 10_000
_NAMES = "select store_fname from public.ir_attachment where store_fname is not null and store_fname <> ''"


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What a look can see, as the server numbers it."""

    snapshot: str
    """Equal for two looks: no row changed between them."""
    horizon: int
    """Every row that a later look sees and this one does not was written by this transaction or a later one."""
    changes: int
    """Rows written so far; a hint that comes seconds late."""
    source: str
    """Which table of which run of the server that is: in another, transactions say nothing of what changed."""


class Rows:
    """One look at a database; made by :func:`looking`."""

    def __init__(self, session: Session, position: DocumentPosition, view: View, *, has_table: bool) -> None:
        self._session = session
        self.position = position
        self.view = view
        self.has_table = has_table

    def all(self) -> Iterator[str]:
        """Yield every document that rows refer to; in bounded memory.

        Raises:
            PostgresError: the table cannot be read.
        """
        return self._scan(_NAMES)

    def changed(self, since: int) -> Iterator[str]:
        """Yield every document that rows refer to which were written by transaction ``since`` or a later one.

        Raises:
            PostgresError: as :meth:`all`.
        """
        return self._scan(f"{_NAMES} and age(xmin) <= age('{since % (1 << 32):d}'::xid)")

    def still(self, names: Sequence[str]) -> set[str]:
        """Return to which of some documents rows refer.

        Raises:
            PostgresError: as :meth:`all`.
        """
        found: set[str] = set()
        if not self.has_table:
            return found
        for at in range(0, len(names), _BATCH):
            with cut_after(self._session, _CUT_SECONDS):
                rows = self._session.rows(
                    "select distinct store_fname from public.ir_attachment where store_fname = any(%s)",
                    (list(names[at : at + _BATCH]),),
                )
            found.update(name for (name,) in rows)
        return found

    def uncovered(self) -> tuple[int, int]:
        """Return how many attachments are inside the database, and how many under names that no filestore has.

        Raises:
            PostgresError: as :meth:`all`.
        """
        if not self.has_table:
            return 0, 0
        with cut_after(self._session, _CUT_SECONDS):
            inside, elsewhere = self._session.row(
                "select count(*) filter (where db_datas is not null),"
                " count(*) filter (where store_fname <> '' and store_fname !~ '^([0-9a-f]{2,3})/\\1[0-9a-f]+$')"
                " from public.ir_attachment where db_datas is not null or store_fname is not null"
            )
        return int(inside), int(elsewhere)

    def _scan(self, query: str) -> Iterator[str]:
        if not self.has_table:
            return
        self._texts(f"declare looked_at no scroll cursor for {query}")
        while rows := self._texts(f"fetch {_BATCH} from looked_at"):
            # What a row calls a document is hostile text until it has a document's form.
            yield from (name for (name,) in rows if name is not None and is_document(name))
        self._texts("close looked_at")

    def _texts(self, query: str) -> list[tuple[str | None, ...]]:
        with cut_after(self._session, _CUT_SECONDS):
            return self._session.texts(query)


@contextmanager
def looking(dsn: str, database: str | None) -> Iterator[Rows]:
    """Look at the rows of a database: where it stands is read first, then what is visible is fixed.

    Raises:
        PostgresUnreachableError: no answer, or none in time.
        PostgresError: refused: no such database, no privilege, a standby.
    """
    with connect(dsn, application_name="drservice documents", database=database) as session:
        with cut_after(session, _CUT_SECONDS):
            for name, value in (
                ("statement_timeout", f"{_SECONDS:.0f}s"),
                ("lock_timeout", "2s"),
                ("idle_in_transaction_session_timeout", "10min"),
                ("row_security", "off"),  # a policy that hides rows is an error, never fewer documents
                ("client_encoding", "UTF8"),
            ):
                session.rows("select pg_catalog.set_config(%s, %s, false)", (name, value))
            position = _position(session)
            session.rows("begin transaction isolation level repeatable read, read only")
            view, has_table = _view(session)
        yield Rows(session, position, view, has_table=has_table)
        session.rows("commit")


def _position(session: Session) -> DocumentPosition:
    # The clock before the position: whoever recovers to that time has nothing that lies behind the position.
    now, system_id, is_standby = session.row(
        "select clock_timestamp(), (select system_identifier from pg_control_system()), pg_is_in_recovery()"
    )
    if is_standby:
        raise PostgresError(
            "documents are asked for at a standby, which its primary may be ahead of",
            hint="Set primary_dsn of the component that the documents follow.",
        )
    lsn, timeline = session.row(
        "select lsn::text, left(pg_walfile_name(lsn), 8) from pg_current_wal_flush_lsn() as lsn"
    )
    return DocumentPosition(
        system_id=SystemId(str(system_id)),
        timeline=Timeline(int(timeline, 16)),
        lsn=Lsn.parse(lsn),
        server_time=now,
    )


def _view(session: Session) -> tuple[View, bool]:
    # A database that took another's name has that one's age, and so has a server that was put back to an older state.
    table, source, snapshot, horizon, changes = session.row(
        "select to_regclass('public.ir_attachment') is not null,"
        " concat_ws(' ', (select oid from pg_database where datname = current_database()),"
        " to_regclass('public.ir_attachment')::oid, pg_postmaster_start_time()),"
        " seen::text, txid_snapshot_xmin(seen),"
        " coalesce((select n_tup_ins + n_tup_upd from pg_stat_all_tables"
        " where relid = to_regclass('public.ir_attachment')), 0) from txid_current_snapshot() as seen"
    )
    return View(snapshot=snapshot, horizon=int(horizon), changes=int(changes), source=source), bool(table)
