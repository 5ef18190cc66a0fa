"""What the catalogue knows of each service, for many of them at once: the newest of everything and never histories.

The newest of each kind is looked up per service through an index (lateral joins), and only columns that are shown or
judged are read: an overview of a thousand services is a handful of queries and some thousand short rows, however many
runs and records there are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, TypeVar

from sqlalchemy import text
from sqlalchemy.orm import Session

from drservice.model.agenda import Agenda, PlanName, Results

KNOWN_LATE = timedelta(minutes=10)
"""How late the catalogue may learn of WAL and documents that have arrived: what is at risk by less is no news."""
STREAM_LATE = timedelta(seconds=30)
"""The same for what is streamed: its host tells every few seconds."""
SILENCE = timedelta(minutes=1)
"""A host that is restarted is no news; one that has told nothing for so long is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewestPoint:
    """The newest recovery point of a service."""

    id: str
    created_at: datetime
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What a drill or a restore showed: the newest record of its kind."""

    entry: int
    recorded_at: datetime
    outcome: str | None
    rpo_seconds: float | None
    """Committed work that was lost."""
    rto_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamFacts:
    """How a process that streams was when its host last told (``catalogue.tables`` explains the fields)."""

    state: str
    durable_until: datetime | None
    seconds_at_risk: float | None
    problem: str | None
    remedy: str | None
    told_at: datetime

    def is_silent(self, now: datetime) -> bool:
        """Tell whether its host tells nothing of it any more."""
        return now - self.told_at > SILENCE

    def phase(self, now: datetime) -> str:
        """Return its state, or ``silent`` when that was told too long ago."""
        return "silent" if self.is_silent(now) else self.state

    def seconds(self, now: datetime) -> float | None:
        """Return what it says would be lost now; ``None`` unless it was told just now."""
        return self.seconds_at_risk if now - self.told_at <= STREAM_LATE else None


@dataclass(frozen=True, slots=True, kw_only=True)
class WalStreamFacts(StreamFacts):
    """The receiver of a cluster's WAL."""

    is_synchronous: bool
    slot_status: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentStreamFacts(StreamFacts):
    """The capture of a filestore's documents; ``None``: not known."""

    pending: int | None
    missing: int | None
    """In production, like ``corrupt``."""
    corrupt: int | None
    in_database: int | None
    not_covered: int | None

    @property
    def lost(self) -> int:
        """Documents that rows refer to and production does not have as they were, as far as it is known."""
        return (self.missing or 0) + (self.corrupt or 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class HoleFacts:
    """WAL of a cluster that is missing although snapshots need it."""

    component: str
    first_segment: str
    segments: int
    is_open: bool
    cost: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceFacts:
    """What the catalogue knows of a service."""

    service: str
    point: NewestPoint | None = None
    reached: Mapping[str, datetime] = field(default_factory=dict)
    """Per cluster the newest instant that can be reached: in its archived WAL, or behind it in what is streamed."""
    streams: Mapping[str, WalStreamFacts] = field(default_factory=dict)
    """Per cluster that is streamed, its receiver."""
    captured: Mapping[str, datetime] = field(default_factory=dict)
    """Per filestore up to when all its documents are stored, by the newest pass or by the stream."""
    captures: Mapping[str, DocumentStreamFacts] = field(default_factory=dict)
    """Per filestore that is streamed, its capture."""
    holes: tuple[HoleFacts, ...] = ()
    drill: Proof | None = None
    """The newest; drills that are meant to fail do not count."""
    passed_drill: Proof | None = None
    restore: Proof | None = None
    """The newest that was proved."""
    missed: int = 0
    """Slots that nobody was there for and no run was made for since."""
    running: int = 0
    results: Results = field(default_factory=Results)
    """What its schedules are judged by."""

    @property
    def known_late(self) -> timedelta:
        """How late this may be: what is at risk by less is no news."""
        return STREAM_LATE if self.reached and self.reached.keys() <= self.streams.keys() else KNOWN_LATE

    @property
    def documents_known_late(self) -> timedelta:
        """The same for documents."""
        return STREAM_LATE if self.captured and self.captured.keys() <= self.captures.keys() else KNOWN_LATE

    def seconds_at_risk(self, now: datetime) -> float | None:
        """Return what the receivers say would be lost now; ``None`` unless each cluster has one that tells."""
        seconds = [None if (each := self.streams.get(name)) is None else each.seconds(now) for name in self.reached]
        known = [each for each in seconds if each is not None]
        return max(known) if known and len(known) == len(seconds) else None

    def documents_at_risk(self, component: str, now: datetime) -> timedelta | None:
        """Return how old the newest look is after which all documents of a filestore were stored; ``None``: none was.

        What the stream says of itself counts where it is less: the database's clock may be another one.
        """
        captured, stream = self.captured.get(component), self.captures.get(component)
        if captured is None:
            return None
        at_risk, said = max(now - captured, timedelta(0)), stream.seconds(now) if stream is not None else None
        return at_risk if said is None else min(at_risk, timedelta(seconds=said))


def read_facts(session: Session, names: Sequence[str], agenda: Agenda) -> Mapping[str, ServiceFacts]:
    """Return what is known of each named service; ``agenda`` says which schedules there are."""
    asked = {"services": list(names)}
    reached: dict[str, dict[str, datetime]] = defaultdict(dict)
    for service, component, instant in session.execute(_REACHED, asked).all():
        reached[service][component] = instant
    holes = _holes(session, asked)
    streams = _told(session, "wal_stream", WalStreamFacts, asked)
    captures = _told(session, "document_stream", DocumentStreamFacts, asked)
    captured = _captured(session, names, agenda, captures)
    for service, found_streams in streams.items():
        for component, stream in found_streams.items():
            is_cut = any(hole.component == component and hole.is_open for hole in holes.get(service, ()))
            archived = reached[service].get(component)
            # What is streamed leads on from what is archived, and to nowhere without that or behind a hole.
            if archived is not None and stream.durable_until is not None and not is_cut:
                reached[service][component] = max(archived, stream.durable_until)
    counts = {(service, state): count for service, state, count in session.execute(_OPEN, asked).all()}
    done, since = _results(session, names, agenda)
    found = {}
    for name, point, created_at, state, whole_at, *proofs in session.execute(_NEWEST, asked).all():
        drill, passed, restored = _proof(proofs[:5]), _proof(proofs[5:10]), _proof(proofs[10:])
        if drill is not None and drill.outcome == "passed":
            passed = drill
        found[name] = ServiceFacts(
            service=name,
            point=NewestPoint(id=point, created_at=created_at, state=state) if point is not None else None,
            reached=reached.get(name, {}),
            streams=streams.get(name, {}),
            captured=captured.get(name, {}),
            captures=captures.get(name, {}),
            holes=tuple(holes.get(name, ())),
            drill=drill,
            passed_drill=passed,
            restore=restored,
            missed=counts.get((name, "missed"), 0),
            running=counts.get((name, "running"), 0),
            results=Results(
                done=done.get(name, {}),
                since=since.get(name, {}),
                backed_up_at=whole_at,
                drilled_at=passed.recorded_at if passed is not None else None,
            ),
        )
    return found


_Streamed = TypeVar("_Streamed", bound=StreamFacts)


def _told(
    session: Session, table: str, kind: type[_Streamed], asked: Mapping[str, list[str]]
) -> Mapping[str, Mapping[str, _Streamed]]:
    """Return per service and component what hosts told last of what they stream."""
    names = list(kind.__dataclass_fields__)
    query = f"""
        SELECT service, component, {", ".join(names)}
        FROM {table} WHERE service = ANY (CAST(:services AS text[]))
    """  # noqa: S608 - a table and fields of this module
    found: dict[str, dict[str, _Streamed]] = {}
    for row in session.execute(text(query), asked).mappings():
        found.setdefault(row["service"], {})[row["component"]] = kind(**{name: row[name] for name in names})
    return found


def _captured(
    session: Session,
    names: Sequence[str],
    agenda: Agenda,
    captures: Mapping[str, Mapping[str, DocumentStreamFacts]],
) -> Mapping[str, Mapping[str, datetime]]:
    """Return per service and filestore up to when its documents are stored: a stream may prove more than a pass."""
    wanted = set(names)
    services = [item for item in agenda.estate.services.values() if item.name in wanted]
    keys = [(service.name, item.name) for service in services for item in service.filestores()]
    found: dict[str, dict[str, datetime]] = {}
    if keys:
        asked = {"services": [key[0] for key in keys], "components": [key[1] for key in keys]}
        for service, component, instant in session.execute(_PASSES, asked).all():
            found.setdefault(service, {})[component] = instant
    for service, component in keys:
        stream = captures.get(service, {}).get(component)
        if stream is not None and stream.durable_until is not None:
            passed = found.setdefault(service, {}).get(component, stream.durable_until)
            found[service][component] = max(passed, stream.durable_until)
    return found


def _holes(session: Session, asked: Mapping[str, list[str]]) -> Mapping[str, Sequence[HoleFacts]]:
    found: dict[str, list[HoleFacts]] = {}
    for row in session.execute(_HOLES, asked).mappings():
        columns = {name: row[name] for name in HoleFacts.__dataclass_fields__}
        found.setdefault(row["service"], []).append(HoleFacts(**columns))
    return found


_Instants = dict[str, dict[PlanName, datetime]]


def _results(session: Session, names: Sequence[str], agenda: Agenda) -> tuple[_Instants, _Instants]:
    """Return per service and schedule when its newest run succeeded; where none did, since when it is waited for."""
    keys = agenda.keys(names)
    done, since = _Instants(), _Instants()
    for service, kind, plan, instant in session.execute(_DONE, _columns(keys)).all():
        done.setdefault(service, {})[kind, plan] = instant
    open_keys = [key for key in keys if key[1:] not in done.get(key[0], {})]
    if open_keys:
        for service, kind, plan, instant in session.execute(_SINCE, _columns(open_keys)).all():
            since.setdefault(service, {})[kind, plan] = instant
    return done, since


def _columns(keys: Sequence[tuple[str, str, str]]) -> dict[str, list[str]]:
    return {
        "services": [key[0] for key in keys],
        "kinds": [key[1] for key in keys],
        "plans": [key[2] for key in keys],
    }


def _proof(columns: Sequence[Any]) -> Proof | None:
    """Read a proof; without an entry there is none."""
    entry, recorded_at, outcome, rpo_ms, rto_ms = columns
    if entry is None:
        return None
    return Proof(
        entry=entry,
        recorded_at=recorded_at,
        outcome=outcome,
        rpo_seconds=None if rpo_ms is None else float(rpo_ms) / 1000,
        rto_seconds=None if rto_ms is None else float(rto_ms) / 1000,
    )


_DRILL = """
    SELECT entry, recorded_at, outcome, rpo_ms, rto_ms FROM record
    WHERE service = asked.name AND kind = 'drill' AND mutation IS NULL"""
_LAST = "ORDER BY entry DESC LIMIT 1"
_NEWEST = text(
    f"""
    SELECT asked.name, point.*, whole.*, drill.*, passed.*, restored.*
    FROM unnest(CAST(:services AS text[])) AS asked (name)
    LEFT JOIN LATERAL (
        SELECT id, created_at, state FROM point WHERE service = asked.name ORDER BY created_at DESC LIMIT 1
    ) AS point ON true
    LEFT JOIN LATERAL (
        SELECT created_at FROM point WHERE service = asked.name AND state <> 'partial' ORDER BY created_at DESC LIMIT 1
    ) AS whole ON true
    LEFT JOIN LATERAL ({_DRILL} {_LAST}) AS drill ON true
    LEFT JOIN LATERAL (
        {_DRILL} AND outcome = 'passed' AND drill.outcome IS DISTINCT FROM 'passed' {_LAST}
    ) AS passed ON true
    LEFT JOIN LATERAL (
        SELECT entry, recorded_at, outcome, rpo_ms, rto_ms FROM record
        WHERE service = asked.name AND kind = 'restore' AND outcome = 'restored' {_LAST}
    ) AS restored ON true
    """  # noqa: S608 - put together from the constants above
)
"""What is newest the ledger's order says, not clocks. A newest drill that passed is the newest that passed, too."""
_REACHED = text(
    """
    SELECT service, component, max(to_time) FROM wal_window
    WHERE service = ANY (CAST(:services AS text[])) AND to_time IS NOT NULL GROUP BY service, component
    """
)
_PASSES = text(
    """
    SELECT asked.service, asked.component, found.started_at
    FROM unnest(CAST(:services AS text[]), CAST(:components AS text[])) AS asked (service, component)
    CROSS JOIN LATERAL (
        SELECT started_at FROM snapshot
        WHERE service = asked.service AND component = asked.component AND state <> 'partial'
        ORDER BY stopped_at DESC LIMIT 1
    ) AS found
    """
)
"""A partial pass has not read everything: it proves nothing."""
_HOLES = text(
    """
    SELECT service, component, first_segment, segments, is_open, cost
    FROM wal_hole WHERE service = ANY (CAST(:services AS text[])) ORDER BY service, component, timeline, from_lsn
    """
)
_OPEN = text(
    """
    SELECT service, state, count(*) FROM run
    WHERE (state = 'running' OR (state = 'missed' AND caught_up_by IS NULL))
      AND service = ANY (CAST(:services AS text[]))
    GROUP BY service, state
    """
)
"""What runs and what was missed are few, whatever the number of runs (index on state)."""
_ASKED = """
    FROM unnest(CAST(:services AS text[]), CAST(:kinds AS text[]), CAST(:plans AS text[]))
        AS asked (service, kind, plan)"""
_DONE = text(
    f"""
    SELECT asked.service, asked.kind, asked.plan, found.ended_at {_ASKED}
    CROSS JOIN LATERAL (
        SELECT ended_at FROM run
        WHERE service = asked.service AND kind = asked.kind AND plan = asked.plan AND state = 'succeeded'
          AND ended_at IS NOT NULL
        ORDER BY ended_at DESC LIMIT 1
    ) AS found
    """  # noqa: S608 - put together from the constant above
)
_SINCE = text(
    f"""
    SELECT asked.service, asked.kind, asked.plan, coalesce(found.first, timetable.settled_until) {_ASKED}
    LEFT JOIN LATERAL (
        SELECT min(requested_at) AS first FROM run
        WHERE service = asked.service AND kind = asked.kind AND plan = asked.plan
    ) AS found ON true
    LEFT JOIN timetable USING (service, kind, plan)
    WHERE coalesce(found.first, timetable.settled_until) IS NOT NULL
    """  # noqa: S608 - put together from the constant above
)
"""From the first run that was wanted, or from where the scheduler stopped: if it died its schedules become overdue."""
