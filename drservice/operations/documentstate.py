"""How the capture of a component's documents is, as it says itself: one small file, for those who only look.

It is written beside and renamed: a reader sees one whole state or the one before. A process that was killed leaves its
last word behind, so :func:`is_alive` is asked before it is believed. Deleting the file harms nothing.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from datetime import datetime
from enum import Enum
from pathlib import Path

from drservice.clock import from_iso, to_iso
from drservice.errors import FormatError
from drservice.model.ids import ComponentName, ServiceName
from drservice.processes import create_private, make_folder, open_private


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
    path = lock_path(state_dir, service, component)
    if not path.exists():
        return False
    file = open_private(path)
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False


def write_state(state_dir: Path, state: DocumentState) -> None:
    """Replace the state of a component.

    Raises:
        OSError: it cannot be written; the one before stays.
    """
    path = state_path(state_dir, state.service, state.component)
    make_folder(path.parent)
    temporary = path.with_suffix(".new")  # one capture of a component lives at a time
    try:
        with os.fdopen(create_private(temporary, 0o644), "w", encoding="utf-8") as stream:
            stream.write(json.dumps(as_document(state)))
        temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise


def read_state(state_dir: Path, service: ServiceName, component: ComponentName) -> DocumentState | None:
    """Return what the capture of a component said last; ``None`` if none ever ran here.

    Raises:
        FormatError: the file is not one that a capture wrote.
        OSError: it cannot be read.
    """
    path = state_path(state_dir, service, component)
    try:
        return _from_document(json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise FormatError(
            f"{path} describes no capture of documents: {error!r}", hint="Remove the file; it is made anew."
        ) from error


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
    return {field.name: _plain(getattr(state, field.name)) for field in fields(DocumentState)}


def _plain(value: object) -> object:
    match value:
        case datetime():
            return to_iso(value)
        case Enum():
            return value.value
        case _:
            return value


def _from_document(found: Mapping[str, object]) -> DocumentState:
    def text(name: str) -> str | None:
        value = found[name]
        if value is not None and not isinstance(value, str):
            raise TypeError(name)
        return value

    def given(name: str) -> str:
        value = text(name)
        if value is None:
            raise TypeError(name)
        return value

    def number(name: str) -> int:
        value = found[name]
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(name)
        return value

    def instant(name: str) -> datetime | None:
        value = text(name)
        return None if value is None else from_iso(value)

    return DocumentState(
        service=ServiceName(given("service")),
        component=ComponentName(given("component")),
        state=DocumentPhase(given("state")),
        durable_server_time=instant("durable_server_time"),
        looked_at=instant("looked_at"),
        server_time=instant("server_time"),
        pending=number("pending"),
        missing=number("missing"),
        corrupt=number("corrupt"),
        stored=number("stored"),
        in_database=number("in_database"),
        not_covered=number("not_covered"),
        problem=text("problem"),
        remedy=text("remedy"),
        pid=number("pid"),
        updated_at=from_iso(given("updated_at")),
    )
