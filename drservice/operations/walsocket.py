"""Where a component's helper listens, and what it says of itself: for those who only look."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from drservice.model.ids import ComponentName, ServiceName
from drservice.walclient import client, protocol


def socket_path(state_dir: Path, service: ServiceName, component: ComponentName) -> Path:
    """Return where a component's helper listens."""
    return state_dir / "run" / f"wal-{service}-{component}.sock"


@dataclass(frozen=True, slots=True, kw_only=True)
class HelperState:
    """A helper as it describes itself."""

    pid: int
    ready: int
    """Files that PostgreSQL has ready and that are not durable yet."""
    problem: str


def helper_state(path: Path) -> HelperState | None:
    """Ask a helper how it is; ``None`` if there is none that may be believed and answers."""
    try:
        connection = client.connect(str(path))
        try:
            connection.sendall(protocol.encode(protocol.STATE, {"version": protocol.VERSION}))
            word, answer = protocol.receive(connection)
        finally:
            connection.close()
        if word != protocol.STATE or answer.get("version") != protocol.VERSION:
            return None
        return HelperState(
            pid=int(answer.get("pid", "")), ready=int(answer.get("ready", "")), problem=answer.get("problem", "")
        )
    except (OSError, ValueError):
        return None
