"""Finds the exceptions of a period: everything that is not as promised, the gravest first. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta

from drservice.evidence.report import (
    Deviation,
    DeviationKind,
    Drill,
    DrillVerdict,
    LedgerFacts,
    Obligation,
    ObligationState,
    Period,
    ServiceFacts,
)
from drservice.evidence.reportentries import (
    AccessEntry,
    ApprovalEntry,
    BackupEntry,
    BackupOutcome,
    CheckOutcome,
    Documents,
    FailureEntry,
    FindingEntry,
    Gravity,
    MissedEntry,
    ProbeEntry,
    RestoreEntry,
    RestoreOutcome,
    RetentionEntry,
    Stamp,
    Trouble,
    Unreadable,
)
from drservice.evidence.reporttext import count_of, format_instant, format_ms

ANCHOR_MAX_AGE = timedelta(days=7)
"""How old the last anchor may be at the period's end while newer entries wait for one."""

GRAVE_FOR_A_SERVICE = frozenset({DeviationKind.UNDETECTED, DeviationKind.CONTRADICTION, DeviationKind.ISOLATION})
"""Whatever else was measured is worth little beside one of these."""

_ASIDE = "the ledger could not be written at the time; the entry was kept aside and appended later"
_SETTLED = frozenset({"applied", "marked"})
"""How retention ends as it should."""
_ORDER = {kind: place for place, kind in enumerate(DeviationKind)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Happenings:
    """What happened in the period, and what stood at its end."""

    drills: tuple[Drill, ...]
    obligations: tuple[Obligation, ...]
    restores: tuple[RestoreEntry, ...]
    backups: tuple[BackupEntry, ...]
    never_backed_up: tuple[str, ...]
    """Declared services without any backup in the ledger."""
    kept_aside: tuple[Stamp, ...]
    findings: tuple[FindingEntry, ...]
    probes: tuple[ProbeEntry, ...]
    approvals: tuple[ApprovalEntry, ...]
    missed: tuple[MissedEntry, ...]
    failures: tuple[FailureEntry, ...]
    retention: tuple[RetentionEntry, ...]
    access: tuple[AccessEntry, ...]
    unreadable: tuple[Unreadable, ...]
    services: tuple[ServiceFacts, ...]
    ledger: LedgerFacts
    period: Period


def deviations_of(seen: Happenings) -> tuple[Deviation, ...]:
    """Return all exceptions: critical before warning, then by kind, then by entry."""
    found = [
        *(deviation for drill in seen.drills for deviation in _of_drill(drill)),
        *(deviation for obligation in seen.obligations for deviation in _of_obligation(obligation)),
        *(deviation for restore in seen.restores for deviation in _of_restore(restore)),
        *(deviation for backup in seen.backups for deviation in _of_backup(backup)),
        *(_make(DeviationKind.KEPT_ASIDE, stamp, _ASIDE, gravity=Gravity.WARNING) for stamp in seen.kept_aside),
        *(_of_finding(finding) for finding in seen.findings if finding.is_open),
        *(_of_probe(probe) for probe in seen.probes if not probe.is_passed),
        *(_of_approval(approval) for approval in seen.approvals if approval.decision != "approved"),
        *(_of_missed(missed) for missed in seen.missed),
        *(_of_failure(failure) for failure in seen.failures),
        *(_of_retention(entry) for entry in seen.retention if entry.outcome not in _SETTLED or entry.is_accepted),
        *(_of_unreadable(entry) for entry in seen.unreadable),
        *(deviation for facts in seen.services for deviation in _of_service(facts)),
        *(_of_absence(name) for name in seen.never_backed_up),
        *_of_anchors(seen.ledger, seen.period),
    ]
    return tuple(
        sorted(found, key=lambda d: (d.gravity is not Gravity.CRITICAL, _ORDER[d.kind], d.entries, d.service or ""))
    )


def _make(kind: DeviationKind, stamp: Stamp, text: str, *, gravity: Gravity = Gravity.CRITICAL) -> Deviation:
    return Deviation(
        kind=kind, gravity=gravity, service=stamp.service, text=text, entries=(stamp.number,), at=stamp.recorded_at
    )


def _of_drill(drill: Drill) -> Iterator[Deviation]:
    entry, stamp = drill.entry, drill.entry.stamp
    reasons = "; ".join(entry.reasons) or _told(entry.restoration.error) or "no reason is given"
    if drill.verdict is DrillVerdict.UNDETECTED:
        yield _make(DeviationKind.UNDETECTED, stamp, f"{entry.mutation}: the damage was not noticed")
    if drill.verdict is DrillVerdict.FAILED:
        yield _make(DeviationKind.DRILL_FAILED, stamp, reasons)
    if drill.verdict is DrillVerdict.ABORTED:
        yield _make(DeviationKind.DRILL_ABORTED, stamp, reasons)
    for objection in drill.objections:
        yield _make(DeviationKind.CONTRADICTION, stamp, objection)
    for probe in entry.restoration.isolation:
        if not probe.is_good:
            yield _make(DeviationKind.ISOLATION, stamp, f"{probe.name}: {probe.detail}")
    if not entry.is_destroyed and entry.restoration.environment is not None:
        text = "kept on purpose" if entry.is_kept else "the environment was neither destroyed nor kept on purpose"
        gravity = Gravity.WARNING if entry.is_kept else Gravity.CRITICAL
        yield _make(DeviationKind.LEFT_BEHIND, stamp, text, gravity=gravity)
    if drill.verdict is not DrillVerdict.DETECTED:
        yield from _of_measurements(drill)
        yield from _of_checks(drill)


def _of_measurements(drill: Drill) -> Iterator[Deviation]:
    entry, stamp = drill.entry, drill.entry.stamp
    promised = drill.obligation.promised if drill.obligation else entry.promised
    pairs = (("RPO", entry.rpo_ms, promised.rpo_ms), ("RTO", entry.restoration.rto_ms, promised.rto_ms))
    for name, measured, promise in pairs:
        if measured is not None and promise is not None and measured > promise:
            text = f"{name} {format_ms(measured)}, promised {format_ms(promise)}"
            yield _make(DeviationKind.OBJECTIVE, stamp, text)
    yield from _of_documents(stamp, entry.restoration.documents)


def _of_documents(stamp: Stamp, documents: Documents | None) -> Iterator[Deviation]:
    if documents is not None and (documents.missing or documents.corrupt):
        text = f"{documents.missing:,} missing and {documents.corrupt:,} corrupt of {documents.expected:,}"
        yield _make(DeviationKind.DOCUMENTS, stamp, text)


def _of_checks(drill: Drill) -> Iterator[Deviation]:
    stamp = drill.entry.stamp
    for check in drill.entry.checks:
        if check.state is not CheckOutcome.PASSED and not check.is_not_applicable:
            owner = f" (owner: {check.owner})" if check.owner else ""
            text = f"{check.name} {check.state.value}{owner}: {check.detail}"
            yield _make(DeviationKind.CHECK, stamp, text, gravity=check.gravity)
    for name in drill.checks_not_run:
        yield _make(DeviationKind.CHECK, stamp, f"{name} was promised beforehand and not run")


def _of_obligation(obligation: Obligation) -> Iterator[Deviation]:
    entry = obligation.entry
    if obligation.state is ObligationState.MISSED:
        later = f"; answered after the period by entry {obligation.answered_after}" if obligation.answered_after else ""
        yield _make(DeviationKind.OBLIGATION_MISSED, entry.stamp, f"{entry.plan}: no outcome is recorded{later}")
    if obligation.state is ObligationState.LATE and obligation.answer and entry.due_at:
        late = (obligation.answer.stamp.recorded_at - entry.due_at) // timedelta(milliseconds=1)
        text = f"{entry.plan}: {format_ms(late)} after it was due"
        yield _make(DeviationKind.LATE, obligation.answer.stamp, text, gravity=Gravity.WARNING)


def _of_restore(restore: RestoreEntry) -> Iterator[Deviation]:
    if restore.outcome is not RestoreOutcome.RESTORED:
        restoration = restore.restoration
        asked = restoration.target.requested if restoration.target is not None else None
        # Without documents it is partial because a part was asked for, and the target says which.
        known = "see its documents" if restoration.documents is not None else f"as asked for: {asked}"
        text = f"{restore.outcome.value}: {_told(restoration.error) or known}"
        gravity = Gravity.CRITICAL if restore.outcome is RestoreOutcome.FAILED else Gravity.WARNING
        yield _make(DeviationKind.RESTORE, restore.stamp, text, gravity=gravity)
    yield from _of_documents(restore.stamp, restore.restoration.documents)


def _of_backup(backup: BackupEntry) -> Iterator[Deviation]:
    lost = [c for c in backup.components if c.missing_in_production or c.corrupt_in_production]
    if backup.outcome is not BackupOutcome.COMPLETE:
        parts = ", ".join(f"{c.component} {c.state}" for c in backup.components)
        text = f"{backup.outcome.value}: {_told(backup.error) or parts or 'no reason is given'}"
        gravity = Gravity.CRITICAL if backup.outcome is BackupOutcome.FAILED else Gravity.WARNING
        yield _make(DeviationKind.BACKUP, backup.stamp, text, gravity=gravity)
    for component in lost:
        text = (
            f"{component.component}: {component.missing_in_production:,} missing and "
            f"{component.corrupt_in_production:,} corrupt in production already"
        )
        yield _make(DeviationKind.DOCUMENTS, backup.stamp, text, gravity=Gravity.WARNING)


def _of_finding(finding: FindingEntry) -> Deviation:
    owner = finding.owner or "nobody"
    return _make(
        DeviationKind.FINDING,
        finding.stamp,
        f"{finding.check} (owner: {owner}): {finding.detail}",
        gravity=finding.gravity,
    )


def _of_probe(probe: ProbeEntry) -> Deviation:
    failed = ", ".join(f"{result.name}: {result.detail}" for result in probe.results if not result.is_good)
    return _make(DeviationKind.PROBE, probe.stamp, f"{probe.probe}: {failed or 'no result is given'}")


def _of_approval(approval: ApprovalEntry) -> Deviation:
    text = f"{approval.approver} on entry {approval.entry}: {approval.decision} {approval.comment}".rstrip()
    return _make(DeviationKind.REJECTED, approval.stamp, text, gravity=Gravity.WARNING)


def _of_missed(missed: MissedEntry) -> Deviation:
    what = f"{missed.kind} {missed.plan}" if missed.plan else missed.kind
    slots = count_of(len(missed.slots), "slot")
    instead = f"run {missed.caught_up_by} makes up for it" if missed.caught_up_by else "nothing makes up for it"
    text = f"{what}: {slots} up to {format_instant(missed.slots[-1])}, {missed.reason}; {instead}"
    gravity = Gravity.WARNING if missed.caught_up_by else Gravity.CRITICAL
    return _make(DeviationKind.SLOT_MISSED, missed.stamp, text, gravity=gravity)


def _of_failure(failure: FailureEntry) -> Deviation:
    what = f"{failure.kind} {failure.plan}" if failure.plan else failure.kind
    claims = f"after {count_of(failure.claims, 'claim')}"
    reason = _told(failure.error) or "no reason is given"
    text = f"{what} of {format_instant(failure.scheduled_for)} {failure.outcome} {claims}: {reason}"
    gravity = Gravity.CRITICAL if failure.outcome == "failed" else Gravity.WARNING
    return _make(DeviationKind.RUN_FAILED, failure.stamp, text, gravity=gravity)


def _of_retention(entry: RetentionEntry) -> Deviation:
    """What was let go after a person looked at anomalies, or not let go: an auditor wants to see both."""
    looked_at = "accepted: " if entry.is_accepted else ""
    why = _told(entry.error) or looked_at + "; ".join(entry.anomalies) or f"{entry.refused} not let go by the store"
    text = f"{entry.action} {entry.outcome}: {why}"
    return _make(DeviationKind.RETENTION, entry.stamp, text, gravity=Gravity.WARNING)


def _of_unreadable(entry: Unreadable) -> Deviation:
    return Deviation(
        kind=DeviationKind.UNREADABLE,
        gravity=Gravity.CRITICAL,
        service=None,
        text=entry.reason,
        entries=(entry.number,),
        at=None,
    )


def _of_service(facts: ServiceFacts) -> Iterator[Deviation]:
    for component in facts.components:
        if not component.is_protected:
            yield Deviation(
                kind=DeviationKind.UNPROTECTED,
                gravity=Gravity.WARNING,
                service=facts.name,
                text=f"{component.name} ({component.kind}) is not backed up" + _because(component.note),
                entries=(),
                at=None,
            )


def _of_absence(service: str) -> Deviation:
    return Deviation(
        kind=DeviationKind.UNPROTECTED,
        gravity=Gravity.CRITICAL,
        service=service,
        text="no backup of this service is in the ledger",
        entries=(),
        at=None,
    )


def _of_anchors(ledger: LedgerFacts, period: Period) -> Iterable[Deviation]:
    newest = max(ledger.anchors, key=lambda anchor: anchor.tree_size, default=None)
    if newest is None:
        text = "no checkpoint is held outside the repository: whoever holds the log key could rewrite all of it"
    else:
        waiting = ledger.tree_size - newest.tree_size
        is_old = newest.anchored_at is None or period.end - newest.anchored_at > ANCHOR_MAX_AGE
        if waiting <= 0 or not is_old:
            return
        text = f"{count_of(waiting, 'entry', 'entries')} newer than the last anchor ({newest.name}), which is old"
    yield Deviation(
        kind=DeviationKind.NOT_ANCHORED, gravity=Gravity.WARNING, service=None, text=text, entries=(), at=None
    )


def _told(error: Trouble | None) -> str:
    return f"{error.code} {error.message}" if error else ""


def _because(note: str) -> str:
    return f": {note}" if note else ""
