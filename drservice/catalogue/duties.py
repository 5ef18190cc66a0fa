"""Duties: work on the catalogue as a whole that one node at a time does, as often as it has to be done.

Any node may do it; whoever comes first after its time has come does, and the others do nothing. What is done and that
it was done are one transaction, so a node that dies in the middle leaves it to the next.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from sqlalchemy import DateTime, func, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from drservice.catalogue.database import Database
from drservice.catalogue.tables import Duty

_NOW = func.drservice_now(type_=DateTime(timezone=True))
_LOCKS = 0x64726475
"""First half of the advisory locks of duties ("drdu"); the second is a hash of the name."""


@contextmanager
def duty(database: Database, name: str, *, every: timedelta) -> Iterator[Session | None]:
    """Give the transaction to do a duty in; ``None`` if it is not time yet, or somebody else is at it.

    A clock that was set back does not keep it from being done.

    Raises:
        CatalogueUnreachableError: nothing was done.
    """
    with database.session() as session:
        # Whoever is stopped in the middle of this must not keep the others from it.
        session.execute(text("SET LOCAL idle_in_transaction_session_timeout = '60s'"))
        is_ours = session.execute(select(func.pg_try_advisory_xact_lock(_LOCKS, func.hashtext(name)))).scalar_one()
        yield session if is_ours and _is_time(session, name, every) else None


def _is_time(session: Session, name: str, every: timedelta) -> bool:
    taken = session.execute(
        insert(Duty)
        .values(name=name, done_at=_NOW)
        .on_conflict_do_update(
            index_elements=[Duty.name],
            set_={"done_at": _NOW},
            where=(Duty.done_at <= _NOW - every) | (Duty.done_at > _NOW),
        )
        .returning(Duty.name)
    )
    return taken.scalar_one_or_none() is not None
