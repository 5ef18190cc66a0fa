"""How long pages and reads of the API take from a catalogue of a large estate: the part ``pages`` of ``web.py``."""

from __future__ import annotations

import http.client
import math
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import event
from sqlalchemy.engine import Engine

from benchmarks.webcatalogue import Size, fill, write_configuration
from benchmarks.webserver import Visitors, served
from drservice.catalogue.database import Database
from drservice.model.estate import Estate
from drservice.repository.keys import make_identity
from drservice.settings.loading import load
from drservice.web.app import make_app
from drservice.web.site import Site
from drservice.wiring.control_plane import open_control_plane
from tests.doubles.website import PATIENT, QUICK, Website

GOALS_MS = {"api": 100.0, "page": 200.0}
"""Of p95, one request after the other."""
_WARM = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What is asked for."""

    kind: str
    """api | page | other (measured, without a goal)."""
    path: str


def targets(service: str, run: str) -> Sequence[Target]:
    """Return every page and every read of the API that asks the catalogue."""
    api = (
        "/me", "/services", "/services?limit=200", f"/services/{service}", f"/services/{service}/points",
        f"/services/{service}/window", "/schedules", f"/schedules?service={service}", "/runs", "/runs?limit=200",
        f"/runs?service={service}", "/runs?state=failed", "/runs?state=running", "/runs?kind=drill", f"/runs/{run}",
        f"/runs/{run}/log", "/evidence/records", f"/evidence/records?service={service}",
        "/evidence/records?kind=finding", "/evidence/records/77", "/tokens", "/openapi.json",
    )  # fmt: skip
    pages = (
        "/overview", "/overview/table", "/overview?page=20", "/overview?condition=overdue", f"/overview?name={service}",
        f"/services/{service}", f"/services/{service}/preview", "/runs", "/runs?state=failed", f"/runs/{run}",
        f"/runs/{run}/live", "/evidence",
    )  # fmt: skip
    return (
        *(Target(kind="api", path=f"/api/v1{path}") for path in api),
        *(Target(kind="page", path=path) for path in pages),
        Target(kind="other", path="/metrics"),
    )


def measure(folder: Path, size: Size, *, requests: int, clients: Sequence[int]) -> dict[str, Any]:
    """Fill a catalogue, start the server, ask for everything, and return what was seen."""
    config = write_configuration(folder, size, recipient=make_identity()[1])
    estate = load(config).estate
    with open_control_plane(estate, pool_size=20) as database:
        began = time.monotonic()
        fill(database, size, now=datetime.now(UTC))
        filled = time.monotonic() - began
        service = size.names()[size.services // 2]
        asked = targets(service, _newest_run(database))
        counts = _queries(database, estate, asked)
        visitors = Visitors.make(database, count=120, roles=("viewer", "auditor", "operator", "restorer"))
        with served(config) as (host, port):
            rows: list[dict[str, Any]] = [
                {"kind": target.kind, "path": target.path, "queries": counts[target.path]}
                | _timed(host, port, target, visitors, requests=requests, clients=clients)
                for target in asked
            ]
    return {
        "services": size.services,
        "runs": size.runs,
        "records": size.records,
        "filled_seconds": round(filled, 1),
        "requests": requests,
        "targets": rows,
        "goals": [_goal(row) for row in rows if row["kind"] in GOALS_MS],
    }


def _goal(row: dict[str, Any]) -> dict[str, Any]:
    limit = GOALS_MS[row["kind"]]
    return {"goal": f"{row['path']}: p95 at most {limit:.0f} ms", "met": row["p95_ms"] <= limit}


def _timed(
    host: str, port: int, target: Target, visitors: Visitors, *, requests: int, clients: Sequence[int]
) -> dict[str, Any]:
    """Ask one after the other, then with several clients at once."""
    first, taken = _ask(host, port, target, visitors, 1)
    _ask(host, port, target, visitors, _WARM)
    _, alone = _ask(host, port, target, visitors, requests)
    found: dict[str, Any] = {"first_ms": _ms(taken[0]), "bytes": first, **_summary(alone)}
    for count in clients:
        with ThreadPoolExecutor(count) as pool:
            asked = pool.map(lambda _: _ask(host, port, target, visitors, requests)[1], range(count))
            found[f"with_{count}_clients"] = _summary([second for seconds in asked for second in seconds])
    return found


def _ask(host: str, port: int, target: Target, visitors: Visitors, times: int) -> tuple[int, list[float]]:
    """Ask so many times over one connection for each visitor; return the size of the answer and the seconds."""
    taken: list[float] = []
    size = 0
    while len(taken) < times:
        visitor = visitors.next()
        connection = http.client.HTTPConnection(host, port, timeout=60, source_address=(visitor.address, 0))
        connection.connect()
        headers = {"Authorization": f"Bearer {visitor.token}", "Accept": "text/html, application/json"}
        for _ in range(min(visitors.patience, times - len(taken))):
            began = time.perf_counter()
            connection.request("GET", target.path, headers=headers)
            answer = connection.getresponse()
            body = answer.read()
            taken.append(time.perf_counter() - began)
            if answer.status != 200:
                raise SystemExit(f"{target.path}: {answer.status} {body[:500]!r}")
            size = len(body)
        connection.close()
    return size, taken


def _queries(database: Database, estate: Estate, asked: Sequence[Target]) -> dict[str, int]:
    """Count the statements of one warm request for each target, in an application in this process."""
    site = Site(estate=estate, database=database, passwords=QUICK, rates=PATIENT)
    site.queue.install()
    website = Website(site=site, app=make_app(site))
    client = website.client(website.token("viewer", "auditor", "operator"))
    found: dict[str, int] = {}
    for target in asked:
        client.get(target.path)
        with counted() as statements:
            answer = client.get(target.path)
        if answer.status_code != httpx.codes.OK:
            raise SystemExit(f"{target.path}: {answer.status_code} {answer.text[:500]}")
        found[target.path] = len(statements)
    return found


@contextmanager
def counted() -> Iterator[list[str]]:
    """Return the statements that any engine of this process executes meanwhile."""
    statements: list[str] = []
    lock = threading.Lock()

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        with lock:
            statements.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield statements
    finally:
        event.remove(Engine, "before_cursor_execute", note)


def _newest_run(database: Database) -> str:
    with database.session() as session:
        found = session.connection().exec_driver_sql("SELECT max(id) FROM run WHERE state = 'succeeded'").scalar_one()
    return str(found)


def _summary(taken: Sequence[float]) -> dict[str, float]:
    ordered = sorted(taken)
    return {
        "median_ms": _ms(statistics.median(ordered)),
        "p95_ms": _ms(percentile(ordered, 95)),
        "p99_ms": _ms(percentile(ordered, 99)),
    }


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Return the smallest value that so many percent of sorted values do not exceed."""
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)
