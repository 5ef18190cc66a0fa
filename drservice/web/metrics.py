"""Metrics for Prometheus: what the catalogue knows now, read anew with each scrape; the only owner of its library.

Instants are timestamps, never ages: what stopped being written shows itself by standing still. Labels are bounded by
the configuration (services, components, hosts) and by enumerations; no id, name of a file or message is one. Services
that left the configuration are not told, so that nothing alerts about them for ever.

A catalogue that does not answer is a value (``drservice_catalogue_up 0``), not an absence.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from importlib import metadata

from fastapi import Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector
from sqlalchemy import RowMapping, text
from sqlalchemy.orm import Session

from drservice.catalogue.database import Database
from drservice.catalogue.reading import Reading
from drservice.errors import CatalogueUnreachableError
from drservice.model.agenda import Agenda, Results
from drservice.notify.outbox import backlog
from drservice.web.routes import Route
from drservice.web.site import Here, Who
from drservice.web.standing import Condition, standing_of

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One metric: its labels, and what it says (docs/reference/metrics.md holds the same)."""

    name: str
    labels: tuple[str, ...]
    meaning: str


_SERVICE = ("service",)
_CLUSTER = ("service", "component")
METRICS = {
    metric.name: metric
    for metric in (
        Metric(name="drservice_build_info", labels=("version",), meaning="1; the version of the answering process"),
        Metric(name="drservice_catalogue_up", labels=(), meaning="1 if the catalogue answers, else 0 and nothing else"),
        Metric(name="drservice_catalogue_timestamp_seconds", labels=(), meaning="the catalogue's clock"),
        Metric(
            name="drservice_backup_timestamp_seconds",
            labels=("service", "component", "kind"),
            meaning="end of the newest complete snapshot",
        ),
        Metric(
            name="drservice_point_timestamp_seconds",
            labels=("service", "state"),
            meaning="the newest recovery point of each state",
        ),
        Metric(
            name="drservice_wal_timestamp_seconds",
            labels=("service", "component"),
            meaning="the newest instant in the repository's WAL, streamed or archived",
        ),
        Metric(
            name="drservice_wal_durable_lag_seconds",
            labels=_CLUSTER,
            meaning="age of the oldest streamed WAL that is not durable; while nobody tells, of the newest that is",
        ),
        Metric(
            name="drservice_wal_durable_lag_bytes",
            labels=_CLUSTER,
            meaning="WAL that waits in the server's slot to become durable",
        ),
        Metric(
            name="drservice_wal_slot_room_bytes",
            labels=_CLUSTER,
            meaning="WAL that may still be written before the slot may be lost; absent without a limit",
        ),
        Metric(
            name="drservice_wal_stream_state",
            labels=("service", "component", "state"),
            meaning="1 for what the receiver does, 0 for the others: streaming, connecting, stalled, failed, absent",
        ),
        Metric(
            name="drservice_wal_holes",
            labels=("service", "component", "state"),
            meaning="holes in the WAL that snapshots need: open, or passed (a newer snapshot begins behind it)",
        ),
        Metric(
            name="drservice_documents_timestamp_seconds",
            labels=_CLUSTER,
            meaning="up to when all documents of a filestore are in the repository, by its newest pass or its stream",
        ),
        Metric(
            name="drservice_documents_durable_lag_seconds",
            labels=_CLUSTER,
            meaning="age of the newest look after which all documents were durable; while nobody tells, of what it saw",
        ),
        Metric(
            name="drservice_documents_pending",
            labels=_CLUSTER,
            meaning="documents that rows may refer to, seen and not stored",
        ),
        Metric(
            name="drservice_documents_lost",
            labels=("service", "component", "state"),
            meaning="documents that rows refer to and production does not have: missing, or corrupt",
        ),
        Metric(
            name="drservice_documents_not_covered",
            labels=_CLUSTER,
            meaning="attachments outside filestore and database, which no backup has",
        ),
        Metric(
            name="drservice_documents_stream_state",
            labels=("service", "component", "state"),
            meaning="1 for what the capture of documents does, 0 for the others: streaming, starting, stalled, absent",
        ),
        Metric(
            name="drservice_effective_rpo_seconds",
            labels=_SERVICE,
            meaning="what a service would lose now, at most: the larger of database and documents",
        ),
        Metric(
            name="drservice_verified_timestamp_seconds",
            labels=_SERVICE,
            meaning="when a recovery point was last verified by a drill",
        ),
        Metric(
            name="drservice_drill_timestamp_seconds",
            labels=("service", "state"),
            meaning="the newest drill of each outcome, mutations apart",
        ),
        Metric(name="drservice_findings_open", labels=_SERVICE, meaning="findings that no newer drill has closed"),
        Metric(
            name="drservice_objective_seconds",
            labels=("service", "kind"),
            meaning="what is promised: rpo, rto, documents_rpo",
        ),
        Metric(
            name="drservice_service_condition",
            labels=("service", "state"),
            meaning="1 for the condition the overview shows, 0 for the others",
        ),
        Metric(
            name="drservice_due_timestamp_seconds",
            labels=("service", "kind"),
            meaning="by when the next result of a schedule has to be there; in the past: overdue",
        ),
        Metric(name="drservice_runs", labels=("service", "kind", "state"), meaning="runs in the catalogue"),
        Metric(
            name="drservice_run_success_timestamp_seconds",
            labels=("service", "kind"),
            meaning="end of the newest run that succeeded",
        ),
        Metric(
            name="drservice_run_failure_timestamp_seconds",
            labels=("service", "kind"),
            meaning="end of the newest run that failed",
        ),
        Metric(
            name="drservice_slots_missed",
            labels=("service", "kind"),
            meaning="slots that nobody was there for and no run has caught up",
        ),
        Metric(name="drservice_queue_runs", labels=("kind",), meaning="runs that wait for a host"),
        Metric(
            name="drservice_queue_oldest_timestamp_seconds",
            labels=("kind",),
            meaning="when the longest-waiting of them was asked for",
        ),
        Metric(name="drservice_outbox_messages", labels=("state",), meaning="messages that are waiting or given_up"),
        Metric(
            name="drservice_outbox_oldest_timestamp_seconds",
            labels=(),
            meaning="when the longest-waiting message was written",
        ),
        Metric(name="drservice_host_seen_timestamp_seconds", labels=("host",), meaning="when a host was last seen"),
    )
}
"""Every metric there is, by name."""


def render(database: Database, agenda: Agenda, *, scope: Collection[str] = ()) -> bytes:
    """Return the metrics in Prometheus' text format (:data:`CONTENT_TYPE`).

    Args:
        database: the catalogue.
        agenda: of the estate: what is promised and scheduled.
        scope: the services to tell of, and then nothing that belongs to no service; empty = everything.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Catalogue(database, agenda, scope))
    return generate_latest(registry)


def metrics(site: Here, principal: Who) -> Response:
    """Answer a scrape: of the services that the token sees."""
    return Response(render(site.database, site.agenda, scope=principal.services), media_type=CONTENT_TYPE)


EXPOSITION = (Route(name="metrics", method="GET", path="/metrics", endpoint=metrics, kind=PlainTextResponse),)


@dataclass(slots=True)
class _Values:
    """The values of one scrape."""

    families: dict[str, GaugeMetricFamily] = field(default_factory=dict)

    def add(self, name: str, value: float | datetime | None, *labels: str) -> None:
        """Add a value; an instant that there is none of is left out."""
        if value is None:
            return
        metric = METRICS[name]
        assert len(labels) == len(metric.labels), name
        if name not in self.families:
            self.families[name] = GaugeMetricFamily(name, metric.meaning, labels=metric.labels)
        number = value.timestamp() if isinstance(value, datetime) else float(value)
        self.families[name].add_metric(labels, number)


class _Catalogue(Collector):
    def __init__(self, database: Database, agenda: Agenda, scope: Collection[str]) -> None:
        self._database = database
        self._agenda = agenda
        self._is_whole = not scope
        self._services = {
            name: service for name, service in agenda.estate.services.items() if not scope or name in scope
        }

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Read the catalogue."""
        values = _Values()
        try:
            self._read(values)
        except CatalogueUnreachableError:
            # Half of a picture would look like a whole one.
            values = _Values()
            values.add("drservice_catalogue_up", 0)
        else:
            values.add("drservice_catalogue_up", 1)
        values.add("drservice_build_info", 1, metadata.version("drservice"))
        yield from values.families.values()

    def _read(self, values: _Values) -> None:
        now, facts = Reading(self._database).services(list(self._services), self._agenda)
        values.add("drservice_catalogue_timestamp_seconds", now)
        for name, service in self._services.items():
            for kind in ("rpo", "rto", "documents_rpo"):
                promised = getattr(service.objectives, kind)
                values.add(
                    "drservice_objective_seconds",
                    promised.total_seconds() if promised is not None else None,
                    name,
                    kind,
                )
            standing = standing_of(service, facts[name], now, self._agenda)
            for each in Condition:
                values.add("drservice_service_condition", each is standing.condition, name, each.name.lower())
            effective = standing.effective
            seconds = effective.total_seconds() if effective is not None else None
            values.add("drservice_effective_rpo_seconds", seconds, name)
            for component, instant in facts[name].captured.items():
                values.add("drservice_documents_timestamp_seconds", instant, name, component)
        with self._database.session() as session:
            session.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
            self._read_grouped(values, session)
        for name in self._services:
            self._add_dues(values, name, facts[name].results, now)
        if self._is_whole:
            self._read_outbox(values)

    def _read_outbox(self, values: _Values) -> None:
        waiting = backlog(self._database)
        values.add("drservice_outbox_messages", waiting.waiting, "waiting")
        values.add("drservice_outbox_messages", waiting.given_up, "given_up")
        values.add("drservice_outbox_oldest_timestamp_seconds", waiting.oldest)

    def _read_grouped(self, values: _Values, session: Session) -> None:
        for name, query in _GROUPED.items():
            labels = METRICS[name].labels
            if "service" not in labels and not self._is_whole:
                continue
            for row in _rows(session, query):
                if "service" not in labels or row["service"] in self._services:
                    values.add(name, row["value"], *(str(row[label]) for label in labels))

    def _add_dues(self, values: _Values, service: str, results: Results, now: datetime) -> None:
        """Tell by when each kind of result has to be there; a schedule that nobody has looked at counts from now."""
        new = {planned.key[1:]: now for planned in self._agenda.planned(service)}
        soonest: dict[str, datetime] = {}
        for planned, due in self._agenda.dues(service, replace(results, since={**new, **results.since})):
            soonest[planned.kind.value] = min(due.at, soonest.get(planned.kind.value, due.at))
        for kind, at in soonest.items():
            values.add("drservice_due_timestamp_seconds", at, service, kind)


def _rows(session: Session, query: str) -> Sequence[RowMapping]:
    return session.execute(text(query)).mappings().all()


def _lag(table: str) -> str:
    """Return the query for how far what is streamed is behind: what hosts said just now, or what time has passed."""
    return f"""
        SELECT service, component, CASE WHEN is_told THEN seconds_at_risk
            ELSE greatest(0, extract(epoch FROM drservice_now() - durable_until)) END AS value
        FROM {table} CROSS JOIN LATERAL (
            SELECT told_at > drservice_now() - interval '30 s' AND seconds_at_risk IS NOT NULL AS is_told
        ) AS heard WHERE is_told OR durable_until IS NOT NULL"""  # noqa: S608 - a table of this module


def _states(table: str, *states: str) -> str:
    """Return the query for the state of what is streamed; what nobody has told of for a minute is absent."""
    values = ", ".join(f"('{state}')" for state in states)
    return f"""
        SELECT service, component, each.state, (CASE
            WHEN told_at > drservice_now() - interval '1 min' THEN stream.state = each.state
            ELSE each.state = 'absent' END)::int AS value
        FROM {table} AS stream CROSS JOIN (VALUES {values}) AS each (state)"""  # noqa: S608 - words of this module


_GROUPED: Mapping[str, str] = {
    "drservice_backup_timestamp_seconds": """
        SELECT service, component, kind, max(stopped_at) AS value FROM snapshot WHERE state = 'complete'
        GROUP BY service, component, kind""",
    "drservice_point_timestamp_seconds": """
        SELECT service, state, max(created_at) AS value FROM point GROUP BY service, state""",
    "drservice_wal_timestamp_seconds": """
        SELECT service, component, greatest(max(to_time), (
            SELECT durable_until FROM wal_stream AS stream
            WHERE stream.service = wal_window.service AND stream.component = wal_window.component AND NOT EXISTS (
                SELECT FROM wal_hole AS hole
                WHERE hole.service = wal_window.service AND hole.component = wal_window.component AND hole.is_open)
        )) AS value FROM wal_window GROUP BY service, component""",
    "drservice_wal_durable_lag_seconds": _lag("wal_stream"),
    "drservice_wal_durable_lag_bytes": """
        SELECT service, component, bytes_at_risk AS value FROM wal_stream WHERE bytes_at_risk IS NOT NULL""",
    "drservice_wal_slot_room_bytes": """
        SELECT service, component, greatest(0, safe_wal_bytes) AS value FROM wal_stream
        WHERE safe_wal_bytes IS NOT NULL""",
    "drservice_wal_stream_state": _states("wal_stream", "streaming", "connecting", "stalled", "failed", "absent"),
    "drservice_wal_holes": """
        SELECT cluster.service, cluster.component, each.state, count(hole.timeline) AS value
        FROM (SELECT service, component FROM wal_window UNION SELECT service, component FROM wal_hole) AS cluster
        CROSS JOIN (VALUES ('open', true), ('passed', false)) AS each (state, is_open)
        LEFT JOIN wal_hole AS hole ON hole.service = cluster.service AND hole.component = cluster.component
            AND hole.is_open = each.is_open
        GROUP BY cluster.service, cluster.component, each.state""",
    "drservice_documents_durable_lag_seconds": _lag("document_stream"),
    "drservice_documents_pending": """
        SELECT service, component, pending AS value FROM document_stream WHERE pending IS NOT NULL""",
    "drservice_documents_lost": """
        SELECT service, component, each.state, each.value FROM document_stream
        CROSS JOIN LATERAL (VALUES ('missing', missing), ('corrupt', corrupt)) AS each (state, value)
        WHERE each.value IS NOT NULL""",
    "drservice_documents_not_covered": """
        SELECT service, component, not_covered AS value FROM document_stream WHERE not_covered IS NOT NULL""",
    "drservice_documents_stream_state": _states("document_stream", "streaming", "starting", "stalled", "absent"),
    "drservice_verified_timestamp_seconds": """
        SELECT service, max(verified_at) AS value FROM point GROUP BY service""",
    "drservice_drill_timestamp_seconds": """
        SELECT service, outcome AS state, max(recorded_at) AS value FROM record
        WHERE kind = 'drill' AND predicate ->> 'mutation' IS NULL AND service IS NOT NULL AND outcome IS NOT NULL
        GROUP BY service, outcome""",
    "drservice_findings_open": """
        SELECT service, count(*) FILTER (WHERE open) AS value FROM (
            SELECT service, bool_and(predicate ->> 'state' <> 'closed') AS open FROM record
            WHERE kind = 'finding' AND service IS NOT NULL GROUP BY service, predicate ->> 'finding'
        ) AS finding GROUP BY service""",
    "drservice_runs": """
        SELECT service, kind, state, count(*) AS value FROM run GROUP BY service, kind, state""",
    "drservice_run_success_timestamp_seconds": """
        SELECT service, kind, max(ended_at) AS value FROM run WHERE state = 'succeeded' GROUP BY service, kind""",
    "drservice_run_failure_timestamp_seconds": """
        SELECT service, kind, max(ended_at) AS value FROM run WHERE state = 'failed' GROUP BY service, kind""",
    "drservice_slots_missed": """
        SELECT service, kind, count(*) AS value FROM run WHERE state = 'missed' AND caught_up_by IS NULL
        GROUP BY service, kind""",
    "drservice_queue_runs": """
        SELECT kind, count(*) AS value FROM run WHERE state = 'queued' GROUP BY kind""",
    "drservice_queue_oldest_timestamp_seconds": """
        SELECT kind, min(requested_at) AS value FROM run WHERE state = 'queued' GROUP BY kind""",
    "drservice_host_seen_timestamp_seconds": """
        SELECT name AS host, seen_at AS value FROM host""",
}
"""Metrics that are one grouped query each: a column per label, and ``value``."""
