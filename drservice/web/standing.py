"""How a service stands against its promises: pure, from what the configuration says and the catalogue knows.

*Backed up* and *verified* are two answers, never one: a service with fresh points that nobody ever restored is not
proved. What is unknown is told as unknown and never counts as kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum

from drservice.catalogue.facts import ServiceFacts
from drservice.model.agenda import Agenda, Overdue
from drservice.model.estate import PostgresSettings, Service

_STRAINED = 0.8


class Condition(Enum):
    """A service in a word, worst first."""

    UNPROTECTED = "unprotected"
    """There is nothing to restore from."""
    BROKEN = "promise broken"
    OVERDUE = "overdue"
    """The newest backup, verification or drill is older than its schedule allows (``model.agenda``)."""
    UNPROVED = "not proved"
    """Backed up, and no restore from it has ever passed, or the last one did not."""
    STRAINED = "close to its promise"
    KEPT = "promise kept"


_ORDER = {condition: place for place, condition in enumerate(Condition)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A service against its promises. ``None`` = unknown or not promised."""

    service: Service
    condition: Condition
    grounds: tuple[tuple[Condition, str | Overdue], ...]
    """What is not as it should be, worst first."""
    backed_up_at: datetime | None
    backed_up_state: str | None
    verified_at: datetime | None
    reachable_until: datetime | None
    """The newest instant that every cluster can be brought to."""
    at_risk: timedelta | None
    """At most so much committed work would be lost now: less if nothing was committed since, or WAL came just now."""
    documents_at_risk: timedelta | None
    """The same for documents that the rows of a database refer to; also ``None`` where there are none."""
    effective: timedelta | None
    """What the service as a whole would lose now: the larger of both, where there are documents."""
    promised_rpo: timedelta | None
    measured_rpo: timedelta | None
    promised_documents_rpo: timedelta | None
    promised_rto: timedelta | None
    measured_rto: timedelta | None
    strain: float | None
    """The promise that is nearest to its limit, as a share of it: above 1 it is broken."""
    missed: int
    """Slots that nobody was there for and no run was made for since: told, and no condition by themselves."""
    running: int

    @property
    def reasons(self) -> tuple[str, ...]:
        """The grounds in words."""
        return tuple(ground if isinstance(ground, str) else _told(ground) for _, ground in self.grounds)

    @property
    def order(self) -> tuple[int, float, str]:
        """Sorts those first that are closest to breaking a promise, or beyond."""
        return (_ORDER[self.condition], -(self.strain or 0.0), self.service.name)


def standing_of(service: Service, facts: ServiceFacts, now: datetime, agenda: Agenda) -> Standing:
    """Judge a service; ``agenda`` is of the configuration that the service is of."""
    reachable = _reachable_until(service, facts)
    at_risk = max(now - reachable, timedelta(0)) if reachable is not None else None
    streamed = facts.seconds_at_risk(now)
    if at_risk is not None and streamed is not None:
        at_risk = min(at_risk, timedelta(seconds=streamed))
    documents = _documents_at_risk(service, facts, now)
    proof = _proof(facts)
    measured_rpo = _seconds(facts.drill.rpo_seconds if facts.drill else None)
    newest = max((item for item in (facts.drill, facts.restore) if item), key=lambda item: item.entry, default=None)
    measured_rto = _seconds(newest.rto_seconds if newest else None)
    promised = service.objectives
    strains = [
        share
        for share in (
            # What arrived in the last minutes may not be known here yet: that breaks no promise and strains none.
            _share(_beyond(at_risk, facts.known_late), promised.rpo),
            _share(_beyond(documents, facts.documents_known_late), promised.documents_rpo),
            _share(measured_rpo, promised.rpo),
            _share(measured_rto, promised.rto),
        )
        if share is not None
    ]
    strain = max(strains, default=None)
    grounds = _grounds(service, facts, strain=strain, proof=proof, reachable=reachable)
    grounds.extend((Condition.OVERDUE, item) for item in agenda.overdue(service.name, facts.results, now))
    grounds.sort(key=lambda ground: _ORDER[ground[0]])
    return Standing(
        service=service,
        condition=grounds[0][0] if grounds else Condition.KEPT,
        grounds=tuple(grounds),
        backed_up_at=facts.point.created_at if facts.point else None,
        backed_up_state=facts.point.state if facts.point else None,
        verified_at=proof,
        reachable_until=reachable,
        at_risk=at_risk,
        documents_at_risk=documents,
        effective=at_risk if not service.filestores() else _larger(at_risk, documents),
        promised_rpo=promised.rpo,
        measured_rpo=measured_rpo,
        promised_documents_rpo=promised.documents_rpo,
        promised_rto=promised.rto,
        measured_rto=measured_rto,
        strain=strain,
        missed=facts.missed,
        running=facts.running,
    )


def _grounds(
    service: Service,
    facts: ServiceFacts,
    *,
    strain: float | None,
    proof: datetime | None,
    reachable: datetime | None,
) -> list[tuple[Condition, str | Overdue]]:
    found: list[tuple[Condition, str | Overdue]] = []
    if facts.point is None:
        found.append((Condition.UNPROTECTED, "there is no recovery point"))
    elif reachable is None and service.databases():
        found.append((Condition.BROKEN, "a cluster has no WAL that follows a snapshot"))
    elif facts.point.state == "partial":
        found.append((Condition.BROKEN, "the newest recovery point is partial: something could not be read"))
    found.extend(
        (Condition.BROKEN, f"{hole.component}: WAL from {hole.first_segment} on is missing: {hole.cost}")
        for hole in facts.holes
        if hole.is_open
    )
    if facts.point is not None:
        found.extend(
            (Condition.BROKEN, f"{item.name}: no pass over its documents is whole, and no stream has proved any")
            for item in service.filestores()
            if item.name not in facts.captured
        )
    if strain is not None and strain > 1:
        found.append((Condition.BROKEN, "more is at risk, or took longer, than promised"))
    if proof is None and facts.drill is None:
        found.append((Condition.UNPROVED, "no drill has been run"))
    elif proof is None and facts.drill is not None:
        found.append((Condition.UNPROVED, f"the last drill ended as {facts.drill.outcome}"))
    if strain is not None and _STRAINED < strain <= 1:
        found.append((Condition.STRAINED, "a promise is nearly used up"))
    return found


def _told(item: Overdue) -> str:
    return f"{item.what} was due on {item.due.at.astimezone(UTC):%Y-%m-%d at %H:%M} UTC"


def _reachable_until(service: Service, facts: ServiceFacts) -> datetime | None:
    """Return until when every cluster can be brought; without clusters, when the newest point was made."""
    ends: list[datetime] = []
    for component in service.components.values():
        if not isinstance(component, PostgresSettings):
            continue
        end = facts.reached.get(component.name)
        if end is None:
            return None
        ends.append(end)
    if ends:
        return min(ends)
    return facts.point.created_at if facts.point else None


def _documents_at_risk(service: Service, facts: ServiceFacts, now: datetime) -> timedelta | None:
    """Return what the worst filestore is behind; ``None`` if there is none, or one of which nothing is known."""
    found = [facts.documents_at_risk(item.name, now) for item in service.filestores()]
    known = [each for each in found if each is not None]
    return max(known) if known and len(known) == len(found) else None


def _larger(first: timedelta | None, second: timedelta | None) -> timedelta | None:
    return None if first is None or second is None else max(first, second)


def _beyond(at_risk: timedelta | None, known_late: timedelta) -> timedelta | None:
    return None if at_risk is None else max(at_risk - known_late, timedelta(0))


def _proof(facts: ServiceFacts) -> datetime | None:
    """Return when recovery was last proved; a newer drill that did not pass takes the proof away."""
    if facts.passed_drill is None or facts.drill is None or facts.drill.entry != facts.passed_drill.entry:
        return None
    return facts.passed_drill.recorded_at


def _share(measured: timedelta | None, promised: timedelta | None) -> float | None:
    if measured is None or not promised:
        return None
    return measured / promised


def _seconds(value: float | None) -> timedelta | None:
    return None if value is None else timedelta(seconds=value)
