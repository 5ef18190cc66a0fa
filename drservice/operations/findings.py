"""Findings: what a drill showed to be wrong, open until a newer drill shows it right.

A finding is opened for a check that did not pass, and closed only by a later pass of the same check: nobody can close
one by saying so.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from drservice.canonical import Json, canonical_bytes
from drservice.checks.suite import business_name
from drservice.clock import from_iso
from drservice.errors import LedgerError
from drservice.evidence.statements import Subject
from drservice.model.checks import CheckResult, CheckState, Severity
from drservice.model.estate import BusinessCheck, Service
from drservice.model.evidence import EvidenceKind
from drservice.model.ids import make_ulid
from drservice.operations.evidence import Evidence
from drservice.operations.ledgernotes import ledger_notes
from drservice.operations.records import bounded


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenFinding:
    """A finding that nothing has closed yet."""

    finding: str
    check: str
    severity: Severity
    drill_entry: int | None


def open_findings(evidence: Evidence, service: Service) -> list[OpenFinding]:
    """Return what is open for a service, the newest first, however old it is.

    Raises:
        LedgerError, ObjectStoreError: the ledger cannot be read, or a record that nobody can believe is newer than the
            last drill that passed.
    """
    notes = ledger_notes(evidence.ledger)
    known = notes.of(service.name)
    problem = notes.doubt_about(service.name)
    if problem is not None:
        raise LedgerError(f"a record that cannot be believed may tell of a finding: {problem}")
    return [
        OpenFinding(
            finding=note.finding, check=note.check, severity=Severity(note.severity), drill_entry=note.drill_entry
        )
        for note in reversed(known.findings.values())
    ]


def label_of(name: str, checks: Sequence[BusinessCheck]) -> str:
    """Return what a finding calls a check: a business check goes with a hash of what it asks and expects."""
    for check in checks:
        if name == business_name(check.name):
            asked = canonical_bytes([check.component, check.database, check.sql, str(check.expect)])
            return f"{name} ({hashlib.sha256(asked).hexdigest()[:12]})"
    return name


def _reached_by(evidence: Evidence, finding: OpenFinding) -> datetime | None:
    """Return the instant that the drill which opened a finding had reached; ``None`` if it had reached none."""
    if finding.drill_entry is None:
        return None
    target = evidence.ledger.entry(finding.drill_entry).signed.statement.predicate.get("target")
    reached = target.get("reached_time") if isinstance(target, Mapping) else None
    return from_iso(str(reached)) if reached is not None else None


def new_finding_ids(evidence: Evidence, results: Sequence[CheckResult], known: Sequence[OpenFinding]) -> dict[str, str]:
    """Return an id for each check that did not pass and has no open finding yet."""
    open_checks = {finding.check for finding in known}
    return {
        result.name: make_ulid(evidence.clock.now(), os.urandom(10))
        for result in results
        if result.state is not CheckState.PASSED and result.name not in open_checks
    }


def record_findings(
    evidence: Evidence,
    service: Service,
    *,
    drill_entry: int,
    results: Sequence[CheckResult],
    opened: dict[str, str],
    known: Sequence[OpenFinding],
    reached: datetime | None,
) -> list[str]:
    """Put new findings on record and close those whose check passed; returns the ids that were closed.

    A copy of an earlier instant than the one that showed the deficiency proves nothing about it: ``reached`` is the
    instant of this one.

    Raises:
        LedgerError, ObjectStoreError: not everything is on record.
    """
    by_name = {result.name: result for result in results}
    for check, identifier in opened.items():
        _record(evidence, service, identifier, "opened", by_name[check], drill_entry)
    closed: list[str] = []
    for finding in known:
        result = by_name.get(finding.check)
        if result is None or result.state is not CheckState.PASSED:
            continue
        shown_at = _reached_by(evidence, finding)
        if shown_at is None or (reached is not None and reached >= shown_at):
            _record(evidence, service, finding.finding, "closed", result, drill_entry)
            closed.append(finding.finding)
    return closed


def _record(
    evidence: Evidence, service: Service, identifier: str, state: str, result: CheckResult, drill_entry: int
) -> None:
    fields: dict[str, Json] = {
        "finding": identifier,
        "state": state,
        "check": bounded(result.name),
        "severity": result.severity.value,
        "owner": bounded(result.owner) if result.owner is not None else (bounded(service.owner) or None),
        "drill_entry": drill_entry,
        "detail": bounded(result.detail),
        "due_at": None,
    }
    evidence.require(
        EvidenceKind.FINDING,
        service=service.name,
        run=None,
        subject=[Subject(f"finding/{identifier}", hashlib.sha256(canonical_bytes(fields)).hexdigest())],
        fields=fields,
    )
