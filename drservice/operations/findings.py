"""Findings: what a drill showed to be wrong, open until a newer drill shows it right.

A finding is opened for a check that did not pass, and closed only by a later pass of the same check: nobody can close
one by saying so.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass

from drservice.canonical import Json, canonical_bytes
from drservice.evidence.statements import Subject
from drservice.model.checks import CheckResult, CheckState
from drservice.model.estate import Service
from drservice.model.evidence import EvidenceKind
from drservice.model.ids import make_ulid
from drservice.operations.evidence import Evidence
from drservice.operations.records import bounded


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenFinding:
    """A finding that nothing has closed yet."""

    finding: str
    check: str


def open_findings(evidence: Evidence, service: Service) -> list[OpenFinding]:
    """Return what is open for a service, the newest first.

    Raises:
        LedgerError, ObjectStoreError: the ledger cannot be read.
    """
    closed: set[str] = set()
    found: list[OpenFinding] = []
    for entry in evidence.newest_first(service=service.name):
        statement = entry.signed.statement
        if statement.kind is not EvidenceKind.FINDING:
            continue
        identifier = str(statement.predicate["finding"])
        if statement.predicate["state"] == "closed":
            closed.add(identifier)
        elif identifier not in closed:
            found.append(OpenFinding(finding=identifier, check=str(statement.predicate["check"])))
    return found


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
) -> list[str]:
    """Put new findings on record and close those whose check passed; returns the ids that were closed.

    Raises:
        LedgerError, ObjectStoreError: not everything is on record.
    """
    by_name = {result.name: result for result in results}
    for check, identifier in opened.items():
        _record(evidence, service, identifier, "opened", by_name[check], drill_entry)
    closed: list[str] = []
    for finding in known:
        result = by_name.get(finding.check)
        if result is not None and result.state is CheckState.PASSED:
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
