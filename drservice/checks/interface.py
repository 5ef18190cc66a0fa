"""What checks are given, and what a check is: a plain function of the recovered service.

A check asks the recovered system itself. What the restore claims is compared with the answer and never taken for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from drservice.components.postgres.server import PostgresPrograms
from drservice.environments.interface import Environment
from drservice.model.checks import Baseline, CheckState, Severity
from drservice.model.estate import FilesKind, Service
from drservice.model.ids import ComponentName
from drservice.model.neutralized import Neutralized
from drservice.model.wal import Lsn, Timeline


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveredDatabase:
    """A cluster that was recovered and runs in an environment."""

    component: ComponentName
    environment: Environment
    dsn: str
    """Reaches the server from the host."""
    programs: PostgresPrograms
    """As they are inside."""
    reached: Lsn
    """Where replay ended, as proven by the restore."""
    expected_timeline: Timeline
    """The timeline the server has to be on now: the new one it promoted to."""
    stop_lsn: Lsn
    """The end of the snapshot: below it the cluster is not consistent."""
    data_checksums: bool
    """From the snapshot, not from the recovered server."""
    database: str | None
    """Asked by business checks that name none; ``None`` = the one the dsn names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveredDocuments:
    """A folder of files that was placed, and what the restore says about it. Names are relative to ``root``."""

    component: ComponentName
    kind: FilesKind
    root: Path
    expected: int
    missing: tuple[str, ...]
    """Without those that production did not have either."""
    corrupt: tuple[str, ...]
    extra: int
    missing_in_production: tuple[str, ...]
    """Of which production had no good copy: nothing there, or other content than the name says."""
    database: str | None
    """Whose rows refer to the documents; set for ``odoo-filestore`` only."""
    follows: ComponentName | None
    """The cluster that holds ``database``; set for ``odoo-filestore`` only."""
    recovered_from_older: tuple[str, ...] = ()
    """Of which production had no good copy any more, and an older snapshot had: they were placed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveredService:
    """Everything that came back."""

    service: Service
    databases: Mapping[ComponentName, RecoveredDatabase]
    documents: Mapping[ComponentName, RecoveredDocuments] = field(default_factory=dict)
    baselines: Mapping[ComponentName, Baseline] = field(default_factory=dict)
    """What production said about each cluster: of the newest recovery point that is not behind what was reached."""
    neutralized: Mapping[ComponentName, Neutralized] = field(default_factory=dict)
    """What was done to the database of each component with Odoo's documents, if anything was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a check found."""

    state: CheckState
    detail: str
    value: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NotApplicable:
    """The question makes no sense for this service; the reason is told as not tested."""

    reason: str


Ask: TypeAlias = Callable[[RecoveredService, float], Finding | NotApplicable]
"""Asks the recovered service within so many seconds. May raise: then the check is unverified."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One check of a plan."""

    name: str
    """Unique in the plan: ``component/question`` or ``business:name``."""
    severity: Severity
    seconds: float
    """How long it may take."""
    ask: Ask
    owner: str | None = None


def passed(detail: str, *, value: str | None = None) -> Finding:
    """Return a finding that is as it should be."""
    return Finding(state=CheckState.PASSED, detail=detail, value=value)


def failed(detail: str, *, value: str | None = None) -> Finding:
    """Return a finding that is not as it should be."""
    return Finding(state=CheckState.FAILED, detail=detail, value=value)


def unverified(detail: str) -> Finding:
    """Return that the question got no proper answer."""
    return Finding(state=CheckState.UNVERIFIED, detail=detail)


def spoken(text: str, *, most: int = 500) -> str:
    """Return a text that a hostile server had a hand in so that it can be printed and recorded: one line, bounded."""
    short = text if len(text) <= most else f"{text[:most]}... ({len(text)} letters)"
    return "".join(letter if letter.isprintable() else f"\\x{ord(letter):02x}" for letter in short)


def listed(names: list[str], *, most: int = 5) -> str:
    """Return the first few of some foreign names so that they can stand in a sentence."""
    shown = ", ".join(repr(name[:120]) for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
