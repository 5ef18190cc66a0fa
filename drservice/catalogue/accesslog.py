"""The access log by days: each is closed once, in a digest that goes into the ledger and can be compared with it later.

A day is closed when it is over by the catalogue's clock, and some minutes more. Every line belongs to one digest, noted
at the line: one that comes after its day was closed is counted with the next one, which says how many such lines it
has. A day without lines has no digest.

The digest is SHA-256 over ``drservice access log v1``, a newline, the day's salt (32 bytes) and the lines in the order
of their numbers, each the canonical JSON of ``[id, at, account, token, address, method, route, service, status]`` and a
newline. The salt stays in the catalogue: nobody guesses from the ledger who was there on a quiet day.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta

from sqlalchemy import DateTime, func, select, text, update
from sqlalchemy.orm import Session

from drservice.canonical import Json, canonical_bytes
from drservice.catalogue.database import Database
from drservice.catalogue.ledgeroutbox import Waiting, put_event
from drservice.catalogue.tables import Access, AccessDay, Document
from drservice.clock import to_iso
from drservice.model.evidence import EvidenceKind
from drservice.model.ids import make_ulid

ALLOWANCE = timedelta(minutes=10)
"""After midnight, for lines whose transaction was still under way."""
TRY_TO_SIGN_IN = "page.sign-in.try"
"""The route of whose refusals there is a count of its own."""
_CONTEXT = b"drservice access log v1\n"
_BATCH = 5000
_SUCCEEDED, _REFUSED = 400, 500
"""Below the first: succeeded; below the second: refused; from there on: failed."""
_NOW = func.drservice_now(type_=DateTime(timezone=True))
_LOCK = 0x6472616363657373
"""Advisory lock of whoever closes days ("draccess")."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DayDigest:
    """A day of the access log: what its record says of the lines."""

    day: str
    lines: int
    late: int
    """Lines of earlier days that came when those were closed."""
    sha256: str
    succeeded: int
    refused: int
    failed: int
    sign_ins_refused: int
    first: datetime | None
    last: datetime | None

    def fields(self) -> Document:
        """Return what the record says."""
        return {
            "day": self.day,
            "lines": self.lines,
            "late": self.late,
            "sha256": self.sha256,
            "outcomes": {
                "succeeded": self.succeeded,
                "refused": self.refused,
                "failed": self.failed,
                "sign_ins_refused": self.sign_ins_refused,
            },
            "first": to_iso(self.first) if self.first is not None else None,
            "last": to_iso(self.last) if self.last is not None else None,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedDay:
    """A day that was closed, and where its digest stands."""

    day: str
    entry: int | None
    """``None`` while it waits to be put on record."""
    closed_at: datetime


class AccessLog:
    """The access log of a catalogue.

    Every method raises CatalogueUnreachableError when the database does not answer.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def close_days(self) -> Sequence[str]:
        """Close every day that is over, each in a transaction of its own; returns which. One process at a time does."""
        closed: list[str] = []
        while True:
            with self._database.session() as session:
                if not session.execute(text("SELECT pg_try_advisory_xact_lock(:key)"), {"key": _LOCK}).scalar_one():
                    return closed
                day = _next_over(session)
                if day is None:
                    return closed
                _close(session, day)
                closed.append(day.isoformat())

    def days(self, *, limit: int = 400) -> tuple[ClosedDay, ...]:
        """Return the days that were closed, newest first."""
        query = select(AccessDay).order_by(AccessDay.day.desc()).limit(limit)
        with self._database.session() as session:
            return tuple(
                ClosedDay(day=row.day, entry=row.entry, closed_at=row.closed_at) for row in session.scalars(query)
            )

    def digest(self, day: str) -> tuple[DayDigest, ClosedDay] | None:
        """Count a closed day's lines again, as they stand now; ``None`` if it was not closed."""
        with self._database.session() as session:
            session.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
            row = session.get(AccessDay, day)
            if row is None:
                return None
            return _digest(session, day, row.salt), ClosedDay(day=day, entry=row.entry, closed_at=row.closed_at)


def _next_over(session: Session) -> date | None:
    """Return the next day to close: the first with lines behind the last closed one, or yesterday for late lines."""
    now = session.execute(select(_NOW)).scalar_one()
    today = (now - ALLOWANCE).astimezone(UTC).date()
    last = session.execute(select(func.max(AccessDay.day))).scalar_one()
    begin = _EPOCH if last is None else _midnight(date.fromisoformat(last) + timedelta(days=1))
    uncounted = select(func.min(Access.at)).where(Access.day.is_(None), Access.at < _midnight(today))
    first: datetime | None = session.execute(uncounted.where(Access.at >= begin)).scalar_one()
    if first is not None:
        return first.astimezone(UTC).date()
    yesterday = today - timedelta(days=1)
    is_late = session.execute(uncounted).scalar_one() is not None
    return yesterday if is_late and _midnight(yesterday) >= begin else None


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)


def _close(session: Session, day: date) -> None:
    name = day.isoformat()
    session.execute(
        update(Access)
        .where(Access.day.is_(None), Access.at < _midnight(day + timedelta(days=1)))
        .values(day=name)
        .execution_options(synchronize_session=False)
    )
    salt = secrets.token_bytes(32)
    digest = _digest(session, name, salt)
    now = session.execute(select(_NOW)).scalar_one()
    event = make_ulid(now, secrets.token_bytes(10))
    session.add(AccessDay(day=name, event=event, salt=salt, sha256=digest.sha256, closed_at=now))
    put_event(
        session,
        Waiting(
            event=event,
            kind=EvidenceKind.ACCESS,
            service=None,
            run=None,
            fields={**digest.fields(), "closed_at": to_iso(now)},
        ),
    )


def _digest(session: Session, day: str, salt: bytes) -> DayDigest:
    """Read the lines of a digest once, in order."""
    columns = (
        Access.id, Access.at, Access.account, Access.token, Access.address, Access.method, Access.route,
        Access.service, Access.status,
    )  # fmt: skip
    found = session.execute(
        select(*columns).where(Access.day == day).order_by(Access.id).execution_options(yield_per=_BATCH)
    )
    midnight = _midnight(date.fromisoformat(day))
    whole = hashlib.sha256(_CONTEXT + salt)
    late = succeeded = refused = failed = sign_ins = 0
    first: datetime | None = None
    last: datetime | None = None
    for identifier, at, account, token, address, method, route, service, status in found:
        line: Json = [identifier, to_iso(at), account, token, address, method, route, service, status]
        whole.update(canonical_bytes(line) + b"\n")
        late += at < midnight
        succeeded += status < _SUCCEEDED
        refused += _SUCCEEDED <= status < _REFUSED
        failed += status >= _REFUSED
        sign_ins += route == TRY_TO_SIGN_IN and _SUCCEEDED <= status < _REFUSED
        first = at if first is None else min(first, at)
        last = at if last is None else max(last, at)
    return DayDigest(
        day=day,
        lines=succeeded + refused + failed,
        late=late,
        sha256=whole.hexdigest(),
        succeeded=succeeded,
        refused=refused,
        failed=failed,
        sign_ins_refused=sign_ins,
        first=first,
        last=last,
    )
