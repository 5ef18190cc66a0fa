"""Builds a :class:`Report` from a ledger's entries and what the caller knows of the estate. Pure.

The rule book of reading evidence:

* Everything is judged as of the end of the period. An answer that came later is named as such and does not heal.
* A drill counts for an objective only if it was meant to succeed; a drill with a damage built in counts as *detected*
  only if obligation and outcome both say so beforehand and afterwards. A failed drill cannot be renamed into one.
* The first answer to an obligation is its answer. Trying again until it passes is shown, not rewarded.
* "Backed up" and "verified" are told apart, and what nobody drilled is "not verified", whatever its backups say.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise

from drservice.clock import from_iso, to_iso
from drservice.errors import EvidenceIncompleteError
from drservice.evidence.coverage import cover, gaps_of
from drservice.evidence.report import (
    BackedUp,
    BackupTally,
    Deviation,
    Drill,
    DrillVerdict,
    Keeping,
    KeySpan,
    Measured,
    Obligation,
    ObligationState,
    Period,
    Report,
    ReportInputs,
    ServiceFacts,
    ServicePosture,
    Standing,
    Verified,
)
from drservice.evidence.reportdeviations import GRAVE_FOR_A_SERVICE, Happenings, deviations_of
from drservice.evidence.reportentries import (
    AccessEntry,
    ApprovalEntry,
    BackupEntry,
    BackupOutcome,
    DecodedEntry,
    DrillEntry,
    DrillOutcome,
    Entry,
    FailureEntry,
    FindingEntry,
    KeyEntry,
    MissedEntry,
    ObligationEntry,
    ProbeEntry,
    RestoreEntry,
    RetentionEntry,
    Stamp,
    Unreadable,
)
from drservice.evidence.reportreading import read_entry
from drservice.model.evidence import target_from_seed

_GOOD_BACKUPS = {BackupOutcome.COMPLETE, BackupOutcome.DEGRADED}
_REAL = {DrillVerdict.PASSED, DrillVerdict.FAILED, DrillVerdict.ABORTED}


def build_report(entries: Sequence[DecodedEntry], *, inputs: ReportInputs) -> Report:
    """Return what can be said about the period.

    Args:
        entries: every entry of the log, in order; the report's populations are only as complete as this.
        inputs: ledger, period, estate.

    Raises:
        EvidenceIncompleteError: the entries are not exactly 0 to ``tree_size - 1``.
    """
    if [entry.number for entry in entries] != list(range(inputs.ledger.tree_size)):
        raise EvidenceIncompleteError(
            f"a report needs all {inputs.ledger.tree_size} entries of the log in order; {len(entries)} were given"
        )
    read = [read_entry(entry) for entry in entries]
    book = _open_book(read, inputs)
    period = inputs.period
    drills = tuple(_judge_drill(drill, book) for drill in book.drills)
    services = _services(book, inputs)
    seen = _happenings(book, drills=drills, services=services, inputs=inputs)
    deviations = deviations_of(seen)
    posture = tuple(
        _posture(facts, is_declared=declared, book=book, drills=drills, seen=seen, deviations=deviations)
        for facts, declared in services
    )
    coverage = cover(drills, scenarios=inputs.scenarios, services=posture, period=period)
    return Report(
        ledger=inputs.ledger,
        period=period,
        only_service=inputs.only_service,
        newest_at=max((entry.stamp.recorded_at for entry in read if not isinstance(entry, Unreadable)), default=None),
        posture=posture,
        deviations=deviations,
        drills=seen.drills,
        restores=seen.restores,
        gaps=gaps_of(seen.drills, coverage=coverage, services=posture, period=period),
        coverage=coverage,
        obligations=seen.obligations,
        backups=tuple(_tally(facts.name, seen.backups, period) for facts, _ in services),
        findings=seen.findings,
        approvals=seen.approvals,
        probes=seen.probes,
        missed=seen.missed,
        failures=seen.failures,
        retention=seen.retention,
        access=seen.access,
        keys=tuple(_key_spans(book.keys)),
        unreadable=book.unreadable,
        populations=_populations(read, inputs),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Book:
    """The entries in scope up to the period's end, by kind, in order; ``later_drills`` came after it."""

    backups: tuple[BackupEntry, ...]
    restores: tuple[RestoreEntry, ...]
    drills: tuple[DrillEntry, ...]
    later_drills: tuple[DrillEntry, ...]
    obligations: tuple[ObligationEntry, ...]
    by_obligation: Mapping[str, ObligationEntry]
    first_answer: Mapping[str, DrillEntry]
    findings: tuple[FindingEntry, ...]
    approvals: tuple[ApprovalEntry, ...]
    probes: tuple[ProbeEntry, ...]
    missed: tuple[MissedEntry, ...]
    failures: tuple[FailureEntry, ...]
    retention: tuple[RetentionEntry, ...]
    access: tuple[AccessEntry, ...]
    keys: tuple[KeyEntry, ...]
    kept_aside: tuple[Stamp, ...]
    unreadable: tuple[Unreadable, ...]


def _open_book(read: Iterable[Entry | Unreadable], inputs: ReportInputs) -> _Book:
    unreadable: list[Unreadable] = []
    known: list[Entry] = []
    later: list[Entry] = []
    for entry in read:
        if isinstance(entry, Unreadable):
            unreadable.append(entry)
        elif inputs.only_service is None or entry.stamp.service in {None, inputs.only_service}:
            (known if entry.stamp.recorded_at < inputs.period.end else later).append(entry)
    by_obligation: dict[str, ObligationEntry] = {}
    first_answer: dict[str, DrillEntry] = {}
    for entry in known:
        if isinstance(entry, ObligationEntry):
            by_obligation.setdefault(entry.obligation, entry)
        elif isinstance(entry, DrillEntry):
            first_answer.setdefault(entry.obligation, entry)
    return _Book(
        backups=tuple(entry for entry in known if isinstance(entry, BackupEntry)),
        restores=tuple(entry for entry in known if isinstance(entry, RestoreEntry)),
        drills=tuple(entry for entry in known if isinstance(entry, DrillEntry)),
        later_drills=tuple(entry for entry in later if isinstance(entry, DrillEntry)),
        obligations=tuple(entry for entry in known if isinstance(entry, ObligationEntry)),
        by_obligation=by_obligation,
        first_answer=first_answer,
        findings=tuple(entry for entry in known if isinstance(entry, FindingEntry)),
        approvals=tuple(entry for entry in known if isinstance(entry, ApprovalEntry)),
        probes=tuple(entry for entry in known if isinstance(entry, ProbeEntry)),
        missed=tuple(entry for entry in known if isinstance(entry, MissedEntry)),
        failures=tuple(entry for entry in known if isinstance(entry, FailureEntry)),
        retention=tuple(entry for entry in known if isinstance(entry, RetentionEntry)),
        access=tuple(entry for entry in known if isinstance(entry, AccessEntry)),
        keys=tuple(entry for entry in known if isinstance(entry, KeyEntry)),
        kept_aside=tuple(entry.stamp for entry in known if entry.stamp.is_kept_aside),
        unreadable=tuple(unreadable),
    )


def _happenings(
    book: _Book, *, drills: Sequence[Drill], services: Sequence[tuple[ServiceFacts, bool]], inputs: ReportInputs
) -> Happenings:
    period = inputs.period
    backed_up = {entry.stamp.service for entry in book.backups}
    return Happenings(
        drills=tuple(drill for drill in drills if period.holds(drill.entry.stamp.recorded_at)),
        obligations=tuple(_obligations(book, period)),
        restores=tuple(entry for entry in book.restores if period.holds(entry.stamp.recorded_at)),
        backups=tuple(entry for entry in book.backups if period.holds(entry.stamp.recorded_at)),
        never_backed_up=tuple(facts.name for facts, known in services if known and facts.name not in backed_up),
        kept_aside=tuple(stamp for stamp in book.kept_aside if period.holds(stamp.recorded_at)),
        findings=tuple(_findings(book.findings, period)),
        probes=tuple(entry for entry in book.probes if period.holds(entry.stamp.recorded_at)),
        approvals=tuple(entry for entry in book.approvals if period.holds(entry.stamp.recorded_at)),
        missed=tuple(entry for entry in book.missed if period.holds(entry.stamp.recorded_at)),
        failures=tuple(entry for entry in book.failures if period.holds(entry.stamp.recorded_at)),
        retention=tuple(entry for entry in book.retention if period.holds(entry.stamp.recorded_at)),
        access=tuple(entry for entry in book.access if period.holds(entry.stamp.recorded_at)),
        unreadable=book.unreadable,
        services=tuple(facts for facts, _ in services),
        ledger=inputs.ledger,
        period=period,
    )


# --- drills -------------------------------------------------------------------------------------------------


def _judge_drill(drill: DrillEntry, book: _Book) -> Drill:
    obligation = book.by_obligation.get(drill.obligation)
    if obligation is not None and obligation.stamp.number > drill.stamp.number:
        obligation = None  # written down after the fact: no obligation
    run = {check.name for check in drill.checks}
    chosen = _chosen_by_seed(drill, obligation) if obligation else None
    return Drill(
        entry=drill,
        obligation=obligation,
        verdict=_verdict(drill, obligation),
        chosen_by_seed=chosen,
        checks_not_run=tuple(name for name, _ in (obligation.checks if obligation else ()) if name not in run),
        objections=tuple(_objections(drill, obligation, book.first_answer.get(drill.obligation), chosen)),
    )


def _verdict(drill: DrillEntry, obligation: ObligationEntry | None) -> DrillVerdict:
    announced = obligation.mutation if obligation else None
    if drill.outcome is DrillOutcome.ABORTED:
        return DrillVerdict.ABORTED
    if drill.outcome is DrillOutcome.PASSED:
        return DrillVerdict.UNDETECTED if announced or drill.mutation else DrillVerdict.PASSED
    return DrillVerdict.DETECTED if announced and announced == drill.mutation else DrillVerdict.FAILED


def _objections(
    drill: DrillEntry, obligation: ObligationEntry | None, first: DrillEntry | None, chosen: datetime | None
) -> Iterable[str]:
    if obligation is None:
        yield "no obligation was recorded before this drill, so nobody knows what it was meant to show"
        return
    if drill.obligation_entry != obligation.stamp.number:
        yield f"it names entry {drill.obligation_entry} as its obligation, which is entry {obligation.stamp.number}"
    if drill.stamp.service != obligation.stamp.service:
        yield f"the obligation is for service {obligation.stamp.service}"
    if drill.promised != obligation.promised:
        yield "it was judged by other objectives than those recorded beforehand"
    planned = dict(obligation.checks)
    for check in drill.checks:
        if planned.get(check.name, check.gravity) is not check.gravity:
            yield f"check {check.name} was planned as {planned[check.name].value} and counted as {check.gravity.value}"
    if drill.mutation != obligation.mutation:
        yield f"the obligation announced mutation {obligation.mutation}, the drill names {drill.mutation}"
    if first is not None and first.stamp.number != drill.stamp.number:
        yield f"the obligation had been answered before, by entry {first.stamp.number}"
    yield from _seed_objections(drill, obligation, chosen)


def _seed_objections(drill: DrillEntry, obligation: ObligationEntry, chosen: datetime | None) -> Iterable[str]:
    if obligation.target_kind != "random" or (drill.outcome is DrillOutcome.ABORTED and drill.seed is None):
        return
    seed = _seed_of(drill)
    if seed is None or obligation.seed_commitment != hashlib.sha256(seed).hexdigest():
        yield "the seed is not the one committed to beforehand, or is not given"
    elif chosen is None:
        yield "the obligation names no window from which the seed could choose"
    elif drill.restoration.target is not None and not _is_instant(drill.restoration.target.requested, chosen):
        yield f"the target asked for is not the one that the seed chooses, {to_iso(chosen)}"


def _chosen_by_seed(drill: DrillEntry, obligation: ObligationEntry) -> datetime | None:
    seed = _seed_of(drill)
    if seed is None or obligation.target_from is None or obligation.target_to is None:
        return None
    try:
        return target_from_seed(seed, obligation.target_from, obligation.target_to)
    except ValueError:
        return None  # no window, no choice; the objection says so


def _seed_of(drill: DrillEntry) -> bytes | None:
    try:
        return None if drill.seed is None else bytes.fromhex(drill.seed)
    except ValueError:
        return None


def _is_instant(text: str | None, instant: datetime) -> bool:
    try:
        return text is not None and from_iso(text) == instant
    except ValueError:
        return False


def _obligations(book: _Book, period: Period) -> Iterable[Obligation]:
    verdicts = {drill.stamp.number: _judge_drill(drill, book).verdict for drill in book.first_answer.values()}
    later: dict[str, int] = {}
    for drill in book.later_drills:
        later.setdefault(drill.obligation, drill.stamp.number)
    for entry in book.obligations:
        answer = book.first_answer.get(entry.obligation)
        if answer is not None and answer.stamp.number < entry.stamp.number:
            answer = None
        if answer is not None:
            if answer.stamp.recorded_at < period.begin and not (entry.due_at and period.holds(entry.due_at)):
                continue
            is_late = entry.due_at is not None and answer.stamp.recorded_at > entry.due_at
            state = ObligationState.LATE if is_late else ObligationState.ANSWERED
        else:
            is_due = entry.due_at is None or entry.due_at < period.end
            state = ObligationState.MISSED if is_due else ObligationState.OPEN
        yield Obligation(
            entry=entry,
            state=state,
            answer=answer,
            verdict=verdicts[answer.stamp.number] if answer else None,
            answered_after=None if answer else later.get(entry.obligation),
        )


# --- services -----------------------------------------------------------------------------------------------


def _services(book: _Book, inputs: ReportInputs) -> list[tuple[ServiceFacts, bool]]:
    """All declared services, then those that only the ledger knows; each with whether it is declared."""
    declared = [s for s in inputs.services if inputs.only_service in {None, s.name}]
    known = {facts.name for facts in declared}
    entries: tuple[Entry, ...] = (*book.backups, *book.restores, *book.drills, *book.obligations)
    seen = {entry.stamp.service for entry in entries if entry.stamp.service is not None}
    return [(facts, True) for facts in declared] + [(ServiceFacts(name=name), False) for name in sorted(seen - known)]


def _posture(
    facts: ServiceFacts,
    *,
    is_declared: bool,
    book: _Book,
    drills: Sequence[Drill],
    seen: Happenings,
    deviations: Sequence[Deviation],
) -> ServicePosture:
    period = seen.period
    real = [drill for drill in drills if drill.entry.stamp.service == facts.name and drill.verdict in _REAL]
    inside = [drill for drill in real if period.holds(drill.entry.stamp.recorded_at)]
    passed = [drill.entry for drill in real if drill.verdict is DrillVerdict.PASSED and not drill.objections]
    backups = [entry for entry in book.backups if entry.stamp.service == facts.name]
    rpo = _measure(facts.promise.rpo_ms, [drill.entry.rpo_ms for drill in inside])
    rto = _measure(facts.promise.rto_ms, [drill.entry.restoration.rto_ms for drill in inside])
    backed_up = _backed_up(backups)
    verified = _verified(real, passed, period)
    mine = [deviation for deviation in deviations if deviation.service == facts.name]
    own = [obligation for obligation in seen.obligations if obligation.entry.stamp.service == facts.name]
    return ServicePosture(
        facts=facts,
        is_declared=is_declared,
        standing=_standing(rpo=rpo, rto=rto, backed_up=backed_up, verified=verified, deviations=mine),
        rpo=rpo,
        rto=rto,
        backed_up=backed_up,
        last_backup=next((entry for entry in reversed(backups) if entry.outcome in _GOOD_BACKUPS), None),
        verified=verified,
        last_passed=passed[-1] if passed else None,
        drills=len(inside),
        overdue=sum(obligation.state is ObligationState.MISSED for obligation in own),
        open_obligations=sum(obligation.state is ObligationState.OPEN for obligation in own),
        open_findings=sum(entry.is_open and entry.stamp.service == facts.name for entry in seen.findings),
        unprotected=tuple(component for component in facts.components if not component.is_protected),
    )


def _measure(promised_ms: int | None, values: Sequence[int | None]) -> Measured:
    known = [value for value in values if value is not None]
    worst = max(known, default=None)
    if promised_ms is None:
        keeping = Keeping.NOT_PROMISED
    elif worst is None:
        keeping = Keeping.NOT_MEASURED
    else:
        keeping = Keeping.BREACHED if worst > promised_ms else Keeping.KEPT
    last = known[-1] if known else None
    return Measured(promised_ms=promised_ms, last_ms=last, worst_ms=worst, samples=len(known), keeping=keeping)


def _backed_up(backups: Sequence[BackupEntry]) -> BackedUp:
    if not backups:
        return BackedUp.NEVER
    return {
        BackupOutcome.COMPLETE: BackedUp.COMPLETE,
        BackupOutcome.DEGRADED: BackedUp.DEGRADED,
        BackupOutcome.PARTIAL: BackedUp.PARTIAL,
        BackupOutcome.FAILED: BackedUp.FAILED,
    }[backups[-1].outcome]


def _verified(real: Sequence[Drill], passed: Sequence[DrillEntry], period: Period) -> Verified:
    if not real:
        return Verified.NEVER
    if not passed or passed[-1].stamp.number != real[-1].entry.stamp.number:
        return Verified.FAILED
    return Verified.IN_PERIOD if period.holds(passed[-1].stamp.recorded_at) else Verified.BEFORE


def _standing(
    *, rpo: Measured, rto: Measured, backed_up: BackedUp, verified: Verified, deviations: Sequence[Deviation]
) -> Standing:
    over = any(m.promised_ms is not None and m.last_ms is not None and m.last_ms > m.promised_ms for m in (rpo, rto))
    grave = any(deviation.kind in GRAVE_FOR_A_SERVICE for deviation in deviations)
    if over or grave or verified is Verified.FAILED or backed_up in {BackedUp.FAILED, BackedUp.NEVER}:
        return Standing.BREACHED
    unmeasured = any(m.keeping is Keeping.NOT_MEASURED for m in (rpo, rto))
    if verified is not Verified.IN_PERIOD or unmeasured:
        return Standing.NOT_PROVED
    return Standing.ATTENTION if deviations else Standing.PROVED


# --- populations --------------------------------------------------------------------------------------------


def _tally(service: str, backups: Sequence[BackupEntry], period: Period) -> BackupTally:
    own = [entry for entry in backups if entry.stamp.service == service]
    points = sorted(_ended(entry) for entry in own if entry.outcome in _GOOD_BACKUPS)
    edges = [period.begin, *(min(max(at, period.begin), period.end) for at in points), period.end]
    gap = max((after - before for before, after in pairwise(edges)), default=timedelta())
    counts = {outcome: sum(entry.outcome is outcome for entry in own) for outcome in BackupOutcome}
    return BackupTally(
        service=service,
        total=len(own),
        complete=counts[BackupOutcome.COMPLETE],
        degraded=counts[BackupOutcome.DEGRADED],
        partial=counts[BackupOutcome.PARTIAL],
        failed=counts[BackupOutcome.FAILED],
        first_at=points[0] if points else None,
        last_at=points[-1] if points else None,
        longest_gap_ms=gap // timedelta(milliseconds=1) if points else None,
    )


def _ended(entry: BackupEntry) -> datetime:
    return entry.ended_at or entry.stamp.recorded_at


def _findings(entries: Sequence[FindingEntry], period: Period) -> Iterable[FindingEntry]:
    last: dict[str, FindingEntry] = {}
    for entry in entries:
        last[entry.finding] = entry
    return [entry for entry in last.values() if entry.is_open or period.holds(entry.stamp.recorded_at)]


def _key_spans(keys: Sequence[KeyEntry]) -> Iterable[KeySpan]:
    for place, entry in enumerate(keys):
        if entry.action == "revoked":
            continue
        ended = [
            later.stamp.number
            for later in keys[place + 1 :]
            if (later.name, later.role) == (entry.name, entry.role) and later.action in {"rotated", "revoked"}
        ]
        yield KeySpan(entry=entry, ended_by=ended[0] if ended else None)


def _populations(read: Sequence[Entry | Unreadable], inputs: ReportInputs) -> tuple[tuple[str, int, int], ...]:
    totals: dict[str, list[int]] = {}
    for entry in read:
        if isinstance(entry, Unreadable):
            totals.setdefault("not understood", [0, 0])[0] += 1
            continue
        row = totals.setdefault(entry.stamp.kind, [0, 0])
        row[0] += 1
        row[1] += inputs.period.holds(entry.stamp.recorded_at)
    return tuple((kind, total, inside) for kind, (total, inside) in sorted(totals.items()))
