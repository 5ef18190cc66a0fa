"""How a WAL receiver is, as it says itself about once a second and at each change (``livestate``)."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import datetime
from enum import Enum
from pathlib import Path

from drservice.clock import from_iso
from drservice.model.ids import ComponentName, ServiceName, SystemId
from drservice.model.wal import Lsn, Timeline
from drservice.operations.livestate import Fields, is_held, plain, read_live_state, write_live_state

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
    def is_current(self) -> bool:
        """Whether it hears its server and gets on. Otherwise the server goes on, and what it said last is of then."""
        return self.state is StreamPhase.STREAMING

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
    return is_held(lock_path(state_dir, service, component))


def write_state(state_dir: Path, state: StreamState) -> None:
    """Replace the state of a receiver.

    Raises:
        OSError: it cannot be written; the one before stays.
    """
    write_live_state(state_path(state_dir, state.service, state.component), as_document(state))


def read_state(state_dir: Path, service: ServiceName, component: ComponentName) -> StreamState | None:
    """Return what a component's receiver said last; ``None`` if none ever ran here.

    Raises:
        FormatError: the file is not one that a receiver wrote.
        OSError: it cannot be read.
    """
    return read_live_state(state_path(state_dir, service, component), _from_fields, what="receiver")


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
    return {field.name: plain(getattr(state, field.name)) for field in fields(StreamState)}


def _from_fields(found: Fields) -> StreamState:
    system_id, timeline = found.text("system_id"), found.number("timeline")
    return StreamState(
        service=ServiceName(found.given("service")),
        component=ComponentName(found.given("component")),
        system_id=None if system_id is None else SystemId(system_id),
        timeline=None if timeline is None else Timeline(timeline),
        slot=found.given("slot"),
        state=StreamPhase(found.given("state")),
        received_lsn=found.lsn("received_lsn"),
        durable_lsn=found.lsn("durable_lsn"),
        server_lsn=found.lsn("server_lsn"),
        durable_server_time=found.instant("durable_server_time"),
        server_time=found.instant("server_time"),
        synchronous=found.truth("synchronous"),
        problem=found.text("problem"),
        remedy=found.text("remedy"),
        pid=found.count("pid"),
        updated_at=from_iso(found.given("updated_at")),
        covered_lsn=found.lsn("covered_lsn"),
        slot_status=found.text("slot_status"),
        safe_wal_bytes=found.number("safe_wal_bytes"),
    )
