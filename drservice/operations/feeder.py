"""The feeder: answers, from outside, every WAL file that the server in an isolated environment asks for.

It serves exactly what the plan names and says "absent" only where the plan's complete listing proved it. The next
segments lie in the exchange folder before they are asked for, so that the server does not wait. Any error becomes a
refusal (status 127 inside): PostgreSQL stops and never takes it for the end of WAL.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from drservice.environments.exchange import Exchange
from drservice.errors import DrError, RecoveryError, SegmentAbsentError, WalGapError
from drservice.model.ids import SystemId
from drservice.model.reach import WalInventory
from drservice.model.recovery import RecoveryPlan
from drservice.model.wal import Timeline, WalFileKind, WalFileName, segment_number
from drservice.operations.locate import plan_segments
from drservice.operations.progress import Progress
from drservice.operations.walsource import WalFiles

_AHEAD = 8
_AHEAD_BYTES = 256 << 20
_FETCHERS = 3
"""Each holds one segment as it is stored, and a piece of it as it is."""
_KEEP = 32
_POLL_SECONDS = 0.01
_BEAT_SECONDS = 1.0


@dataclass(slots=True)
class FeederState:
    """What the feeder has seen so far; written by its thread, read by the restore."""

    served: int = 0
    asked_past_end: bool = False
    """Whether the server looked for a segment behind the last one that it was to get."""
    problem: DrError | None = None
    names: list[str] = field(default_factory=list)


class Feeder:
    """Runs in a thread of its own from :meth:`start` to :meth:`stop`."""

    def __init__(
        self,
        exchange: Exchange,
        archive: WalFiles,
        *,
        plan: RecoveryPlan,
        inventory: WalInventory,
        progress: Progress,
        promotes_to: Timeline | None = None,
    ) -> None:
        """``promotes_to``: the timeline that the server is to choose when it promotes; all below count as taken."""
        self._exchange = exchange
        self._archive = archive
        self._plan = plan
        self._inventory = inventory
        self._progress = progress
        self._promotes_to = promotes_to
        self._system_id: SystemId = inventory.system_id
        self._names = plan_segments(plan, inventory)
        self._index = {name: position for position, name in enumerate(self._names)}
        self._pool = ThreadPoolExecutor(max_workers=_FETCHERS, thread_name_prefix="wal-fetch")
        self._ahead: dict[str, Future[None]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="wal-feeder", daemon=True)
        self._heart = threading.Thread(target=self._beat, name="wal-feeder-heart", daemon=True)
        self._seen = -1
        self.state = FeederState()

    def start(self) -> None:
        """Begin to answer; the heartbeat is there before the server can ask."""
        self._exchange.clear()
        self._exchange.beat()
        self._thread.start()
        self._heart.start()

    def stop(self) -> None:
        """Stop answering; safe also if :meth:`start` was interrupted."""
        self._stop.set()
        for thread in (self._thread, self._heart):
            if thread.ident is not None:
                thread.join()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def leave_answers(self) -> None:
        """After :meth:`stop`: leave what a server that is paused at its target will ask for when somebody promotes it.

        The segments that it replayed last are served still. Of histories it looks for the next ones of its own.
        """
        for timeline in sorted(self._inventory.histories):
            if timeline > self._plan.timeline:
                name = f"{timeline:08X}.history"
                self._exchange.serve(name, self._archive.fetch(WalFileName.parse(name), system_id=self._system_id))
        self._exchange.complete()

    def _beat(self) -> None:
        """Show that somebody answers, also while an answer waits for a store that is away for a moment."""
        while not self._stop.wait(_BEAT_SECONDS) and self._thread.is_alive():
            try:
                self._exchange.beat()
            except DrError as error:
                self.state.problem = self.state.problem or error
                return

    def _run(self) -> None:
        # Not in start(): a signal that interrupts the main thread while the pool makes a thread leaves one that nobody
        # knows of, and the process would wait for it for ever at its end.
        self._read_ahead(0)
        while not self._stop.wait(_POLL_SECONDS):
            try:
                for name in self._exchange.requests():
                    self._answer(name)
            except (DrError, OSError, ValueError) as error:
                # Without this thread there is no heartbeat, and the server inside stops by itself; the restore reports
                # this error.
                known = error if isinstance(error, DrError) else RecoveryError(f"feeding WAL failed: {error}")
                self.state.problem = self.state.problem or known
                return

    def _answer(self, name: str) -> None:
        self.state.names.append(name)
        try:
            self._provide(WalFileName.parse(name))
        except SegmentAbsentError:
            self._exchange.absent(name)
        except DrError as error:
            self.state.problem = self.state.problem or error
            self._exchange.refuse(name, f"{error.code}: {error.message}")
        else:
            self.state.served += 1
            self._after(name)

    def _provide(self, name: WalFileName) -> None:
        """Have a file in the exchange folder."""
        position = self._index.get(name.name)
        if position is not None:
            self._read_ahead(position)
            self._await(name.name)
        elif name.kind is WalFileKind.HISTORY:
            self._exchange.serve(name.name, self._history(name))
        else:
            if name.kind is WalFileKind.SEGMENT:
                self._judge_absence(name)
            raise SegmentAbsentError(f"{name.name} is not part of the plan")

    def _history(self, name: WalFileName) -> bytes:
        """Return a history; for a timeline that is taken, as far as is known, something that only says so.

        A promoting server asks for histories upward from its own and takes the first number of which there is none
        (``findNewestTimeLine`` in timeline.c). It looks whether they are there and never into them: what it reads is
        the history of the timeline that it was told to follow, and of those it does get the real ones.
        """
        try:
            return self._archive.fetch(name, system_id=self._system_id)
        except SegmentAbsentError:
            if not self._is_taken(name.timeline):
                raise
            return f"# timeline {name.timeline} is taken\n".encode()

    def _is_taken(self, timeline: Timeline) -> bool:
        return self._promotes_to is not None and self._plan.timeline < timeline < self._promotes_to

    def _judge_absence(self, name: WalFileName) -> None:
        """Return only where the plan's listing proves that ``name`` is no hole.

        Raises:
            WalGapError: the plan ends here because of a gap: whoever gets this far must not promote.
        """
        size = self._inventory.segment_bytes
        number = segment_number(name.name, size)
        first = self._plan.snapshot.postgres.start_lsn.segment_number(size)
        if number >= first + self._plan.reach.segments:
            if self._plan.reach.gap is not None:
                raise WalGapError(f"{name.name} lies in a gap: {self._plan.reach.gap.describe()}")
            self.state.asked_past_end = True

    def _await(self, name: str) -> None:
        """Wait for a segment of the plan that is on its way; one that was served stays good, whoever asks again."""
        future = self._ahead.pop(name, None)
        try:
            if future is not None:
                future.result()
            if not self._exchange.has(name):
                self._bring(name)
        except SegmentAbsentError as error:
            # It was listed when the plan was made: now it is a hole, never the end.
            raise RecoveryError(
                f"{name} vanished from the archive during the restore", hint="Is somebody deleting WAL? Try again."
            ) from error

    def _bring(self, name: str) -> None:
        partial = self._plan.reach.partial
        stored = partial if partial is not None and partial.removesuffix(".partial") == name else name
        self._archive.fetch_into(
            lambda pieces: self._exchange.serve(name, pieces), WalFileName.parse(stored), system_id=self._system_id
        )

    def _read_ahead(self, position: int) -> None:
        ahead = max(1, min(_AHEAD, _AHEAD_BYTES // self._inventory.segment_bytes))
        for name in self._names[position : position + ahead]:
            if name not in self._ahead and not self._exchange.has(name):
                self._ahead[name] = self._pool.submit(self._bring, name)

    def _after(self, name: str) -> None:
        position = self._index.get(name)
        if position is None or position <= self._seen:
            return
        self._progress.advance(position - self._seen)
        for old in range(max(0, self._seen - _KEEP), position - _KEEP):
            self._exchange.forget(self._names[old])
        self._seen = position
