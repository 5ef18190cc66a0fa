"""The services of other hosts: their configuration, and what those hosts have reported to the catalogue.

Nothing here runs. Records have negative numbers: they are older than the ledger of the estate, so its projection, which
removes what the ledger does not hold, leaves them alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import insert
from sqlalchemy.orm import Session

from drservice.catalogue.database import Database
from drservice.catalogue.reading import Reading
from drservice.catalogue.tables import DocumentStream, Host, Point, Record, Run, RunEvent, Snapshot, WalWindow
from drservice.model.ids import make_ulid

DAY, HOUR, MINUTE = timedelta(days=1), timedelta(hours=1), timedelta(minutes=1)
GIB = 1 << 30


def _database(node: str, **more: Any) -> dict[str, Any]:
    dsn = "host=/var/run/postgresql dbname=plant user=postgres"
    return {"database": {"kind": "postgres", "dsn": dsn, "node": node}, **more}


def _documents(node: str) -> dict[str, Any]:
    return {"documents": {"kind": "directory", "path": "/var/lib/odoo/filestore", "node": node}}


def _filestore(node: str) -> dict[str, Any]:
    return {"kind": "odoo-filestore", "path": "/var/lib/odoo/filestore/crm", "database": "crm", "node": node}


ATTACHMENTS = "attachments-of-the-customer-relations-department-in-suzhou"
"""A filestore with a long name whose capture cannot go on."""
SERVICES: dict[str, Any] = {
    "erp-toledo": {
        "tier": 1,
        "owner": "it-toledo@example.com",
        "objectives": {"rpo": "30m", "rto": "30m"},
        "components": _database("toledo1", **_documents("toledo1")),
        "schedule": {"backup": "0 1 * * *", "drill": "0 6 1 1,4,7,10 *"},
    },
    "mes-toledo": {
        "tier": 1,
        "owner": "it-toledo@example.com",
        "objectives": {"rpo": "5m", "rto": "30m"},
        "components": _database("toledo1"),
        "schedule": {"backup": "30 1 * * *"},
    },
    "crm": {
        "tier": 2,
        "owner": "sales-it@example.com",
        "objectives": {"rpo": "15m", "rto": "2h"},
        "components": _database("suzhou1", **{ATTACHMENTS: _filestore("suzhou1")}),
        "schedule": {"backup": "0 2 * * *"},
    },
    "labels": {
        "tier": 3,
        "owner": "plant-it@example.com",
        "objectives": {"rpo": "2d"},
        "components": {"files": {"kind": "directory", "path": "/srv/labels", "node": "labels1"}},
        "schedule": {"backup": "0 */6 * * *"},
    },
    "reporting": {
        "tier": 3,
        "owner": "controlling@example.com",
        "components": _database("suzhou1"),
        "schedule": {"backup": "0 5 * * 6"},
    },
    "portal": {
        "tier": 2,
        "owner": "sales-it@example.com",
        "objectives": {"rpo": "1h", "rto": "4h"},
        "components": _database("portal1", sessions={"kind": "redis", "url": "redis://portal1:6379/0"}),
        "schedule": {"backup": "0 3 * * *"},
    },
}
RUNNING, FAILED, MISSED = "crm", "mes-toledo", "labels"
"""Services whose newest run is just that."""
HISTORY = "erp-toledo"
"""A service with two weeks of points, a gap in its WAL, and a drill that passed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reported:
    """Runs that a test may look at."""

    running: str
    failed: str
    missed: str


def report(database: Database) -> Reported:
    """Write what the other hosts have reported up to now."""
    now = Reading(database).now()
    with database.session() as session:
        _hosts(session, now)
        _history(session, now)
        _points(session, "mes-toledo", (now - 16 * HOUR - n * DAY for n in range(7)))
        _window(session, "mes-toledo", 1, now - 7 * DAY, now - 3 * HOUR - 12 * MINUTE)
        _drill(session, "mes-toledo", -3, now - 40 * DAY, rto=17 * MINUTE)
        _points(session, "crm", (now - 22 * HOUR - n * DAY for n in range(7)))
        _window(session, "crm", 1, now - 7 * DAY, now - 2 * MINUTE)
        _drill(session, "crm", -4, now - 80 * DAY, rto=108 * MINUTE)
        _capture(session, "crm", now)
        _points(session, "labels", (now - 11 * HOUR - n * 6 * HOUR for n in range(8)), component="files")
        _drill(session, "labels", -5, now - 60 * DAY, rto=4 * MINUTE)
        _points(session, "reporting", [now - 4 * DAY])
        _window(session, "reporting", 1, now - 4 * DAY, now - 3 * MINUTE)
        return _runs(session, now)


def _hosts(session: Session, now: datetime) -> None:
    seen = {"toledo1": now + HOUR, "suzhou1": now + HOUR, "labels1": now - 5 * HOUR}
    for name, at in seen.items():
        session.execute(insert(Host).values(name=name, incarnation="1", version="0.1.0", seen_at=at))


def _history(session: Session, now: datetime) -> None:
    _points(session, HISTORY, (now - 17 * HOUR - n * DAY for n in range(14)), verified=4)
    _window(session, HISTORY, 1, now - 14 * DAY, now - 9 * DAY)
    _window(session, HISTORY, 9, now - 8 * DAY - 7 * HOUR, now - MINUTE)
    _drill(session, HISTORY, -2, now - 12 * DAY, rto=11 * MINUTE + timedelta(seconds=24))
    _drill(session, HISTORY, -1, now - 4 * DAY, rto=9 * MINUTE + timedelta(seconds=51))


def _points(
    session: Session,
    service: str,
    times: Iterable[datetime],
    *,
    component: str = "database",
    verified: int | None = None,
) -> None:
    kind = "postgres" if component == "database" else "directory"
    for number, at in enumerate(times):
        session.execute(
            insert(Point).values(
                id=_ulid(service, at, "point"), service=service, created_at=at, state="complete",
                members={component: _ulid(service, at, "snapshot")},
                verified_at=at + 13 * HOUR if number == verified else None,
            )
        )  # fmt: skip
        session.execute(
            insert(Snapshot).values(
                id=_ulid(service, at, "snapshot"), service=service, component=component, kind=kind, method="local",
                state="complete", host="toledo1", started_at=at - 6 * MINUTE, stopped_at=at, source_bytes=48 * GIB,
                read_bytes=2 * GIB, stored_bytes=310 << 20, files=4711, facts={},
            )
        )  # fmt: skip


def _window(session: Session, service: str, lsn: int, begin: datetime, end: datetime) -> None:
    session.execute(
        insert(WalWindow).values(
            service=service, component="database", timeline=1, from_lsn=lsn << 30, to_lsn=(lsn + 6) << 30,
            from_time=begin, to_time=end,
        )
    )  # fmt: skip


def _capture(session: Session, service: str, now: datetime) -> None:
    """Write what a host told of a capture before it fell silent."""
    folder = "/var/lib/odoo/filestore/crm/0f/" + "0f5ae1c97d3b" * 3 + "ab12"
    session.execute(
        insert(DocumentStream).values(
            service=service, component=ATTACHMENTS, host="suzhou1", state="stalled",
            durable_until=now - 41 * MINUTE, seconds_at_risk=2460.0, pending=1_204, missing=12, corrupt=1,
            in_database=3, not_covered=340,
            problem=f"1204 documents or folders cannot be read, {folder}: Permission denied",
            remedy="Let the user of this process read them; it is the owner of the filestore as a rule.",
        )
    )  # fmt: skip


def _drill(session: Session, service: str, entry: int, at: datetime, *, rto: timedelta) -> None:
    session.execute(
        insert(Record).values(
            entry=entry, kind="drill", service=service, host="recovery1", run=_ulid(service, at, "run"), recorded_at=at,
            outcome="passed", sha256=f"{-entry:064x}",
            predicate={"mutation": None, "rpo_ms": 3_000, "rto_ms": int(rto.total_seconds() * 1000)},
        )
    )  # fmt: skip


def _runs(session: Session, now: datetime) -> Reported:
    for day in range(1, 8):
        at = now - day * DAY
        _run(session, "crm", at, state="succeeded", host="suzhou1", took=11 * MINUTE + timedelta(seconds=7 * day))
        _run(session, "erp-toledo", at, state="succeeded", host="toledo1", took=6 * MINUTE + timedelta(seconds=day))
    failed = _run(
        session, FAILED, now - 2 * HOUR, state="failed", host="toledo1", took=5 * MINUTE,
        error={
            "code": "DR330", "message": "00000001000000030000002B was not archived within 5 min",
            "hint": "Look at archive_command and pg_stat_archiver; `drservice check mes-toledo` does.",
            "exit_status": 1,
        },
        steps=("checkpoint", "read the data directory", "wait for the WAL"),
    )  # fmt: skip
    missed = _run(session, MISSED, now - 5 * HOUR, state="missed", host=None, took=timedelta(0))
    running = _run(
        session, RUNNING, now - 4 * MINUTE - timedelta(seconds=20), state="running", host="suzhou1", took=None,
        steps=("checkpoint", "read the data directory"),
        progress={
            "step": "read the data directory", "done": 31 * GIB, "total": 50 * GIB, "unit": "bytes",
            "rate": 128 << 20, "eta_seconds": 152,
        },
    )  # fmt: skip
    return Reported(running=running, failed=failed, missed=missed)


def _run(
    session: Session, service: str, at: datetime, *, state: str, host: str | None, took: timedelta | None,
    error: dict[str, Any] | None = None, steps: tuple[str, ...] = (), progress: dict[str, Any] | None = None,
) -> str:  # fmt: skip
    """Write a run of a schedule that was due at ``at``; ``took`` is ``None`` while it runs."""
    run, begun = _ulid(service, at, "run"), at + timedelta(seconds=2) if host else None
    ended = at + took if took is not None else None
    session.execute(
        insert(Run).values(
            id=run, service=service, kind="backup", scheduled_for=at, state=state, host=host, requested_by="schedule",
            requested_at=at, epoch=1, claimed_by=host, started_at=begun, ended_at=ended, error=error,
            lease_until=at + DAY if ended is None else None, progress=progress or {}, result=None,
        )
    )  # fmt: skip
    told: list[tuple[datetime, str, dict[str, Any]]] = [(at, "state", {"state": "queued", "requested_by": "schedule"})]
    if host is not None:
        told.append((at + timedelta(seconds=2), "state", {"state": "running", "host": host}))
    for number, step in enumerate(steps):
        told.append((at + timedelta(seconds=3 + number * 41), "step", {"name": step}))
    if ended is not None:
        told.append((ended, "state", {"state": state, "error": error}))
    for number, (when, kind, data) in enumerate(told, 1):
        session.execute(insert(RunEvent).values(run=run, number=number, at=when, epoch=1, kind=kind, data=data))
    return run


def _ulid(service: str, at: datetime, what: str) -> str:
    return make_ulid(at, hashlib.sha256(f"{service} {what}".encode()).digest()[:10])
