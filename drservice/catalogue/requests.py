"""What was asked over HTTP: the access log, and the answers to requests with an idempotency key."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from sqlalchemy import insert, select, update
from sqlalchemy.dialects.postgresql import insert as insert_unless_there
from sqlalchemy.orm import Session

from drservice.catalogue.database import Database
from drservice.catalogue.tables import Access, Answer

Transaction: TypeAlias = Session
"""What work writes in; pass it on, and do not end it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessEntry:
    """One request: who, from where, what, and how it ended."""

    account: str | None
    token: str | None
    address: str
    method: str
    route: str
    """The route's name, never the path: a path is text from outside."""
    service: str | None
    status: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """An answer as it was given."""

    status: int
    body: str
    headers: Mapping[str, str] = field(default_factory=dict)


class Requests:
    """The access log and the answers in a catalogue."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def log(self, entry: AccessEntry) -> None:
        """Add a request to the access log.

        Raises:
            CatalogueUnreachableError: the database does not answer; the request is not on record.
        """
        with self._database.session() as session:
            session.execute(
                insert(Access).values(
                    account=entry.account,
                    token=entry.token,
                    address=entry.address,
                    method=entry.method,
                    route=entry.route,
                    service=entry.service,
                    status=entry.status,
                )
            )

    def once(
        self, account: str, key: str, request_sha256: str, work: Callable[[Transaction], Answered]
    ) -> tuple[Answered, bool] | None:
        """Do ``work`` once for a key and return its answer, with whether it was given before.

        Work and answer are one transaction: a process that dies in between leaves neither. A second request that comes
        while the first is at work waits for it (the unique key of the first's uncommitted row holds it back) and gets
        the same answer. Work that raises leaves nothing: the key may be used again.

        Returns:
            the answer; ``None`` if the key was used for another request.
        """
        with self._database.session() as session:
            mine = session.execute(
                insert_unless_there(Answer)
                .values(account=account, key=key, request_sha256=request_sha256)
                .on_conflict_do_nothing()
                .returning(Answer.key)
            ).scalar_one_or_none()
            row = (Answer.account == account) & (Answer.key == key)
            if mine is None:
                before = session.execute(select(Answer).where(row)).scalar_one()
                if before.request_sha256 != request_sha256 or before.status is None:
                    return None
                return Answered(status=before.status, body=before.body, headers=before.headers), True
            answer = work(session)
            session.execute(
                update(Answer).where(row).values(status=answer.status, body=answer.body, headers=dict(answer.headers))
            )
            return answer, False
