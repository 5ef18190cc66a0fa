"""How the capture of a component's documents is, as it says itself (``livestate``): for those who only look."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from enum import Enum
from pathlib import Path

from drservice.clock import from_iso, to_iso
from drservice.model.ids import ComponentName, ServiceName
from drservice.operations.livestate import Fields, is_held, plain, read_live_state, write_live_state

_SILENT = timedelta(seconds=60)


def patience(interval: timedelta) -> timedelta:
    """Return for how long a capture that lives is believed although it says nothing: a set may take a while to store.

    Args:
        interval: from one of its looks to the next.
    """
    return max(_SILENT, 2 * interval)


class DocumentPhase(Enum):
    """What the capture of documents does."""

    STARTING = "starting"
    """It compares everything with what is stored: nothing is promised yet."""
    STREAMING = "streaming"
    """Documents become durable as they come."""
    STALLED = "stalled"
    """Documents do not become durable: the store or the database is away, or files cannot be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentState:
    """How one capture is. ``None``: not known yet."""

    service: ServiceName
    component: ComponentName
    state: DocumentPhase
    durable_server_time: datetime | None
    """The database's clock: every document that rows committed by then refer to is stored, or known to be lost."""
    looked_at: datetime | None
    """This host's clock at the same moment."""
    server_time: datetime | None
    """The database's clock at the last look."""
    pending: int
    """Documents that rows may refer to, seen and not stored: being written, unreadable, or the store is away."""
    missing: int
    """Documents that rows refer to and production does not have, found by this process."""
    corrupt: int
    """The same, with other content than their name says."""
    stored: int
    """Documents stored by this process."""
    in_database: int
    """Attachments inside the database, covered by its own WAL."""
    not_covered: int
    """Attachments outside filestore and database."""
    problem: str | None
    remedy: str | None
    pid: int
    updated_at: datetime
    """This host's clock."""

    def lag_seconds(self, now: datetime) -> float | None:
        """Return how old the newest position is up to which all documents are stored; ``None``: there is none yet."""
        return None if self.looked_at is None else max(0.0, (now - self.looked_at).total_seconds())


def state_path(state_dir: Path, service: ServiceName, component: ComponentName) -> Path:
    """Return where the capture of a component says how it is."""
    return state_dir / "documents" / f"{service}.{component}.json"


def lock_path(state_dir: Path, service: ServiceName, component: ComponentName) -> Path:
    """Return the file that the capture of a component holds locked while it lives."""
    return state_dir / "run" / f"documents-{service}.{component}.lock"


def is_alive(state_dir: Path, service: ServiceName, component: ComponentName) -> bool:
    """Tell whether the documents of a component are being captured on this host.

    Raises:
        OSError: the lock cannot be looked at.
    """
    return is_held(lock_path(state_dir, service, component))


def write_state(state_dir: Path, state: DocumentState) -> None:
    """Replace the state of a component.

    Raises:
        OSError: it cannot be written; the one before stays.
    """
    write_live_state(state_path(state_dir, state.service, state.component), as_document(state))


def read_state(state_dir: Path, service: ServiceName, component: ComponentName) -> DocumentState | None:
    """Return what the capture of a component said last; ``None`` if none ever ran here.

    Raises:
        FormatError: the file is not one that a capture wrote.
        OSError: it cannot be read.
    """
    return read_live_state(state_path(state_dir, service, component), _from_fields, what="capture of documents")


def describe_documents(state: DocumentState) -> str:
    """Return how a capture is, in words."""
    durable = state.durable_server_time
    told = "nothing proven yet" if durable is None else f"documents durable to {to_iso(durable)}"
    waiting = f", {state.pending} pending" if state.pending else ""
    lost = state.missing + state.corrupt
    damaged = f", {lost} lost or damaged in production" if lost else ""
    outside = f", {state.not_covered} attachments NOT COVERED" if state.not_covered else ""
    return f"{state.state.value} (pid {state.pid}), {told}{waiting}{damaged}{outside}"


def as_document(state: DocumentState) -> dict[str, object]:
    """Return the state as JSON has it."""
    return {field.name: plain(getattr(state, field.name)) for field in fields(DocumentState)}


def _from_fields(found: Fields) -> DocumentState:
    return DocumentState(
        service=ServiceName(found.given("service")),
        component=ComponentName(found.given("component")),
        state=DocumentPhase(found.given("state")),
        durable_server_time=found.instant("durable_server_time"),
        looked_at=found.instant("looked_at"),
        server_time=found.instant("server_time"),
        pending=found.count("pending"),
        missing=found.count("missing"),
        corrupt=found.count("corrupt"),
        stored=found.count("stored"),
        in_database=found.count("in_database"),
        not_covered=found.count("not_covered"),
        problem=found.text("problem"),
        remedy=found.text("remedy"),
        pid=found.count("pid"),
        updated_at=from_iso(found.given("updated_at")),
    )
