"""Breaches that people are told of: promises that do not hold and results that are overdue, from when they were seen.

A breach is one row from when it is first seen until it is over, so it is told once, again each day, and when it ends,
whichever node looks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import delete, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from drservice.catalogue.tables import Breach


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class BreachKey:
    """Which breach: of a service, and what of it."""

    service: str
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownBreach:
    """A breach that goes on."""

    kind: str
    title: str
    since: datetime
    """When it was first seen."""
    told_at: datetime
    told: int
    """How often."""


def known_breaches(session: Session) -> Mapping[BreachKey, KnownBreach]:
    """Return every breach that was not over when somebody last looked."""
    return {
        BreachKey(service=row.service, what=row.what): KnownBreach(
            kind=row.kind, title=row.title, since=row.since, told_at=row.told_at, told=row.told
        )
        for row in session.scalars(select(Breach))
    }


def begin_breach(session: Session, key: BreachKey, *, kind: str, title: str, since: datetime) -> None:
    """Note a breach that is told for the first time."""
    values = {"kind": kind, "title": title, "since": since, "told_at": since, "told": 1}
    session.execute(insert(Breach).values(service=key.service, what=key.what, **values))


def tell_again(session: Session, key: BreachKey, *, at: datetime) -> None:
    """Note that a breach was told once more."""
    session.execute(
        update(Breach)
        .where(Breach.service == key.service, Breach.what == key.what)
        .values(told_at=at, told=Breach.told + 1)
    )


def end_breach(session: Session, key: BreachKey) -> None:
    """Forget a breach that is over."""
    session.execute(delete(Breach).where(Breach.service == key.service, Breach.what == key.what))
