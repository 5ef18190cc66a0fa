"""Archives what a cluster has ready, ahead of the archiver and in parallel, and knows for certain what is durable.

PostgreSQL's archiver asks for one file at a time and waits; meanwhile the files behind it are ready as well. Threads
take them in PostgreSQL's own order (compression, encryption and hashing run side by side), through the same checks as
``wal push``. That is done while the archiver asks: whoever pauses archive_command pauses this as well.

Memory is a buffer of one segment and its sealed copy for each thread. A store that is away is asked again later and
later; PostgreSQL keeps its WAL. Nothing is remembered on disk: what was archived by an earlier process is compared with
the store once more.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from drservice import telemetry
from drservice.clock import Clock
from drservice.errors import DrError, RepositoryError, WalError
from drservice.model.ids import SystemId
from drservice.operations.lineage import Lineage
from drservice.operations.wal import check_pushed
from drservice.operations.walready import ReadyFolder
from drservice.repository.daykey import DayKeys
from drservice.repository.walarchive import PutOutcome, WalArchive

_LOOK_SECONDS = 1.0
"""Between looks at what is ready, unless somebody asks: the archiver asks as soon as there is something."""
_ASKING_SECONDS = 5.0
"""How long a question is taken for the sign of an archiver at work."""
_AGAIN_SECONDS = 30.0
"""Until a file that cannot be archived is tried again unasked."""
_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 60.0
_UNPINNED_SECONDS = 10.0
_KEPT_BYTES = 64 << 20
"""A thread gives a larger buffer back when it has nothing to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Durable:
    """A file that is in the store, and which one it was."""

    identity: str
    head: str
    system_id: SystemId
    outcome: PutOutcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How the last attempt at a file ended, and when it may be tried again unasked."""

    number: int
    durable: Durable | None
    problem: str
    again_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AheadState:
    """What people are told."""

    ready: int
    durable: int
    problem: str


class Ahead:
    """Archives ahead, from :meth:`start` to :meth:`stop`; safe for threads.

    Args:
        folder: of the cluster.
        archive: where it belongs.
        lineage: says which cluster is believed.
        day_keys: what files are sealed with.
        in_flight: how many are on their way at one time.
        clock: of this host.
    """

    def __init__(
        self,
        *,
        folder: ReadyFolder,
        archive: WalArchive,
        lineage: Lineage,
        day_keys: DayKeys,
        in_flight: int,
        clock: Clock,
    ) -> None:
        self._folder = folder
        self._archive = archive
        self._lineage = lineage
        self._day_keys = day_keys
        self._clock = clock
        self._changed = threading.Condition()
        self._is_over = False
        self._ready: Sequence[str] = ()
        self._looked_at = float("-inf")
        self._asked: list[str] = []
        self._asked_at = float("-inf")
        self._running: set[str] = set()
        self._outcomes: dict[str, Outcome] = {}
        self._ended = 0
        self._pause = 0.0
        self._paused_until = float("-inf")
        self._problem = ""
        self._pin: tuple[float, SystemId | None] | None = None
        self._pinning = threading.Lock()
        self._threads = [
            threading.Thread(target=self._work, name=f"wal-ahead-{number}", daemon=True) for number in range(in_flight)
        ]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self, seconds: float) -> bool:
        """Take nothing new and wait for what is on its way; ``False`` if that took longer than ``seconds``."""
        with self._changed:
            self._is_over = True
            self._asked.clear()
            self._changed.notify_all()
        deadline = self._clock.monotonic() + seconds
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, deadline - self._clock.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def state(self) -> AheadState:
        """Return what is ready and not yet known to be durable, and what is wrong as long as something waits."""
        with self._changed:
            durable = {name for name, outcome in self._outcomes.items() if outcome.durable is not None}
            problems = [outcome.problem for outcome in self._outcomes.values() if outcome.problem]
            waiting = sum(name not in durable for name in self._ready)
            problem = self._problem or next(iter(problems), "")
            return AheadState(ready=waiting, durable=len(durable), problem=problem if waiting else "")

    def archived(self, name: str, *, identity: str, head: str, waiting: Callable[[], None]) -> Durable:
        """Return once this very file is durable; at once if it is already.

        Args:
            name: the file's.
            identity: which file is meant (``protocol.identity``).
            head: its first bytes in hexadecimal.
            waiting: called about every second meanwhile; what it raises is passed on.

        Raises:
            WalError: it is not, or not known to be; the message says why.
        """
        with self._changed:
            begin = self._ended
        while True:
            with self._changed:
                self._asked_at = self._clock.monotonic()
                outcome = self._outcomes.get(name)
                if outcome is not None and outcome.durable is not None:
                    if (outcome.durable.identity, outcome.durable.head) == (identity, head):
                        return outcome.durable
                    if outcome.number > begin:
                        raise WalError(f"{name} is another file than the one in pg_wal")
                    del self._outcomes[name]  # an earlier file of this name
                elif outcome is not None and outcome.number > begin:
                    raise WalError(outcome.problem)
                if name not in self._running and name not in self._asked:
                    self._require_going_on()
                    self._asked.append(name)
                    self._looked_at = float("-inf")  # more is ready by now, as a rule
                    self._changed.notify_all()
                self._changed.wait(1.0)
            waiting()

    def _require_going_on(self) -> None:
        """Return if another file may be begun."""
        if self._is_over:
            raise WalError("the helper is ending")
        if self._clock.monotonic() < self._paused_until:
            raise WalError(f"the helper waits before it tries again: {self._problem}")

    # --- the threads ----------------------------------------------------------------------------------------

    def _work(self) -> None:
        buffer = bytearray()
        while (name := self._take()) is not None:
            try:
                self._put(name, buffer)
            finally:
                with self._changed:
                    self._running.discard(name)
                    self._changed.notify_all()
            if len(buffer) > _KEPT_BYTES:
                buffer = bytearray()

    def _take(self) -> str | None:
        """Wait for a file to archive and return its name; ``None`` at the end."""
        with self._changed:
            while not self._is_over:
                now = self._clock.monotonic()
                if now - self._looked_at >= _LOOK_SECONDS:
                    self._look(now)
                if now < self._paused_until:
                    self._changed.wait(min(_LOOK_SECONDS, self._paused_until - now))
                    continue
                name = self._next(now)
                if name is not None:
                    self._running.add(name)
                    return name
                self._changed.wait(_LOOK_SECONDS)
            return None

    def _look(self, now: float) -> None:
        """See what is ready, and forget what is not any more."""
        self._looked_at = now
        try:
            self._ready = self._folder.names()
        except WalError as error:
            self._failed(error, now)
            return
        kept = {*self._ready, *self._asked, *self._running}
        self._outcomes = {name: outcome for name, outcome in self._outcomes.items() if name in kept}

    def _next(self, now: float) -> str | None:
        while self._asked:
            name = self._asked.pop(0)
            if name not in self._running:
                return name
        for name in self._ready if now - self._asked_at < _ASKING_SECONDS else ():
            outcome = self._outcomes.get(name)
            if name not in self._running and (outcome is None or (outcome.durable is None and outcome.again_at <= now)):
                return name
        return None

    def _put(self, name: str, buffer: bytearray) -> None:
        """Archive one file and keep how that ended."""
        durable: Durable | None = None
        problem, again_at = "", float("-inf")
        try:
            durable = self._durable(name, buffer)
            problem = "" if durable is not None else f"{name} is not ready to be archived"
        except DrError as error:
            problem = error.message
            telemetry.error("wal file not archived", name=name, problem=problem)
            if isinstance(error, WalError | RepositoryError):
                again_at = self._clock.monotonic() + _AGAIN_SECONDS
            else:
                with self._changed:
                    self._failed(error, self._clock.monotonic())
        except Exception as error:  # noqa: BLE001 - a defect must end neither the thread nor in silence
            problem = f"internal error: {type(error).__name__}: {error}"
            telemetry.error("wal file not archived", exception=error, name=name)
            with self._changed:
                self._failed(WalError(problem), self._clock.monotonic())
        with self._changed:
            self._ended += 1
            self._outcomes[name] = Outcome(number=self._ended, durable=durable, problem=problem, again_at=again_at)
            if durable is not None:
                self._pause, self._problem = 0.0, ""

    def _durable(self, name: str, buffer: bytearray) -> Durable | None:
        read = self._folder.read(name, buffer)
        if read is None:
            return None
        with read.data as data:
            size = len(data)
            checked = check_pushed(self._folder.path(name), data, pinned=self._pinned())
            outcome = self._archive.put(
                checked.name, data, system_id=checked.system_id, last_write=read.last_write, key=self._day_keys.today()
            )
        telemetry.info("wal file archived", name=name, outcome=outcome.value, bytes=size)
        return Durable(identity=read.identity, head=read.head, system_id=checked.system_id, outcome=outcome)

    def _pinned(self) -> SystemId | None:
        """Return the cluster that is believed, without a listing for each segment before the first snapshot."""
        with self._pinning:  # threads that begin together wait for the one that lists
            now = self._clock.monotonic()
            if self._pin is not None:
                looked_at, system_id = self._pin
                if now - looked_at < (_LOOK_SECONDS if system_id is not None else _UNPINNED_SECONDS):
                    return system_id
            system_id = self._lineage.pinned()
            self._pin = (now, system_id)
            return system_id

    def _failed(self, error: DrError, now: float) -> None:
        """Pause: what went wrong would go wrong with every file. Called with the lock held."""
        if now >= self._paused_until:  # else others that failed at the same time have said so
            self._pause = min(max(_FIRST_PAUSE_SECONDS, self._pause * 2), _LONGEST_PAUSE_SECONDS)
            self._paused_until = now + self._pause
        if self._problem != error.message:
            telemetry.warning("archiving ahead pauses", problem=error.message, seconds=self._pause)
        self._problem = error.message
        self._changed.notify_all()
