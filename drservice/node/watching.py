"""Tells of promises that do not hold and of results that are overdue, and when they do again.

Both are judged from what is there (``model.agenda``, ``catalogue.facts``), never from what ran or did not: what nobody
noticed is noticed here. One node at a time looks, about once a minute. A breach is told when it is seen, again each
day, and when it is over.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from drservice import telemetry
from drservice.catalogue.breaches import (
    BreachKey,
    KnownBreach,
    begin_breach,
    end_breach,
    known_breaches,
    tell_again,
)
from drservice.catalogue.database import Database
from drservice.catalogue.duties import duty
from drservice.catalogue.facts import DocumentStreamFacts, HoleFacts, ServiceFacts, StreamFacts, WalStreamFacts
from drservice.catalogue.reading import Reading
from drservice.catalogue.requests import Transaction
from drservice.catalogue.runs import RunRequest
from drservice.catalogue.streams import STARTING, STREAMING
from drservice.clock import to_iso
from drservice.jobs.queue import Queue
from drservice.model.agenda import Agenda, Overdue
from drservice.model.estate import Estate, FilesSettings, NotifyKind, Service, WalMode
from drservice.model.runs import RunKind
from drservice.model.timetable import host_of
from drservice.notify.interface import Notice, Severity
from drservice.notify.outbox import Outbox

_DUTY = "watch"
_EVERY = timedelta(seconds=55)
_AGAIN = timedelta(days=1)
_MOST_AT_ONCE = 5
"""Notices of a kind in one look; more are one."""
OVERDUE_TOLERANCE = timedelta(minutes=5)
"""Beyond the schedule's own grace: a result is put on record and projected after it was reached."""
STREAM_PATIENCE = timedelta(minutes=1)
"""A process that is restarted, or a store that is slow for a moment, is no news."""
COMPARING_PATIENCE = timedelta(minutes=15)
"""A capture that begins compares everything first, and large documents have to be stored: that takes minutes."""
_COMMANDS = {
    RunKind.BACKUP: "drservice backup {service}",
    RunKind.VERIFY: "drservice verify {service}",
    RunKind.DRILL: "drservice drill {service}",
    RunKind.RETENTION: "drservice retention {service} --dry-run",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A breach as it is now."""

    service: str
    what: str
    kind: NotifyKind
    severity: Severity
    title: str
    body: str
    next_command: str
    wants_backup: bool = False
    """Only a new recovery point ends it."""

    @property
    def key(self) -> BreachKey:
        """Names it while it lasts."""
        return BreachKey(service=self.service, what=self.what)


_MANY = {
    NotifyKind.FAILURE: "failures of WAL and documents",
    NotifyKind.OBJECTIVE: "promises do not hold",
    NotifyKind.OVERDUE: "results are overdue",
}
"""What more than a few breaches of a kind are called."""


class Watcher:
    """Looks at every service of the configuration in force."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._reading = Reading(database)
        self._queue = Queue(database)
        self._agenda: Agenda | None = None

    def look(self, estate: Estate, outbox: Outbox) -> int:
        """Queue what is to be told now, unless another node has just done so; returns how many notices.

        Raises:
            CatalogueUnreachableError: it is told the next time.
        """
        if self._agenda is None or self._agenda.estate is not estate:
            self._agenda = Agenda(estate)
        with duty(self._database, _DUTY, every=_EVERY) as session:
            return 0 if session is None else self._judge(estate, self._agenda, outbox, session)

    def _judge(self, estate: Estate, agenda: Agenda, outbox: Outbox, session: Transaction) -> int:
        now, facts = self._reading.services(list(estate.services), agenda)
        found = {
            breach.key: breach
            for service in estate.services.values()
            for breach in breaches_of(service, facts[service.name], agenda, now)
        }
        before = known_breaches(session)
        begun, again, over = list[Notice](), list[Notice](), list[Notice]()
        for key, breach in found.items():
            known = before.get(key)
            if known is None:
                begin_breach(session, key, kind=breach.kind.value, title=breach.title, since=now)
                begun.append(notice_of_breach(breach, since=now, number=1))
                self._make_good(estate, breach, session)
            elif now - known.told_at >= _AGAIN:
                tell_again(session, key, at=now)
                again.append(notice_of_breach(breach, since=known.since, number=known.told + 1))
                self._make_good(estate, breach, session)
        for key, known in before.items():
            if key not in found:
                end_breach(session, key)
                over.append(notice_of_end(key, known, now))
        notices = [*bundled("", begun, now), *bundled("again: ", again, now), *bundled("all clear: ", over, now)]
        for notice in notices:
            telemetry.warning("people are told", title=notice.title, service=notice.service)
            outbox.tell(notice, session=session)
        return len(notices)

    def _make_good(self, estate: Estate, breach: Found, session: Transaction) -> None:
        """Start the backup that ends a breach, where backups are this program's to start: it has their schedule."""
        service = estate.service(breach.service)
        if not breach.wants_backup or service.schedule.backup is None:
            return
        host = host_of(service, RunKind.BACKUP)
        request = RunRequest(service=service.name, kind=RunKind.BACKUP, requested_by="continuity", host=host)
        run = self._queue.enqueue(request, session=session)
        telemetry.warning("a backup is started because WAL is missing", service=service.name, run=run)


def breaches_of(service: Service, facts: ServiceFacts, agenda: Agenda, now: datetime) -> Iterator[Found]:
    """Yield what of a service is broken or overdue.

    Args:
        service: what is promised.
        facts: what the catalogue knows of it.
        agenda: of the configuration that the service is of.
        now: by the catalogue's clock.
    """
    yield from _at_risk(service, facts, now)
    for hole in facts.holes:
        if hole.is_open:
            yield _hole(service, hole)
    for component in service.databases():
        # What a host that is gone told of a receiver that nobody wants any more is no news for ever.
        if component.wal.mode is not WalMode.ARCHIVE and (stream := facts.streams.get(component.name)) is not None:
            yield from _wal_stream(service, component.name, stream, now)
    yield from _measured(service, facts)
    yield from _documents(service, facts, now)
    for item in agenda.overdue(service.name, facts.results, now - OVERDUE_TOLERANCE):
        yield _overdue(service, item)


def _at_risk(service: Service, facts: ServiceFacts, now: datetime) -> Iterator[Found]:
    promised = service.objectives.rpo
    if promised is None or facts.point is None:
        return  # nothing is promised, or nothing was ever stored: that is overdue, not a promise that was kept before
    clusters = [item.name for item in service.databases()]
    lost = sorted(set(clusters) - facts.reached.keys())
    if lost:
        yield _objective(
            service,
            "rpo",
            f"nothing can be recovered of {', '.join(lost)}: there is no WAL that follows a snapshot",
            "Work that is committed now would be lost as a whole.",
        )
        return
    until = min((facts.reached[name] for name in clusters), default=facts.point.created_at)
    if now - until > promised + facts.known_late:
        yield _objective(
            service,
            "rpo",
            f"work since {_at(until)} is at risk; promised is to lose at most {_shown(promised)}",
            "If nothing was committed since then, nothing is lost: set archive_timeout below the RPO, and WAL arrives."
            if clusters
            else "There is no newer recovery point.",
        )


def _hole(service: Service, hole: HoleFacts) -> Found:
    starts = service.schedule.backup is not None
    return Found(
        service=service.name,
        what=f"wal-hole:{hole.component}:{hole.first_segment}",
        kind=NotifyKind.FAILURE,
        severity=Severity.BUSINESS_CRITICAL,
        title=f"{hole.component}: {hole.segments} WAL segment(s) from {hole.first_segment} on are missing: {hole.cost}",
        body="No pg_wal that drservice looks after has them any more. "
        + (
            "A backup was put into the queue; it ends this." if starts else "A new backup ends this; none is scheduled."
        ),
        next_command=f"drservice backup {service.name}",
        wants_backup=True,
    )


def _wal_stream(service: Service, component: str, stream: WalStreamFacts, now: datetime) -> Iterator[Found]:
    """Yield what is wrong with a receiver. One that commits wait for is told at once."""
    is_lost = stream.slot_status in {"lost", "unreserved"}
    why = _stopped(stream, now)
    if why is None and not is_lost:
        return
    if not (stream.is_synchronous or is_lost or _is_behind(stream, now, STREAM_PATIENCE)):
        return
    waits = " Commits wait for it: production may stand still." if stream.is_synchronous else ""
    slot = f" The slot is {stream.slot_status}: the server may remove WAL that is nowhere else." if is_lost else ""
    yield Found(
        service=service.name,
        what=f"wal-stream:{component}",
        kind=NotifyKind.FAILURE,
        severity=Severity.BUSINESS_CRITICAL if stream.is_synchronous or is_lost else Severity.TECHNICAL,
        title=f"{component}: WAL is not streamed ({stream.phase(now)}): {why or f'its slot is {stream.slot_status}'}",
        body=f"{_safe_until(stream)}.{waits}{slot} {stream.remedy or ''}".rstrip(),
        next_command=f"drservice check {service.name}",
    )


def _document_stream(
    service: Service, component: FilesSettings, stream: DocumentStreamFacts, now: datetime
) -> Iterator[Found]:
    """Yield what is wrong with a capture of documents, and what it found to be lost in production."""
    at_work = stream.state in {STARTING, STREAMING} and not stream.is_silent(now)
    is_first = at_work and stream.durable_until is None  # the first of all takes as long as there are documents
    said = stream.seconds(now)
    patience = max(COMPARING_PATIENCE, 2 * component.interval) if at_work else STREAM_PATIENCE
    is_behind = _is_behind(stream, now, patience) and (said is None or timedelta(seconds=said) > patience)
    if is_behind and not is_first:
        why = _stopped(stream, now) or f"it gets no further, {stream.pending or 0} wait"
        yield Found(
            service=service.name,
            what=f"document-stream:{component.name}",
            kind=NotifyKind.FAILURE,
            severity=Severity.TECHNICAL,
            title=f"{component.name}: documents are not streamed ({stream.phase(now)}): {why}",
            body=f"{_safe_until(stream)}, except what a backup takes. {stream.remedy or ''}".rstrip(),
            next_command=f"drservice check {service.name}",
        )
    if stream.lost:
        yield Found(
            service=service.name,
            what=f"documents-lost:{component.name}",
            kind=NotifyKind.FAILURE,
            severity=Severity.BUSINESS_CRITICAL,
            title=f"{component.name}: {stream.missing or 0} missing and {stream.corrupt or 0} damaged documents in"
            " production, though rows refer to them",
            body="Odoo shows them as empty. An older snapshot may have them (`drservice extract`): look before somebody"
            " opens or replaces them.",
            next_command=f"drservice check {service.name}",
        )


def _stopped(stream: StreamFacts, now: datetime) -> str | None:
    """Return why a process that streams does not get on; ``None``: it does."""
    if stream.is_silent(now):
        return f"its host was silent since {_at(stream.told_at)}"
    if stream.state == STREAMING:
        return None
    return stream.problem or ("it compares everything first" if stream.state == STARTING else "it does not run")


def _is_behind(stream: StreamFacts, now: datetime, patience: timedelta) -> bool:
    return stream.durable_until is None or now - stream.durable_until > patience


def _safe_until(stream: StreamFacts) -> str:
    until = stream.durable_until
    return "nothing of it is safe" if until is None else f"nothing later than {_at(until)} is safe"


def _measured(service: Service, facts: ServiceFacts) -> Iterator[Found]:
    """Yield what the newest drill or restore has shown to be worse than promised."""
    rpo, rto = service.objectives.rpo, service.objectives.rto
    lost = facts.drill.rpo_seconds if facts.drill is not None else None
    if rpo is not None and facts.drill is not None and lost is not None and lost > rpo.total_seconds():
        yield _objective(
            service,
            "measured-rpo",
            f"the last drill lost {_shown(timedelta(seconds=lost))} of committed work; promised is {_shown(rpo)}",
            f"Record {facts.drill.entry} of the ledger has it.",
        )
    newest = max((item for item in (facts.drill, facts.restore) if item), key=lambda item: item.entry, default=None)
    if rto is None or newest is None or newest.rto_seconds is None or newest.rto_seconds <= rto.total_seconds():
        return
    yield _objective(
        service,
        "measured-rto",
        f"the last recovery took {_shown(timedelta(seconds=newest.rto_seconds))}; promised is {_shown(rto)}",
        f"Record {newest.entry} of the ledger has its phases.",
    )


def _documents(service: Service, facts: ServiceFacts, now: datetime) -> Iterator[Found]:
    promised = service.objectives.documents_rpo
    for component in service.filestores():
        if component.stream and (stream := facts.captures.get(component.name)) is not None:
            yield from _document_stream(service, component, stream, now)
        if promised is None or facts.point is None:
            continue
        at_risk = facts.documents_at_risk(component.name, now)
        what = f"documents-rpo:{component.name}"
        if at_risk is None:
            lost = f"nothing can be recovered of {component.name}: no pass over its documents is whole"
            yield _objective(service, what, lost, "Documents that are filed now would be lost as a whole.")
        elif at_risk > promised + facts.documents_known_late:
            since = f"{component.name} were last captured at {_at(now - at_risk)}; promised is {_shown(promised)}"
            yield _objective(service, what, since, "What was filed since then is stored nowhere else.")


def _overdue(service: Service, item: Overdue) -> Found:
    last = f"the last one is of {_at(item.last_done)}" if item.last_done is not None else "there was none yet"
    kind = item.planned.kind
    return Found(
        service=service.name,
        what=f"overdue:{kind.value}:{item.planned.plan}",
        kind=NotifyKind.OVERDUE,
        severity=Severity.TECHNICAL if kind is RunKind.RETENTION else Severity.BUSINESS_CRITICAL,
        title=f"{item.what} is overdue since {_at(item.due.at)}: {last}",
        body=f"{item.due.reason}. Look whether the service's host runs (`drservice check`), then do it by hand.",
        next_command=_COMMANDS[kind].format(service=service.name),
    )


def _objective(service: Service, what: str, title: str, body: str) -> Found:
    return Found(
        service=service.name,
        what=what,
        kind=NotifyKind.OBJECTIVE,
        severity=Severity.BUSINESS_CRITICAL,
        title=title,
        body=body,
        next_command=f"drservice info {service.name}",
    )


def notice_of_breach(found: Found, *, since: datetime, number: int) -> Notice:
    """Return what to tell of a breach; ``number`` counts how often it is told."""
    again = "" if number == 1 else f"again (seen since {_at(since)}): "
    return Notice(
        event=f"breach:{found.service}:{found.what}:{to_iso(since)}:{number}",
        kind=found.kind,
        severity=found.severity,
        title=f"{again}{found.title}",
        body=found.body,
        service=found.service,
        next_command=found.next_command,
    )


def notice_of_end(key: BreachKey, known: KnownBreach, now: datetime) -> Notice:
    """Return what to tell when a breach is over: it was made good, or nobody promises or schedules it any more."""
    return Notice(
        event=f"breach:{key.service}:{key.what}:{to_iso(known.since)}:over",
        kind=NotifyKind(known.kind),
        severity=Severity.TECHNICAL,
        title=f"all clear: {known.title}",
        body=f"Seen at {_at(known.since)}, over by {_at(now)}.",
        service=key.service,
    )


def bundled(phase: str, notices: Sequence[Notice], now: datetime) -> Iterator[Notice]:
    """Yield the notices, or one for all of a kind if they are many: when a store is away, everything is broken at once.

    Args:
        phase: what their titles begin with.
        notices: of one phase.
        now: of the look that found them.
    """
    for kind in NotifyKind:
        those = [notice for notice in notices if notice.kind is kind]
        if len(those) <= _MOST_AT_ONCE:
            yield from those
            continue
        critical = any(notice.severity is Severity.BUSINESS_CRITICAL for notice in those)
        what = _MANY[kind]
        yield Notice(
            event=f"breaches:{kind.value}:{phase}{to_iso(now)}",
            kind=kind,
            severity=Severity.BUSINESS_CRITICAL if critical else Severity.TECHNICAL,
            title=f"{phase}{len(those)} {what}",
            body="\n".join(f"{notice.service}: {notice.title.removeprefix(phase)}" for notice in those),
            next_command="drservice info",
        )


def _at(instant: datetime) -> str:
    return instant.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _shown(span: timedelta) -> str:
    """Return a duration in its two largest units."""
    parts: list[str] = []
    rest = span.total_seconds()
    for unit, seconds in (("d", 86400), ("h", 3600), ("min", 60)):
        count, rest = divmod(rest, seconds)
        if count:
            parts.append(f"{count:.0f} {unit}")
    if rest or not parts:
        parts.append(f"{rest:.3g} s")
    return " ".join(parts[:2])
