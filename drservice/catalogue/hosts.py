"""Hosts: who holds a name, and when it was last seen.

A name belongs to one process, told apart by its incarnation. By the database's clock it stays with it until it leaves
or was silent for too long; a process that proves that its predecessor is dead need not wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import DateTime, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert

from drservice.catalogue.database import Database
from drservice.catalogue.tables import Host

_NOW = func.drservice_now(type_=DateTime(timezone=True))
_NOBODY = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostInfo:
    """A host as it was last seen."""

    name: str
    version: str
    started_at: datetime
    seen_at: datetime
    is_held: bool
    """Whether a process holds the name, or the last one left it in order."""


class Hosts:
    """The hosts in a catalogue.

    Every method raises CatalogueUnreachableError when the database does not answer.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def register(
        self, name: str, incarnation: str, version: str, *, silence: timedelta, dead: str | None = None
    ) -> bool:
        """Take a name; ``False`` if another process holds it.

        Args:
            name: of the host.
            incarnation: of this process; unlike any other.
            version: of the program.
            silence: a holder that was not seen for so long has lost the name.
            dead: how incarnations begin whose process is known to be dead.
        """
        free = [Host.incarnation.in_([_NOBODY, incarnation]), Host.seen_at < _NOW - silence]
        if dead is not None:
            free.append(Host.incarnation.startswith(dead, autoescape=True))
        values = {"incarnation": incarnation, "version": version, "started_at": _NOW, "seen_at": _NOW}
        statement = insert(Host).values(name=name, **values)
        with self._database.session() as session:
            taken = session.execute(
                statement.on_conflict_do_update(index_elements=[Host.name], set_=values, where=or_(*free)).returning(
                    Host.name
                )
            ).scalar_one_or_none()
            return taken is not None

    def seen(self, name: str, incarnation: str) -> bool:
        """Note that the holder of a name is alive; ``False`` if another process holds it now."""
        with self._database.session() as session:
            return (
                session.execute(
                    update(Host)
                    .where(Host.name == name, Host.incarnation == incarnation)
                    .values(seen_at=_NOW)
                    .returning(Host.name)
                ).scalar_one_or_none()
                is not None
            )

    def leave(self, name: str, incarnation: str) -> None:
        """Give a name up, unless another process holds it by now."""
        with self._database.session() as session:
            session.execute(
                update(Host)
                .where(Host.name == name, Host.incarnation == incarnation)
                .values(incarnation=_NOBODY, seen_at=_NOW)
            )

    def list(self) -> Sequence[HostInfo]:
        """Return every host that was ever seen, by name."""
        with self._database.session() as session:
            return [
                HostInfo(
                    name=row.name,
                    version=row.version,
                    started_at=row.started_at,
                    seen_at=row.seen_at,
                    is_held=row.incarnation != _NOBODY,
                )
                for row in session.scalars(select(Host).order_by(Host.name))
            ]
