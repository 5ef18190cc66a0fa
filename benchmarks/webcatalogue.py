"""A catalogue as a large estate has it after a month: for benchmarks of what pages and API read, and for tests of them.

    size = Size(services=1000, runs=100_000, records=10_000)
    config = write_configuration(folder, size)          # a configuration file of that many services
    fill(database, size, now=datetime.now(UTC))          # points, windows, snapshots, runs with events, records

Rows are as the program writes them: results of runs, predicates with two dozen checks, members of points. What is
random comes from a fixed seed, so every catalogue of one size is the same but for its times.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

from drservice.catalogue.database import Database
from drservice.clock import to_iso
from drservice.model.ids import make_ulid

DAY = timedelta(days=1)
POINTS = 30
"""Per service, one a day."""
_CHECKS = 24
_EVENTS = 4
_KINDS = ("backup", "verify", "drill")


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much there is."""

    services: int = 1000
    runs: int = 100_000
    records: int = 10_000

    def names(self) -> Sequence[str]:
        """Return the services' names."""
        return [f"service-{number:04d}" for number in range(self.services)]


def write_configuration(folder: Path, size: Size, *, recipient: str) -> Path:
    """Write the configuration file of the estate (JSON is YAML)."""
    state = folder / "state"
    state.mkdir(exist_ok=True)
    hosts = [f"db{number}" for number in range(20)]
    services = {
        name: {
            "tier": 1 + number % 3,
            "owner": f"plant-{number % 40}@example.com",
            "objectives": {"rpo": "5m", "rto": "30m"},
            "calendar": "plant",
            "components": {
                "database": {"kind": "postgres", "dsn": f"host={hosts[number % 20]} dbname={name}"},
                "documents": {
                    "kind": "odoo-filestore",
                    "path": f"/srv/{name}",
                    "database": "x",
                    "node": hosts[number % 20],
                },
            },
            "schedule": {
                "backup": f"{number % 60} {number % 5} * * *",
                "verify": f"{number % 60} {5 + number % 5} * * *",
                "drill": f"{number % 60} 12 * * {number % 7}",
            },
        }
        for number, name in enumerate(size.names())
    }
    document = {
        "version": 1,
        "state_dir": str(state),
        "repository": {"url": f"file://{folder}/repository", "recipients": [recipient]},
        "catalogue": "embedded",
        "calendars": {"plant": {"timezone": "Europe/Berlin", "avoid": ["Mon-Fri 14:00-22:30"]}},
        "services": services,
    }
    path = folder / "drservice.yaml"
    path.write_text(json.dumps(document, indent=1))
    return path


def fill(database: Database, size: Size, *, now: datetime) -> None:
    """Fill an empty catalogue."""
    rows = _Rows(size, now)
    with psycopg.connect(database.url) as connection, connection.cursor() as cursor:
        for table, columns, values in (
            ("host", ("name", "incarnation", "version", "started_at", "seen_at"), rows.hosts()),
            ("point", ("id", "service", "created_at", "state", "members", "verified_at"), rows.points()),
            ("snapshot", _SNAPSHOT, rows.snapshots()),
            ("wal_window", _WINDOW, rows.windows()),
            ("record", _RECORD, rows.records()),
            ("run", _RUN, rows.runs()),
            ("run_event", ("run", "number", "at", "epoch", "kind", "data"), rows.events()),
            ("timetable", ("service", "kind", "plan", "settled_until"), rows.timetable()),
        ):
            names = sql.SQL(", ").join(map(sql.Identifier, columns))
            with cursor.copy(sql.SQL("COPY {} ({}) FROM STDIN").format(sql.Identifier(table), names)) as copy:
                for row in values:
                    copy.write_row([Jsonb(item) if isinstance(item, dict) else item for item in row])
    with psycopg.connect(database.url, autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE")


_SNAPSHOT = (
    "id", "service", "component", "kind", "method", "state", "host", "started_at", "stopped_at", "source_bytes",
    "read_bytes", "stored_bytes", "files", "facts",
)  # fmt: skip
_WINDOW = ("service", "component", "timeline", "from_lsn", "to_lsn", "from_time", "to_time")
_RECORD = ("entry", "kind", "service", "host", "run", "recorded_at", "outcome", "predicate", "sha256")
_RUN = (
    "id", "service", "kind", "plan", "scheduled_for", "state", "host", "requested_by", "requested_at", "parameters",
    "epoch", "claimed_by", "started_at", "ended_at", "progress", "result", "error",
)  # fmt: skip


class _Rows:
    """The rows of each table, oldest first."""

    def __init__(self, size: Size, now: datetime) -> None:
        self._size, self._now = size, now
        self._names = size.names()
        self._random = random.Random(size.runs)
        self._made: list[tuple[str, str, datetime, datetime]] = []
        """Of each run that was begun: id, state, begin, end."""

    def hosts(self) -> Iterator[tuple[Any, ...]]:
        for number in range(20):
            yield f"db{number}", "1", "0.1.0", self._now - 30 * DAY, self._now - timedelta(seconds=5)

    def points(self) -> Iterator[tuple[Any, ...]]:
        for day, number, name, at in self._days():
            state = "degraded" if number % 50 == 7 and day == 0 else "complete"
            verified = at + timedelta(hours=10) if day % 7 == number % 7 else None
            yield self._id(at, number), name, at, state, self._members(at, number), verified

    def snapshots(self) -> Iterator[tuple[Any, ...]]:
        for _, number, name, at in self._days():
            for component, kind in (("database", "postgres"), ("documents", "odoo-filestore")):
                yield (
                    self._id(at, number, component), name, component, kind, "local", "complete", f"db{number % 20}",
                    at - timedelta(minutes=3), at, 12_345_678_901, 45_678_901, 9_876_543, 4711, {"timeline": 1},
                )  # fmt: skip

    def windows(self) -> Iterator[tuple[Any, ...]]:
        for number, name in enumerate(self._names):
            behind = timedelta(seconds=self._random.choice((2, 20, 200, 260, 400)))
            for begin, end, lsn in ((30 * DAY, 11 * DAY, 1), (10 * DAY, behind, 1 << 20)):
                yield name, "database", 1 + number % 2, lsn << 24, (lsn + 900) << 24, self._now - begin, self._now - end

    def records(self) -> Iterator[tuple[Any, ...]]:
        for entry in range(self._size.records):
            number = entry % self._size.services
            kind = ("drill", "backup", "backup", "drill", "restore", "backup", "finding", "backup", "drill", "backup")[
                entry // self._size.services % 10
            ]
            at = self._now - 30 * DAY * (1 - entry / self._size.records)
            drilled = "failed" if self._random.random() < 0.08 else "passed"
            outcome = {"drill": drilled, "backup": "complete", "restore": "restored"}.get(kind)
            yield (
                entry, kind, self._names[number], f"db{number % 20}", self._id(at, number, "run"), at, outcome,
                self._predicate(kind, outcome, at, number), f"{entry:064x}",
            )  # fmt: skip

    def runs(self) -> Iterator[tuple[Any, ...]]:
        total = self._size.runs
        for index in range(total):
            number, kind = index % self._size.services, _KINDS[index // self._size.services % 3]
            name = self._names[number]
            at = self._now - 32 * DAY * (1 - index / total)
            is_last = index >= total - self._size.services
            chance = self._random.random()
            state = "failed" if chance < 0.02 else "missed" if chance < 0.025 and not is_last else "succeeded"
            if is_last and number % 100 == 3:
                state = "running" if number % 200 == 3 else "queued"
            begun = at + timedelta(seconds=2) if state not in {"missed", "queued"} else None
            ended = at + timedelta(seconds=250 + number % 300) if state in {"failed", "succeeded"} else None
            host = f"db{number % 20}"
            identifier = self._id(at, index, "run")
            if begun is not None:
                self._made.append((identifier, state, begun, ended or self._now))
            error = {"code": "DR300", "message": "the server closed the connection", "hint": "Look.", "exit_status": 8}
            yield (
                identifier, name, kind, f"{name}-latest" if kind == "drill" else "", at, state, None, "schedule", at,
                {}, 0 if begun is None else 1, host if begun is not None else None, begun, ended,
                {"step": "upload", "done": 5, "total": 10} if state == "running" else {},
                _result(name) if state == "succeeded" else None, error if state == "failed" else None,
            )  # fmt: skip

    def events(self) -> Iterator[tuple[Any, ...]]:
        for run, state, begun, ended in self._made:
            told = (
                ("state", {"state": "running", "host": "db1"}),
                ("step", {"name": "capture database", "total": 12_345_678_901, "unit": "bytes"}),
                ("step", {"name": "capture documents", "total": 4711, "unit": "files"}),
                ("state", {"state": state}),
            )
            for place, (kind, data) in enumerate(told[: 3 if state == "running" else _EVENTS]):
                yield run, place + 1, begun + (ended - begun) * place / _EVENTS, 1, kind, data

    def timetable(self) -> Iterator[tuple[Any, ...]]:
        for name in self._names:
            for kind in _KINDS:
                yield name, kind, f"{name}-latest" if kind == "drill" else "", self._now

    def _days(self) -> Iterator[tuple[int, int, str, datetime]]:
        for day in reversed(range(POINTS)):
            for number, name in enumerate(self._names):
                yield day, number, name, self._now - day * DAY - timedelta(hours=3, seconds=number)

    def _id(self, at: datetime, number: int, salt: str = "") -> str:
        return make_ulid(at, (number.to_bytes(4, "big") + salt.encode()).ljust(10, b"\0")[:10])

    def _members(self, at: datetime, number: int) -> dict[str, Any]:
        return {
            component: {
                "kind": kind,
                "snapshot": self._id(at, number, component),
                "state": "complete",
                "started_at": to_iso(at - timedelta(minutes=3)),
                "stopped_at": to_iso(at),
                "position": None if kind != "postgres" else {"system_id": 7, "timeline": 1, "lsn": "2/5A000148"},
            }
            for component, kind in (("database", "postgres"), ("documents", "odoo-filestore"))
        }

    def _predicate(self, kind: str, outcome: str | None, at: datetime, number: int) -> dict[str, Any]:
        common = {"host": f"db{number % 20}", "outcome": outcome, "recorded_at": to_iso(at)}
        if kind == "finding":
            return {**common, "finding": self._id(at, number), "state": "open", "severity": "minor", "check": "x"}
        if kind == "backup":
            return {**common, "point": self._id(at, number), "members": self._members(at, number)}
        checks = [
            {
                "name": f"check-{index}",
                "state": "passed",
                "severity": "critical",
                "seconds_ms": 12,
                "detail": "481,203 documents are referred to and 0 of them are missing",
            }
            for index in range(_CHECKS)
        ]
        return {
            **common,
            "mutation": None,
            "point": self._id(at, number),
            "rpo_ms": number % 7 * 60_000,
            "rto_ms": 200_000 + number % 90 * 20_000,
            "checks": checks,
            "phases": dict.fromkeys(("plan", "fetch", "place", "start", "replay", "check"), 1000),
        }


def _result(service: str) -> dict[str, Any]:
    snapshot = {"stop_lsn": "2/5A000148", "timeline": 1, "source_bytes": 12_345_678_901, "stored_bytes": 9_876_543}
    return {
        "schema": "drservice/backup/v1",
        "service": service,
        "state": "complete",
        "snapshots": [{"component": component, **snapshot} for component in ("database", "documents")],
    }
