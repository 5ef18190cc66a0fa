"""A whole web application over a real catalogue, with an estate and rows to look at.

website = Website.over(server.database(), state_dir=tmp_path)
website.fill()                                            # points, WAL with a gap, drills, runs of `erp`
client = website.client()                                 # nobody
client = website.client(website.token("operator"))        # a program
client = website.browser("operator")                      # somebody who has signed in; sends Origin as browsers do
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
from argon2 import PasswordHasher
from sqlalchemy import insert, text
from starlette.types import ASGIApp

from drservice.catalogue.accounts import TokenRequest
from drservice.catalogue.database import Database
from drservice.catalogue.environments import Environments, ToldEnvironment
from drservice.catalogue.tables import Host, Point, Record, Snapshot, WalWindow
from drservice.model.estate import (
    DrillPlan,
    Estate,
    FilesKind,
    FilesSettings,
    Objectives,
    PostgresSettings,
    RepositorySettings,
    Schedules,
    Service,
)
from drservice.model.ids import ComponentName, ServiceName, make_ulid
from drservice.model.schedule import Cron
from drservice.web.app import make_app
from drservice.web.auth.identity import csrf_word, new_secret
from drservice.web.auth.passwords import Passwords
from drservice.web.site import Rates, Site

URL = "https://testserver"
PASSWORD = "correct horse battery"
ROLES = ("viewer", "auditor", "operator", "restorer", "approver", "admin")
QUICK = Passwords(PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
PATIENT = Rates(address_per_second=1e6, address_burst=10**6, account_per_second=1e6, account_burst=10**6)


def make_estate(state_dir: Path) -> Estate:
    """Return an estate of three services: ``erp`` (cluster, documents), ``reporting`` and ``archive``."""
    erp = Service(
        name=ServiceName("erp"),
        tier=1,
        owner="plant-it@example.com",
        objectives=Objectives(rpo=timedelta(seconds=60), rto=timedelta(minutes=30)),
        components={
            ComponentName("database"): PostgresSettings(name=ComponentName("database"), dsn="host=db1 dbname=plant"),
            ComponentName("documents"): FilesSettings(
                name=ComponentName("documents"),
                kind=FilesKind.ODOO_FILESTORE,
                path=Path("/srv/documents"),
                database="plant",
                follows=ComponentName("database"),
                stream=True,
            ),
        },
        schedule=Schedules(backup=Cron.parse("0 1 * * *"), drill=Cron.parse("0 6 1 1,4,7,10 *")),
    )
    reporting = Service(
        name=ServiceName("reporting"),
        tier=2,
        components={
            ComponentName("database"): PostgresSettings(name=ComponentName("database"), dsn="host=db2 dbname=reports")
        },
    )
    archive = Service(
        name=ServiceName("archive"),
        components={
            ComponentName("files"): FilesSettings(
                name=ComponentName("files"), kind=FilesKind.DIRECTORY, path=Path("/srv/archive")
            )
        },
    )
    return Estate(
        source=state_dir / "drservice.yaml",
        state_dir=state_dir,
        repository=RepositorySettings(url=f"file://{state_dir}/repository"),
        services={service.name: service for service in (erp, reporting, archive)},
        drills={"erp-quarterly": DrillPlan(name="erp-quarterly", service=ServiceName("erp"))},
    )


class InProcess(httpx.BaseTransport):
    """Hands each request to an application in this process, without a socket; an answer comes when it is whole."""

    def __init__(self, app: ASGIApp, *, address: str, raises: bool) -> None:
        self._transport = httpx.ASGITransport(
            app=app,
            raise_app_exceptions=raises,
            client=(address, 50_000),
        )

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return asyncio.run(self._answer(request))

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        answer = await self._transport.handle_async_request(request)
        body = await answer.aread()
        return httpx.Response(answer.status_code, headers=answer.headers, content=body, request=request)


@dataclass(slots=True, kw_only=True)
class Website:
    """The application and what it stands on."""

    site: Site
    app: ASGIApp

    @classmethod
    def over(cls, database: Database, *, state_dir: Path, rates: Rates = PATIENT) -> Website:
        """Make the application; rates are out of the way unless a test asks for them."""
        site = Site(estate=make_estate(state_dir), database=database, passwords=QUICK, rates=rates)
        site.queue.install()
        return cls(site=site, app=make_app(site))

    def account(self, name: str, *roles: str, services: tuple[str, ...] = ()) -> None:
        """Add an account with the usual password."""
        assert self.site.identity.accounts.add(name, QUICK.hash(PASSWORD), roles=roles, services=services)

    def token(self, *roles: str, services: tuple[str, ...] = (), lifetime: timedelta = timedelta(hours=1)) -> str:
        """Return the secret of a token of an account that is made for it."""
        secret, sha256 = new_secret()
        name = f"robot-{secret[4:12].lower().replace('_', 'x').replace('-', 'x')}"
        self.account(name, *roles, services=services)
        request = TokenRequest(
            kind="api", name="test", account=name, roles=roles, services=services, lifetime=lifetime,
            secret_sha256=sha256,
        )  # fmt: skip
        assert self.site.identity.accounts.issue(request) is not None
        return secret

    def client(self, token: str | None = None, *, address: str = "192.0.2.1", raises: bool = True) -> httpx.Client:
        """Return a client, of nobody without a token; ``raises``: what the application lets through is raised here."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        transport = InProcess(self.app, address=address, raises=raises)
        return httpx.Client(transport=transport, base_url=URL, headers=headers, timeout=30)

    def browser(self, name: str, *roles: str, services: tuple[str, ...] = ()) -> httpx.Client:
        """Return a client that has signed in; ``name`` is the role too unless roles are given."""
        self.account(name, *(roles or (name,)), services=services)
        client = self.client()
        client.headers["Origin"] = URL
        answer = client.post("/sign-in", data={"name": name, "password": PASSWORD})
        assert answer.status_code == 303, answer.text
        return client

    def fill(self) -> None:
        """Let the catalogue know something of ``erp``."""
        fill(self.site.database)


def csrf(client: httpx.Client) -> str:
    """Return the word that a signed-in client's changes have to carry."""
    return csrf_word(client.cookies["__Host-drservice"])


def ulid(instant: datetime, number: int = 0) -> str:
    """Return a ULID that says when."""
    return make_ulid(instant, number.to_bytes(10, "big"))


def fill(database: Database, service: str = "erp") -> None:
    """Write what a week of backups, a gap in the WAL and two drills leave behind."""
    now = datetime.now(UTC)
    with database.session() as session:
        session.execute(insert(Host).values(name="db1", incarnation="1", version="0.1.0"))
        for day in range(7, 0, -1):
            at = now - timedelta(days=day - 1, hours=1)
            session.execute(insert(Point).values(**_point(service, at, verified=day == 3)))
            for component, kind in (("database", "postgres"), ("documents", "odoo-filestore")):
                session.execute(insert(Snapshot).values(**_snapshot(service, component, kind, at)))
        for begin, end, lsn in ((168, 100, 1), (96, 0, 9)):
            session.execute(
                insert(WalWindow).values(
                    service=service, component="database", timeline=1, from_lsn=lsn << 24, to_lsn=(lsn + 6) << 24,
                    from_time=now - timedelta(hours=begin), to_time=now - timedelta(hours=end, seconds=4),
                )
            )  # fmt: skip
        for entry, outcome, ago in ((1, "failed", timedelta(days=4)), (2, "passed", timedelta(hours=2))):
            session.execute(insert(Record).values(**_drill(service, entry, outcome, now - ago)))


def tell_environment(database: Database, service: str = "erp", *, host: str = "db1", state: str = "running") -> str:
    """Let a host tell the catalogue of one environment, and return its id."""
    now = datetime.now(UTC)
    identifier = ulid(now, 7)
    Environments(database).tell(
        host,
        [
            ToldEnvironment(
                id=identifier, service=service, purpose="restore", state=state, dsn=f"host=/run/{identifier} dbname=x",
                created_at=now, expires_at=now + timedelta(hours=8),
            )
        ],
    )  # fmt: skip
    return identifier


def _point(service: str, at: datetime, *, verified: bool) -> dict[str, Any]:
    return {
        "id": ulid(at), "service": service, "created_at": at, "state": "complete",
        "members": {"database": ulid(at, 1), "documents": ulid(at, 2)},
        "verified_at": at + timedelta(hours=6) if verified else None,
    }  # fmt: skip


def _snapshot(service: str, component: str, kind: str, at: datetime) -> dict[str, Any]:
    return {
        "id": ulid(at, 1 if kind == "postgres" else 2), "service": service, "component": component, "kind": kind,
        "method": "local", "state": "complete", "host": "db1", "started_at": at - timedelta(minutes=3),
        "stopped_at": at, "source_bytes": 12_345_678_901, "read_bytes": 45_678_901, "stored_bytes": 9_876_543,
        "files": 4711, "facts": {},
    }  # fmt: skip


def _drill(service: str, entry: int, outcome: str, at: datetime) -> dict[str, Any]:
    return {
        "entry": entry, "kind": "drill", "service": service, "host": "db1", "run": ulid(at), "recorded_at": at,
        "outcome": outcome, "sha256": f"{entry:064x}",
        "predicate": {"mutation": None, "rpo_ms": 0, "rto_ms": 372_000, "outcome": outcome},
    }  # fmt: skip


def set_clock(database: Database, shift: timedelta) -> None:
    """Let the catalogue's clock run ahead of the machine's."""
    with database.connection() as connection:
        connection.execute(
            text(
                "CREATE OR REPLACE FUNCTION drservice_now() RETURNS timestamptz LANGUAGE sql VOLATILE"
                f" AS $$SELECT clock_timestamp() + interval '{shift.total_seconds()} seconds'$$"
            )
        )
