"""The outbox: what is to be told waits in the catalogue until its place has taken it.

* An event is told to each place once: ``UNIQUE (event, place)``; telling it again changes nothing.
* A message is written in the transaction of what it is about, if that is asked for: both happen or neither.
* Whoever holds the row delivers it (``FOR UPDATE SKIP LOCKED``), so any number of processes may deliver at once. One
  that dies between the place's answer and its own commit leaves the row to the next, and the place hears it twice:
  never not at all.
* A place that does not take a message is asked again, later and later. After the last try the message is given up, and
  that is told to every other place.

Times are the database's (``drservice_now()``).
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, cast

from sqlalchemy import CursorResult, DateTime, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from drservice import telemetry
from drservice.catalogue.database import Database
from drservice.catalogue.tables import Message
from drservice.errors import DrError
from drservice.model.estate import NotifyKind
from drservice.model.ids import make_ulid
from drservice.notify.interface import Notice, Place, Severity

_NOW = func.drservice_now(type_=DateTime(timezone=True))
_GIVEN_UP = "given-up:"
"""Events of this kind are about a message of another event; giving one up in turn is not told again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """When a message is tried again, and when no more."""

    first: timedelta = timedelta(seconds=30)
    longest: timedelta = timedelta(hours=1)
    attempts: int = 30
    """With these numbers a place may be away for a day."""

    def after(self, attempts: int) -> timedelta | None:
        """Return how long to wait after so many failed attempts; ``None`` = it is given up."""
        if attempts >= self.attempts:
            return None
        # The exponent is bounded before it is used: timedelta overflows long before a person gives up.
        wait: timedelta = self.first * 2.0 ** min(attempts - 1, 32)
        return min(wait, self.longest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    """What one call of :meth:`Outbox.deliver` did."""

    taken: int = 0
    postponed: int = 0
    given_up: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """What waits, and what nobody was told."""

    waiting: int
    oldest: datetime | None
    given_up: int


class Outbox:
    """Messages to the places of one configuration."""

    def __init__(self, database: Database, places: Sequence[Place], *, patience: Patience | None = None) -> None:
        self._database = database
        self._places = {place.name: place for place in places}
        self._patience = patience if patience is not None else Patience()

    def tell(self, notice: Notice, *, session: Session | None = None) -> int:
        """Queue a notice for each place that wants its kind and was not told of its event; returns for how many."""
        with self._in(session) as inner:
            return sum(_queue(inner, notice, place.name) for place in self._places.values() if notice.kind in place.on)

    def deliver(self, *, limit: int = 100) -> Delivered:
        """Deliver what is due, the longest-waiting first, at most ``limit`` messages; returns when nothing is.

        Raises:
            CatalogueUnreachableError: what was being delivered may be delivered again.
        """
        taken = postponed = given_up = 0
        failing: list[str] = []
        for _ in range(limit):
            with self._database.session() as session:
                row = session.scalars(
                    select(Message)
                    .where(
                        Message.delivered_at.is_(None),
                        Message.given_up_at.is_(None),
                        Message.next_attempt_at <= _NOW,
                        # A place that has just failed does not keep the others waiting.
                        Message.place.not_in(failing),
                    )
                    .order_by(Message.next_attempt_at, Message.id)
                    .limit(1)
                    .with_for_update(skip_locked=True)
                ).one_or_none()
                if row is None:
                    break
                state = self._try(session, row)
            if state != "taken":
                failing.append(row.place)
            taken += state == "taken"
            postponed += state == "postponed"
            given_up += state == "given up"
        return Delivered(taken=taken, postponed=postponed, given_up=given_up)

    def backlog(self) -> Backlog:
        """Return what waits and what was given up."""
        return backlog(self._database)

    def _try(self, session: Session, row: Message) -> str:
        attempts = row.attempts + 1
        problem = self._send(row)
        about: dict[str, Any] = {"event_name": row.event, "place": row.place, "attempts": attempts}
        if problem is None:
            _change(session, row, attempts=attempts, delivered_at=_NOW, last_error=None)
            telemetry.info("notice taken", **about)
            return "taken"
        wait = self._patience.after(attempts)
        if wait is not None:
            _change(session, row, attempts=attempts, next_attempt_at=_NOW + wait, last_error=problem)
            telemetry.warning("notice not taken", problem=problem, **about)
            return "postponed"
        _change(session, row, attempts=attempts, given_up_at=_NOW, last_error=problem)
        telemetry.error("notice given up", problem=problem, **about)
        if not row.event.startswith(_GIVEN_UP):
            self._tell_the_others(session, row, attempts, problem)
        return "given up"

    def _send(self, row: Message) -> str | None:
        """Tell the message's place; returns why it was not taken, ``None`` if it was."""
        place = self._places.get(row.place)
        if place is None:
            # Hosts learn of a new configuration one after the other: the next one may know the place.
            return f"{row.place} is not in this host's configuration"
        try:
            place.notifier.send(_notice(row))
        except DrError as error:
            return error.message
        except Exception as error:  # noqa: BLE001 - one message that breaks its notifier must not silence all others
            # Only the kind of error: nobody knows whether its words hold the place's URL.
            return f"telling {row.place} broke with {type(error).__name__}"
        return None

    def _tell_the_others(self, session: Session, row: Message, attempts: int, problem: str) -> None:
        """Tell every other place, whatever it wants to hear of: somebody was to be told and was not."""
        notice = Notice(
            event=f"{_GIVEN_UP}{row.id}",
            kind=NotifyKind.FAILURE,
            severity=Severity(row.severity),
            service=row.service,
            title=f"not told to {row.place}: {row.title}",
            body=f"{problem} ({attempts} attempts). It was to be told:\n\n{row.body}",
            next_command=row.next_command,
        )
        for name in self._places:
            if name != row.place:
                _queue(session, notice, name)

    @contextmanager
    def _in(self, session: Session | None) -> Iterator[Session]:
        if session is not None:
            yield session
            return
        with self._database.session() as own:
            yield own


def backlog(database: Database) -> Backlog:
    """Return what waits and what was given up, of all places."""
    waiting = (Message.delivered_at.is_(None), Message.given_up_at.is_(None))
    with database.session() as session:
        row = session.execute(
            select(
                func.count().filter(*waiting),
                func.min(Message.created_at).filter(*waiting),
                func.count(Message.given_up_at),
            )
        ).one()
    return Backlog(waiting=row[0], oldest=row[1], given_up=row[2])


def _queue(session: Session, notice: Notice, place: str) -> bool:
    now = session.execute(select(_NOW)).scalar_one()
    inserted = session.execute(
        insert(Message)
        .values(
            id=make_ulid(now, secrets.token_bytes(10)),
            event=notice.event,
            place=place,
            kind=notice.kind.value,
            severity=notice.severity.value,
            service=notice.service,
            title=_storable(notice.title),
            body=_storable(notice.body),
            next_command=None if notice.next_command is None else _storable(notice.next_command),
            attempts=0,
        )
        .on_conflict_do_nothing(index_elements=["event", "place"])
        .returning(Message.id)
    )
    return inserted.scalar_one_or_none() is not None


def _storable(text: str) -> str:
    """Return the text as PostgreSQL takes it: names of files may hold what is no text."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


def _change(session: Session, row: Message, **values: object) -> None:
    changed = cast(
        "CursorResult[object]", session.execute(update(Message).where(Message.id == row.id).values(**values))
    )
    assert changed.rowcount == 1, "the row is locked by this transaction"


def _notice(row: Message) -> Notice:
    return Notice(
        event=row.event,
        kind=NotifyKind(row.kind),
        severity=Severity(row.severity),
        service=row.service,
        title=row.title,
        body=row.body,
        next_command=row.next_command,
    )
