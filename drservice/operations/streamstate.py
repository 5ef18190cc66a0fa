"""How a WAL receiver is, as it says itself: one small file of each component, for those who only look.

The receiver writes it beside and renames it, at most four times a second: a reader sees one whole state or the one
before. A receiver that was killed leaves its last word behind, so :func:`is_alive` is asked before it is believed.
Deleting the file harms nothing.
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
from drservice.model.ids import ComponentName, ServiceName, SystemId
from drservice.model.wal import Lsn, Timeline
from drservice.processes import create_private, make_folder, open_private

STALE_SECONDS = 15.0
"""A receiver that lives and is heard from no more than this long ago is believed: it asks the server each second."""


class StreamPhase(Enum):
    """What a receiver does."""

    CONNECTING = "connecting"
    """It has no connection to the server; WAL waits in the slot."""
    STREAMING = "streaming"
    """WAL becomes durable as it is written."""
    STALLED = "stalled"
    """It is connected, and the WAL does not become durable fast enough: the store is slow, away or refuses."""
    FAILED = "failed"
    """It cannot go on without somebody's help; ``remedy`` says whose."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamState:
    """How one receiver is. ``None``: not known yet."""

    service: ServiceName
    component: ComponentName
    system_id: SystemId | None
    timeline: Timeline | None
    slot: str
    state: StreamPhase
    received_lsn: Lsn | None
    """Everything before it was received."""
    durable_lsn: Lsn | None
    """Everything from the slot's begin to here is in the repository: the contiguous acknowledged prefix."""
    server_lsn: Lsn | None
    """End of the server's WAL as its last message said it."""
    durable_server_time: datetime | None
    """The server's clock when it sent the byte before ``durable_lsn``."""
    server_time: datetime | None
    """The server's clock in its last message."""
    synchronous: bool
    problem: str | None
    remedy: str | None
    pid: int
    updated_at: datetime
    """This host's clock."""
    covered_lsn: Lsn | None = None
    """Like ``durable_lsn``, and beyond it WAL that is known to be an idle server's, which may wait."""
    slot_status: str | None = None
    """``pg_replication_slots.wal_status``: reserved, extended, unreserved or lost."""
    safe_wal_bytes: int | None = None
    """How much more WAL can be written before the slot may be lost; ``None`` also without a limit."""

    @property
    def bytes_at_risk(self) -> int | None:
        """WAL of the server that is neither durable nor known to be an idle server's."""
        safe = self.durable_lsn if self.covered_lsn is None else self.covered_lsn
        if self.server_lsn is None or safe is None:
            return None
        return max(0, self.server_lsn.value - safe.value)

    @property
    def seconds_at_risk(self) -> float | None:
        """Age of the oldest WAL that is not durable, by the server's clock alone; 0 when everything is."""
        if self.bytes_at_risk == 0:
            return 0.0
        if self.bytes_at_risk is None or self.server_time is None or self.durable_server_time is None:
            return None
        seconds = (self.server_time - self.durable_server_time).total_seconds()
        return seconds if seconds >= 0 else None  # its clock was set back: how old anything is, nobody can tell


def state_path(state_dir: Path, service: ServiceName, component: ComponentName) -> Path:
    """Return where a component's receiver says how it is (no two pairs of names share it: names have no dot)."""
    return state_dir / "streams" / f"{service}.{component}.json"


def lock_path(state_dir: Path, service: ServiceName, component: ComponentName) -> Path:
    """Return the file that a component's receiver holds locked while it lives."""
    return state_dir / "run" / f"stream-{service}.{component}.lock"


def is_alive(state_dir: Path, service: ServiceName, component: ComponentName) -> bool:
    """Tell whether a receiver of this component runs on this host.

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


def write_state(state_dir: Path, state: StreamState) -> None:
    """Replace the state of a receiver.

    Raises:
        OSError: it cannot be written; the one before stays.
    """
    path = state_path(state_dir, state.service, state.component)
    make_folder(path.parent)
    temporary = path.with_suffix(".new")  # one receiver of a component lives at a time
    try:
        with os.fdopen(create_private(temporary, 0o644), "w", encoding="utf-8") as stream:
            stream.write(json.dumps(as_document(state)))
        temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise


def read_state(state_dir: Path, service: ServiceName, component: ComponentName) -> StreamState | None:
    """Return what a component's receiver said last; ``None`` if none ever ran here.

    Raises:
        FormatError: the file is not one that a receiver wrote.
        OSError: it cannot be read.
    """
    path = state_path(state_dir, service, component)
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise FormatError(
            f"{path} is unreadable: {error}", hint="Remove the file; the receiver makes it anew."
        ) from error
    try:
        return _from_document(found)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise FormatError(
            f"{path} describes no receiver: {error!r}", hint="Remove the file; the receiver makes it anew."
        ) from error


def describe_stream(state: StreamState) -> str:
    """Return how a receiver is, in words."""
    if state.durable_lsn is None or state.bytes_at_risk is None:
        return f"{state.state.value} (pid {state.pid}), nothing durable yet"
    behind = "everything is" if not state.bytes_at_risk else f"{state.bytes_at_risk} bytes are not"
    seconds = state.seconds_at_risk
    age = f", the oldest for {seconds:.2f} s" if seconds and state.bytes_at_risk else ""
    return f"{state.state.value} (pid {state.pid}), durable to {state.durable_lsn}: {behind}{age}"


def as_document(state: StreamState) -> dict[str, object]:
    """Return the state as JSON has it."""
    return {field.name: _plain(getattr(state, field.name)) for field in fields(StreamState)}


def _plain(value: object) -> object:
    match value:
        case Lsn():
            return str(value)
        case datetime():
            return to_iso(value)
        case Enum():
            return value.value
        case _:
            return value


def _from_document(found: Mapping[str, object]) -> StreamState:
    def text(name: str) -> str | None:
        value = found[name]
        if value is not None and not isinstance(value, str):
            raise TypeError(name)
        return value

    def number(name: str) -> int | None:
        value = found[name]
        if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
            raise TypeError(name)
        return value

    def lsn(name: str) -> Lsn | None:
        value = text(name)
        return None if value is None else Lsn.parse(value)

    def instant(name: str) -> datetime | None:
        value = text(name)
        return None if value is None else from_iso(value)

    def given(name: str) -> str:
        return str(found[name] if isinstance(found[name], str) else text(f"no {name}"))

    system_id, timeline, pid = text("system_id"), number("timeline"), number("pid")
    if pid is None or not isinstance(found["synchronous"], bool):
        raise TypeError("pid or synchronous")
    return StreamState(
        service=ServiceName(given("service")),
        component=ComponentName(given("component")),
        system_id=None if system_id is None else SystemId(system_id),
        timeline=None if timeline is None else Timeline(timeline),
        slot=given("slot"),
        state=StreamPhase(given("state")),
        received_lsn=lsn("received_lsn"),
        durable_lsn=lsn("durable_lsn"),
        server_lsn=lsn("server_lsn"),
        durable_server_time=instant("durable_server_time"),
        server_time=instant("server_time"),
        synchronous=found["synchronous"],
        problem=text("problem"),
        remedy=text("remedy"),
        pid=pid,
        updated_at=from_iso(given("updated_at")),
        covered_lsn=lsn("covered_lsn"),
        slot_status=text("slot_status"),
        safe_wal_bytes=number("safe_wal_bytes"),
    )
