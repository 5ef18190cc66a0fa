"""Environments: recovered systems on hosts, as their hosts last told.

A host tells what it has, whole and only when it has changed; what it no longer names is gone. How fresh that is, is
when the host was last seen. Only the host that has an environment can end it, by a run of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, ScalarSelect, delete, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from drservice.catalogue.database import Database
from drservice.catalogue.tables import Environment, Host, Run
from drservice.model.runs import RunKind, RunState

_UNDER_WAY = (RunState.QUEUED.value, RunState.RUNNING.value)
_MAKERS = (RunKind.RESTORE.value, RunKind.DRILL.value)
_CLOCKS_APART = timedelta(minutes=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToldEnvironment:
    """What a host tells of one environment."""

    id: str
    service: str
    purpose: str
    state: str
    dsn: str
    created_at: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentInfo(ToldEnvironment):
    """An environment as its host last told."""

    host: str
    seen_at: datetime | None
    """When its host was last seen."""
    made_by: str | None
    """The drill or restore that is still at work in it."""
    ended_by: str | None
    """The run that is about to end it."""


class Environments:
    """The environments in a catalogue.

    Every method raises CatalogueUnreachableError when the database does not answer.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def tell(self, host: str, found: Collection[ToldEnvironment]) -> None:
        """Replace what is known of a host by what it has now."""
        with self._database.session() as session:
            session.execute(
                delete(Environment).where(
                    Environment.host == host, Environment.id.not_in([each.id for each in found] or [""])
                )
            )
            for each in sorted(found, key=lambda each: each.id):
                values = {
                    "host": host,
                    "service": each.service,
                    "purpose": each.purpose,
                    "state": each.state,
                    "dsn": each.dsn,
                    "created_at": each.created_at,
                    "expires_at": each.expires_at,
                }
                session.execute(
                    insert(Environment)
                    .values(id=each.id, **values)
                    .on_conflict_do_update(index_elements=[Environment.id], set_=values)
                )

    def of(self, service: str, *, limit: int = 50) -> Sequence[EnvironmentInfo]:
        """Return the environments of a service, newest first."""
        with self._database.session() as session:
            return _read(session, Environment.service == service, limit)

    def hold(self, environment: str, *, session: Session) -> EnvironmentInfo | None:
        """Return an environment, and keep others from ending it too until the transaction ends."""
        session.execute(select(Environment.id).where(Environment.id == environment).with_for_update())
        return next(iter(_read(session, Environment.id == environment, 1)), None)

    def end_of(self, service: str, environment: str, *, session: Session) -> str | None:
        """Return the run that ends or has ended an environment of a service; none that failed or was cancelled."""
        return session.execute(
            select(Run.id)
            .where(
                Run.service == service,
                Run.kind == RunKind.DESTROY.value,
                Run.parameters["environment"].astext == environment,
                Run.state.in_([*_UNDER_WAY, RunState.SUCCEEDED.value]),
            )
            .order_by(Run.id.desc())
            .limit(1)
        ).scalar_one_or_none()


def _read(session: Session, wanted: ColumnElement[bool], limit: int) -> Sequence[EnvironmentInfo]:
    query = (
        select(Environment, Host.seen_at, _maker(), _ender())
        .outerjoin(Host, Host.name == Environment.host)
        .where(wanted)
        .order_by(Environment.id.desc())
        .limit(limit)
    )
    return [
        EnvironmentInfo(
            id=row.id,
            host=row.host,
            service=row.service,
            purpose=row.purpose,
            state=row.state,
            dsn=row.dsn,
            created_at=row.created_at,
            expires_at=row.expires_at,
            seen_at=seen_at,
            made_by=made_by,
            ended_by=ended_by,
        )
        for row, seen_at, made_by, ended_by in session.execute(query)
    ]


def _maker() -> ScalarSelect[str]:
    """Return the query of a drill or restore at work on the environment's host that was there before it."""
    return (
        select(Run.id)
        .where(
            Run.state == RunState.RUNNING.value,
            Run.kind.in_(_MAKERS),
            Run.service == Environment.service,
            Run.claimed_by == Environment.host,
            Run.started_at <= Environment.created_at + _CLOCKS_APART,
        )
        .order_by(Run.id.desc())
        .limit(1)
        .correlate(Environment)
        .scalar_subquery()
    )


def _ender() -> ScalarSelect[str]:
    return (
        select(Run.id)
        .where(
            Run.state.in_(_UNDER_WAY),
            Run.kind == RunKind.DESTROY.value,
            Run.service == Environment.service,
            Run.parameters["environment"].astext == Environment.id,
        )
        .order_by(Run.id.desc())
        .limit(1)
        .correlate(Environment)
        .scalar_subquery()
    )
