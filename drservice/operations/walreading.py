"""Where a receiver takes WAL from: the replication connection, or ``pg_wal`` itself while a server here writes much.

A stream is right whatever happens: it tells of timelines, of the server's end, and lets commits wait. It costs a loaded
server a processor's time for each commit, though, and a receiver on the database's own host has the files before it. So
WAL is read there while there is much of it, and streamed otherwise. Whatever is not as it should be ends that: the
stream then goes on from what was received.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from pathlib import Path

from drservice import telemetry
from drservice.clock import Clock
from drservice.components.postgres.controlfile import ClusterState, read_control_file
from drservice.components.postgres.localwal import LocalWal, WalFolder, end_after_shutdown
from drservice.components.postgres.replication import SystemIdentity
from drservice.components.postgres.streaming import is_shutting_down
from drservice.errors import DrError
from drservice.model.estate import PostgresSettings
from drservice.model.wal import Lsn, Timeline
from drservice.operations.walwatch import SlotWatch

_LOOK_SECONDS = 0.5
_MUCH_SECONDS = 1.0
_MUCH_BYTES_PER_SECOND = 2 << 20
"""So much, for so long, is read from the disk."""
_LITTLE_SECONDS = 10.0
_LITTLE_BYTES_PER_SECOND = 256 << 10
"""So little, for so long, is streamed again."""
_AGAIN_SECONDS = 60.0
"""After a refusal, or when reading broke: for so long the stream has it, whatever the cause was."""
_CRASHED_SECONDS = 1.0
_GOING_SECONDS = 5.0
"""How long after its last words a server may still call itself in production."""
_DOWN_SECONDS = 60.0
"""How long its last checkpoint is waited for. It may have died over it, and another server be the primary by now."""


class Load:
    """How much WAL a server has written lately."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def note(self, now: float, position: Lsn) -> None:
        """Take where its WAL ended."""
        self._seen.append((now, position.value))
        while len(self._seen) > 1 and self._seen[1][0] <= now - _LITTLE_SECONDS:
            self._seen.popleft()

    @property
    def is_much(self) -> bool:
        """Whether it is worth another way."""
        rate = self._rate(_MUCH_SECONDS)
        return rate is not None and rate >= _MUCH_BYTES_PER_SECOND

    @property
    def is_little(self) -> bool:
        """Whether it is not, any more."""
        rate = self._rate(_LITTLE_SECONDS)
        return rate is not None and rate < _LITTLE_BYTES_PER_SECOND

    def _rate(self, seconds: float) -> float | None:
        """Return bytes per second of the last ``seconds``; ``None``: not watched for so long."""
        if not self._seen:
            return None
        now, end = self._seen[-1]
        before = [seen for seen in self._seen if seen[0] <= now - seconds]
        if not before:
            return None
        at, begin = before[-1]
        return (end - begin) / (now - at)


@dataclass(slots=True)
class Patience:
    """Until when nothing is read; it outlives connections: what broke one would break the next."""

    until: float = float("-inf")


class Reading:
    """Decides, and opens the files.

    Args:
        component: whose WAL.
        identity: of the server.
        slot: name of the slot.
        watch: knows whether commits wait for the receiver, and nothing once the server goes down.
        patience: of the receiver.
        clock: of this host.
    """

    def __init__(
        self,
        component: PostgresSettings,
        identity: SystemIdentity,
        *,
        slot: str,
        watch: SlotWatch,
        patience: Patience,
        clock: Clock,
    ) -> None:
        self._component = component
        self._identity = identity
        self._slot = slot
        self._watch = watch
        self._clock = clock
        self._load = Load()
        self._looked_at = float("-inf")
        self._patience = patience
        self.local: LocalWal | None = None
        """What WAL is read from; ``None``: it is streamed."""

    def is_to_begin(self, received: Lsn, timeline: Timeline) -> bool:
        """Tell whether WAL is streamed and should be read; asked often, answered twice a second.

        A server that was promoted sends the timelines first that it has left: they are not in the files it writes.
        """
        is_own = timeline == self._identity.timeline
        return self.local is None and is_own and self._look(received) and self._load.is_much and self._may()

    def is_to_end(self, received: Lsn) -> bool:
        """Tell whether WAL is read and should be streamed again."""
        return self.local is not None and self._look(received) and (self._load.is_little or not self._may())

    def begin(self, received: Lsn) -> LocalWal | None:
        """Return what WAL is read from on; ``None`` if it cannot be, which is told, and asked again much later."""
        try:
            self.local = LocalWal.open(
                self._component.production_dsn,
                directory=self._directory,
                identity=self._identity,
                slot=self._slot,
                begin=received,
                least_seconds=self._component.wal.interval.total_seconds(),
            )
        except DrError as error:
            self._patience.until = self._clock.monotonic() + _AGAIN_SECONDS
            telemetry.info("wal is streamed, not read from pg_wal", reason=error.message)
            return None
        telemetry.info("wal is read from pg_wal while there is much of it", begin=str(received))
        return self.local

    def end(self) -> None:
        """Close the files, if any are open."""
        if self.local is not None:
            self.local.close()
            self.local = None

    def abandon(self) -> None:
        """Close the files because reading them broke, if any are open, and let it be for a while."""
        if self.local is not None:
            self._patience.until = self._clock.monotonic() + _AGAIN_SECONDS
            self.end()

    def is_going_down(self, problem: DrError, asked_seconds: float) -> bool:
        """Tell whether a server whose session ended may still be writing the end of its WAL.

        Args:
            problem: how the session with it ended.
            asked_seconds: for how long that has been asked.
        """
        state = self._control_state()
        if state is ClusterState.IN_PRODUCTION:
            return asked_seconds < (_GOING_SECONDS if is_shutting_down(problem) else _CRASHED_SECONDS)
        return state is ClusterState.SHUTTING_DOWN and asked_seconds < _DOWN_SECONDS

    def what_shutdown_left(self) -> tuple[Lsn, WalFolder] | None:
        """Return where the WAL of a server ends that was shut down in order, and its files; ``None``: it was not."""
        try:
            return end_after_shutdown(self._directory, self._identity)
        except (DrError, OSError) as error:
            telemetry.info("wal that a shutdown left waits with the server", reason=str(error))
            return None

    @property
    def _directory(self) -> Path:
        assert self._component.data_directory is not None, "asked before anything is read"
        return self._component.data_directory

    def _control_state(self) -> ClusterState | None:
        try:
            return read_control_file(self._directory).state
        except (DrError, OSError):
            return None

    def _look(self, received: Lsn) -> bool:
        now = self._clock.monotonic()
        if now - self._looked_at < _LOOK_SECONDS:
            return False
        self._looked_at = now
        self._load.note(now, received)
        return True

    def _may(self) -> bool:
        """Tell whether reading is allowed: a primary's WAL, of this host, for whose storing no commit waits.

        Of a server that goes down nothing is known any more: a smart shutdown waits for every session, this one too.
        """
        wal, facts = self._component.wal, self._watch.facts
        return (
            wal.from_disk
            and not wal.synchronous
            and self._component.data_directory is not None
            and facts is not None
            and facts.in_recovery is False
            and not facts.is_synchronous
            and self._clock.monotonic() >= self._patience.until
        )
